"""Draw the losses of alignment runs: what a run's `log.jsonl` says, as one picture.

python benchmarks/quality/loss_curves.py outputs/*/log.jsonl -o curves.png

Thin lines are training's loss, thick ones validation's with the objects' own shapes, dashed ones with other objects'
shapes: what lies between a thick and a dashed line comes from the shapes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdf_vqvae.training.run_log import read_log
from sdf_vqvae.utils.files import atomic_path


def main() -> None:
    """Draw one color a run."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", type=Path, help="log.jsonl of each run")
    parser.add_argument("--names", nargs="+", help="of the runs (default: the files')")
    parser.add_argument("--output", "-o", type=Path, required=True, help="PNG or SVG file")
    options = parser.parse_args()
    names = options.names or [path.stem.removesuffix("_log") for path in options.logs]
    if len(names) != len(options.logs):
        parser.error(f"{len(options.logs)} logs need as many names, got {len(names)}")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="objects seen, in thousands", ylabel="nats a token of the answer")
    for number, (path, name) in enumerate(zip(options.logs, names, strict=True)):
        records = read_log(path)
        train = [record for record in records if record["kind"] == "train"]
        if not train:
            parser.error(f"{path} has no training records")
        objects_a_step = train[-1]["objects"] / train[-1]["step"]
        for kind, key, style in (
            ("train", "loss", {"linewidth": 0.6, "alpha": 0.7}),
            ("val", "val_loss", {"linewidth": 2, "marker": "o", "markersize": 3, "label": name}),
            ("val", "val_loss_other_shape", {"linewidth": 1.2, "linestyle": "--"}),
        ):
            points = [
                (record["step"] * objects_a_step / 1e3, record[key]) for record in records if record["kind"] == kind
            ]
            if points:
                axes.plot(*zip(*points, strict=True), color=f"C{number}", **style)
    axes.legend(title="validation; dashed: another shape")
    axes.grid(alpha=0.3)
    with atomic_path(options.output) as temporary:
        figure.savefig(temporary, dpi=110)
    print(options.output)


if __name__ == "__main__":
    main()
