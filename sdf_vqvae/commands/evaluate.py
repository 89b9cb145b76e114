"""The program `evaluate`: how well a tokenizer rebuilds shapes, as tables, JSON and a page of pictures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.evaluation.settings import EvaluationSettings
from sdf_vqvae.utils.programs import USER_ERROR, add_run_options, positive_int, print_json
from sdf_vqvae.utils.settings import add_options, given

ABOUT = "Measure how well a tokenizer rebuilds shapes, beside the ceiling of its representation."
EXAMPLES = (
    "  vae-qwen3vl evaluate examples -o evaluation --samples 20000         a folder of meshes\n"
    "  vae-qwen3vl evaluate shapes -o evaluation --split test              a pack (meshes.bin, meshes.jsonl)\n"
    "  vae-qwen3vl evaluate train_sdf_dataset -o evaluation                voxelized fields (.npz)\n"
    "  vae-qwen3vl evaluate shapes -o quick --split test --max_samples 50  50 objects drawn with --seed\n"
    "  vae-qwen3vl evaluate shapes -o mine --vae_ckpt outputs/tok/model.safetensors\n"
    "  vae-qwen3vl evaluate shapes -o mine --vae_ckpt tok/model.safetensors --against evaluation\n"
    "  vae-qwen3vl evaluate --protocol                                     every measure and its formula\n"
    "\n"
    "Three rows for every object: `ceiling` is mesh -> field -> mesh without the network, the best that the\n"
    "tokenizer's grid can do; `continuous` goes through the network with the quantizer bypassed; `discrete` is\n"
    "rebuilt from codes alone. What fails scores the worst case in every measure and is listed with its reason.\n"
    "FOLDER gets summary.json, objects.jsonl (a line an object) and report.html (tables and pictures). The same\n"
    "command goes on where it stopped; another tokenizer, split or protocol needs another folder."
)


_MOST_WORKERS = 32
"""More would wait for the GPU."""
_MOST_ON_A_CPU = 4
"""Where each process holds networks and an object's fields."""


class _Protocol(argparse.Action):
    """Print every measure with its formula and leave, as `--help` does."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from sdf_vqvae.evaluation.run import formulas
        from sdf_vqvae.evaluation.tables import protocol_text

        print(protocol_text(formulas()))
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_options(parser, EvaluationSettings, ("shapes",), by_hand=("threshold_factor", "up"))
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True, help="folder for the results")
    add_vae_options(parser)
    add_threshold_factor(parser)
    add_up_option(parser)
    add_options(parser, EvaluationSettings, ("split",))
    parser.add_argument(
        "--max_samples", type=positive_int, metavar="N", help="N objects, drawn with --seed (default: all)"
    )
    add_options(parser, EvaluationSettings, ("samples", "seed"))
    parser.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes that work on objects, or beside a GPU compute scores (default: one a core; on a CPU up to "
        f"{_MOST_ON_A_CPU}, as an object at 512^3 takes up to 3 GiB)",
    )
    parser.add_argument(
        "--pictures",
        type=_count,
        default=3,
        metavar="N",
        help="N best, N median and N worst objects on the page (default %(default)s; 0: none)",
    )
    parser.add_argument(
        "--against", metavar="FOLDER", type=Path, help="another evaluation of the same objects, to compare with"
    )
    parser.add_argument(
        "--ceiling_from",
        metavar="FOLDER",
        type=Path,
        help="an evaluation of the same shapes by a tokenizer of the same fields, such as one with other weights: "
        "its ceiling row is taken over",
    )
    parser.add_argument("--protocol", action=_Protocol, help="print every measure with its formula, and leave")
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Evaluate, print the table and write the page."""
    from sdf_vqvae.evaluation.against import AGAINST, compare, comparison_text, read_ceilings, read_other
    from sdf_vqvae.evaluation.objects import list_shapes
    from sdf_vqvae.evaluation.page import REPORT
    from sdf_vqvae.evaluation.report import draw_report
    from sdf_vqvae.evaluation.run import as_recorded, evaluate_shapes, read_objects
    from sdf_vqvae.evaluation.tables import protocol_text, summary_text
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.files import write_json

    settings = EvaluationSettings(**given(options, EvaluationSettings))
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output {options.output}: it is a file; give a folder")
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    shapes = list_shapes(
        Path(settings.shapes),
        split=settings.split,
        max_samples=options.max_samples,
        seed=settings.seed,
        resolution=vae.config.data_resolution,
        up=settings.up,
    )
    described = as_recorded(settings, vae)
    others = None if options.against is None else read_other(options.against, described)
    ceilings = None if options.ceiling_from is None else read_ceilings(options.ceiling_from, described)
    workers = options.workers or _workers(vae.device.type)
    summary = evaluate_shapes(
        vae, shapes, options.output, settings, workers=min(workers, len(shapes)), ceilings=ceilings
    )
    draw_report(vae, shapes, options.output, summary, pictures=options.pictures, workers=workers)
    if others is not None:
        measured = read_objects(options.output)
        summary["against"] = compare([measured[shape.id] for shape in shapes], others)
        write_json(options.output / AGAINST, summary["against"], indent=1, ensure_ascii=False)
    if options.json:
        print_json(summary, indent=None)
    else:
        print(protocol_text(summary["formulas"]))
        print()
        print(summary_text(summary))
        if others is not None:
            print(f"here: {options.output}, there: {options.against}; discrete row, means, bins by the codes there")
            print(comparison_text(summary["against"]) + "\n")
        print(f"{options.output}: summary.json, objects.jsonl, {REPORT}")
    everything = len(summary["failures"]) == summary["objects"] and summary["codebook"]["tokens"] == 0
    return USER_ERROR if everything else 0


def _workers(device: str) -> int:
    """Return how many processes work: one a core that this process may use, but for its own beside a GPU."""
    from sdf_vqvae.utils.runtime import usable_cores

    if device == "cpu":
        return min(_MOST_ON_A_CPU, usable_cores())
    return min(_MOST_WORKERS, max(2, usable_cores() - 1))


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value
