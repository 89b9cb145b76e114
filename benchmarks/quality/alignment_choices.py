r"""Which choices make a language model read shapes best: one thing changed at a time, chosen on `val`.

    python benchmarks/quality/alignment_choices.py --codes train_codes --compile_layers
    python benchmarks/quality/alignment_choices.py --codes train_codes --compile_layers --latents latents \
        --mirrored mirrored

The second needs folders of continuous_latents.py and of `vae-qwen3vl encode --mirror`.

`base` is the shipped default's model, rates, shifts and dropped cells: 3D tokens of 4^3 codes, two of the whole
shape, and the projector's own lesson before, here of five passes; without turns, mirror images, plain text and
weights of sources.
Every variant is a run of train_finetune.py that sees the objects so many times; the seconds of its steps stand
beside it, which mean little where it compiles or shares a GPU. Measured is the validation loss of the captions of
`val` with the objects' own shapes and with other objects' (nats a token), and with --closed_sets also closed
questions by likelihood, beside their best blind control. Variants run one after another in one process. One seed
each: differences between `base` and `base_again`, which differ in the seed alone, are noise.

With --latents, two more runs see the objects of that folder alone, each as much more often as they are fewer:
`few_codes` their codes, `continuous` the encoder's own vectors. With --mirrored, one more run sees mirror images too.
With --resume and else the same settings, what a stopped program finished is kept, and the training that it was in
goes on from its last checkpoint.

On several GPUs, run a part of the variants on each, under its own --name. All of a file as a table:

    python benchmarks/quality/alignment_choices.py --table benchmarks/results/quality/alignment_choices.json
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.training.run_log import read_log
from sdf_vqvae.utils.measurements import measuring_parser, read_runs, results_file, run_name, write_run
from vae_qwen3vl import eval_3d_vl, train_finetune
from vae_qwen3vl.evaluation.controls import OWN
from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.trained_parts import LORA_FINAL, PROJECTOR_FINAL
from vae_qwen3vl.training.projector_pretraining import PRETRAINING_LOG

BASE: dict[str, Any] = {
    "merge": 4,
    "max_3d_tokens": 512,
    "positions": "mrope",
    "projector_layers": 2,
    "shape_tokens": 2,
    "pretrain_epochs": 5,
    "use_lora": True,
    "lora_r": 6,
    "lora_targets": "all",
    "lora_dropout": 0.0,
    "lr": 5e-4,
    "lora_lr": 1e-3,
    "weight_decay": 0.05,
    "projector_share": 0.05,
    "shift_cells": 3,
    "drop_cells": 0.3,
    "contrastive_weight": 0.1,
    "batch_size": 32,
    "num_workers": 3,
}


def _parts(count: int) -> dict[str, int]:
    """Return as many objects a step in so many batches, where one batch of longer sequences would not fit."""
    return {"batch_size": BASE["batch_size"] // count, "gradient_accumulation_steps": count}


VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "base_again": {"seed": 43},
    "tokens_64": {"max_3d_tokens": 64},
    "tokens_256": {"merge": 2, "max_3d_tokens": 256},
    "tokens_512": {"merge": 2, "max_3d_tokens": 512},
    "tokens_2048": {"merge": 1, "max_3d_tokens": 2048, **_parts(2)},
    "pooled_256": {"merge": 1, "max_3d_tokens": 256},
    "sequential": {"positions": "sequential"},
    "sine": {"positions": "sequential", "use_3d_pos": True},
    "mrope_and_sine": {"use_3d_pos": True},
    "one_layer": {"projector_layers": 1},
    "three_layers": {"projector_layers": 3},
    "parts_alone": {"shape_tokens": 0},
    "projector_only": {"use_lora": False},
    "no_lesson": {"pretrain_epochs": 0},
    "no_contrast": {"contrastive_weight": 0.0},
    "contrast_1": {"contrastive_weight": 1.0},
    "no_shifts": {"shift_cells": 0},
    "captions_alone": {"caption_share": 1.0},
    "no_drops": {"drop_cells": 0.0},
    "turned": {"turn_degrees": 8.0},
    "batch_256": {"batch_size": 256},
    "lora_attention": {"lora_targets": "attention", "lora_r": 16},
}
_INTERRUPTED = 130
"""Exit code of a program that was stopped by Ctrl-C."""
ASKED = ("codes", "latents", "mirrored", "vl_model", "epochs", "max_samples", "closed_sets", "max_eval_samples")
"""Options that runs of one result share."""
KINDS = ("category", "organ", "side", "system", "longest_side", "shape", "pieces", "part_of")


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as a command line."""
    words: list[str] = []
    for name, value in settings.items():
        words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return words


def printed(program: Any, arguments: list[str]) -> str:
    """Run a program's `main` and return what it printed. Raises a RuntimeError where it fails; it says why itself."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        code = program.main(arguments)
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise RuntimeError(f"{program.__name__} ended with {code}")
    return told.getvalue()


def train(name: str, codes: Path, changed: dict[str, Any], options: argparse.Namespace) -> tuple[Path, list[str]]:
    """Train a variant; return its folder, and the flags that its evaluation shares."""
    settings = BASE | {"epochs": options.epochs, "val_every": 10**9, "save_every": 100, "resume": options.resume}
    settings |= {"compile_layers": options.compile_layers, "max_samples": options.max_samples} | changed
    common = ["--data_dir", str(codes), "--seed", str(settings.pop("seed", 42))]
    common += ["--vl_model", options.vl_model] if options.vl_model else []
    told = printed(train_finetune, [*common, *flags(settings), "--output_dir", str(options.work / name)])
    return Path(told.strip().splitlines()[-1]), common


def run(name: str, codes: Path, changed: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one variant; return its numbers."""
    start = time.perf_counter()
    folder, common = train(name, codes, changed, options)
    seconds = time.perf_counter() - start
    log = read_log(folder / "log.jsonl")
    val = [record for record in log if record["kind"] == "val"][-1]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    numbers = {
        "settings": changed,
        "steps": result["steps"],
        "objects": result["objects"],
        "seconds": result["seconds"],
        "seconds_in_all": round(seconds, 1),
        "val_loss": val["val_loss"],
        "val_loss_other_shape": val["val_loss_other_shape"],
        "gap": val["val_loss_other_shape"] - val["val_loss"],
    }
    lesson = folder / PRETRAINING_LOG
    if lesson.is_file():
        numbers["pretraining"] = json.loads(lesson.read_text(encoding="utf-8").splitlines()[-1])
    return numbers | (closed_sets(folder, common, options) if options.closed_sets else {})


def closed_sets(folder: Path, common: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Ask a run's model closed questions about the objects of `val`."""
    parts = ["--projector_ckpt", str(folder / PROJECTOR_FINAL)]
    parts += ["--lora_dir", str(folder / LORA_FINAL)] if (folder / LORA_FINAL).is_dir() else []
    ask = [*common, *parts, "--split", "val", "--batch_size", "64", "--measures", "closed_sets"]
    ask += ["--max_eval_samples", str(options.max_eval_samples), "--max_new_tokens", "1"]
    printed(eval_3d_vl, [*ask, "--output_dir", str(folder / "val")])
    summary = json.loads((folder / "val" / "eval_summary.json").read_text(encoding="utf-8"))
    closed = {kind: summary["closed"][kind] for kind in KINDS if "rows" in summary["closed"].get(kind, {})}
    return {
        "top_1": {kind: measured["rows"][OWN]["top_1"]["mean"] for kind, measured in closed.items()},
        "top_1_blind": {kind: _best_blind(measured) for kind, measured in closed.items()},
    }


def count_to_train(codes: CodeFolder, most: int) -> int:
    """Return how many objects of a folder of codes are to train on, at most `most` (0: all)."""
    count = len({row[ID_COLUMN] for row in codes.table() if row["split"] == "train"})
    return min(count, most or count)


def tokens_of(codes: CodeFolder, changed: dict[str, Any]) -> int:
    """Return the median number of 3D tokens of the objects of `val`."""
    settings = BASE | changed
    whole = settings["shape_tokens"]
    projector = Projector3D(codes.codebook.shape[1], 8, merge=settings["merge"], shape_tokens=whole)
    counts = []
    for row in codes.table():
        if row.get("split") == "val" and row[ID_COLUMN] in codes:
            indices, coords = codes[row[ID_COLUMN]]
            tokens = projector.project(
                codes.codebook[indices.long()], F.pad(coords.int(), (1, 0)), settings["max_3d_tokens"]
            )
            counts.append(len(tokens.coords))
    return sorted(counts)[len(counts) // 2]


def _best_blind(question: dict[str, Any]) -> float:
    return question["rows"][question["gaps"]["top_1"]["control"]]["top_1"]["mean"]


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the variants of results as a table in Markdown; behind each name stands the result's place."""
    lines = [
        "| run | changed | 3D tokens | steps | objects | seconds | loss, own shape | loss, another's | difference |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, result in enumerate(results, 1):
        for name, run in result["runs"].items():
            changed = ", ".join(f"{key} {value}" for key, value in run.get("settings", {}).items() if key != "seed")
            if "error" in run:
                lines.append(f"| {name} ({number}) | {run['error']} | | | | | | | |")
                continue
            losses = (run["val_loss"], run["val_loss_other_shape"], run["gap"])
            measured = " | ".join(f"{loss:.3f}" for loss in losses)
            counts = f"{run['tokens_3d']} | {run['steps']} | {run['objects']:,} | {run.get('seconds', '')}"
            lines.append(f"| {name} ({number}) | {changed} | {counts} | {measured} |")
    return "\n".join(lines)


def finished(options: argparse.Namespace, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the variants that ended well before. Raises a ValueError where they are of other settings."""
    file, name = results_file(options), run_name(options)
    result = read_runs(file).get(name)
    if result is None:
        return {}
    if {key: result.get(key) for key in ("base", *ASKED)} != {"base": BASE, **asked}:
        raise ValueError(f"{file} holds variants of other settings as {name!r}: give another --name")
    return {variant: run for variant, run in result["runs"].items() if "error" not in run}


def main() -> None:
    """Run the variants, print their numbers and write the result after each."""
    parser = measuring_parser(__doc__, __file__)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--codes", type=Path, help="folder of cached codes with splits and questions")
    task.add_argument("--table", type=Path, metavar="FILE", help="print a file of results as a table in Markdown")
    parser.add_argument("--latents", type=Path, help="folder of continuous_latents.py")
    parser.add_argument("--mirrored", type=Path, help="folder of cached codes of the objects' mirror images")
    parser.add_argument("--vl_model", help="language model (default: the embedded one)")
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=VARIANTS,
        default=list(VARIANTS),
        help="default: all; without a name: none of them",
    )
    parser.add_argument("--epochs", type=int, default=2, help="passes over all objects (default %(default)s)")
    parser.add_argument("--compile_layers", action="store_true", help="as in training; worth it for many epochs")
    parser.add_argument("--max_samples", type=int, default=0, help="objects to train on (default: all)")
    parser.add_argument("--closed_sets", action="store_true", help="ask closed questions too")
    parser.add_argument("--max_eval_samples", type=int, default=0, help="objects to evaluate (default: all)")
    parser.add_argument("--work", type=Path, default=Path("choices_out"), help="folder of the runs")
    parser.add_argument("--resume", action="store_true", help="go on where a stopped program was")
    options = parser.parse_args()
    if options.table:
        print(table(list(read_runs(options.table).values())))
        return
    opened = functools.cache(CodeFolder)
    jobs = {name: (options.codes, VARIANTS[name]) for name in options.variants}
    if options.latents is not None:
        codes, latents = options.latents / "codes", options.latents / "latents"
        few, usual = (count_to_train(opened(folder), options.max_samples) for folder in (codes, options.codes))
        more = {"epochs": round(options.epochs * usual / few)}
        jobs |= {"few_codes": (codes, more), "continuous": (latents, more)}
    if options.mirrored is not None:
        jobs["mirrored"] = (options.codes, {"mirrored_dir": str(options.mirrored)})
    asked = {name: value if isinstance(value := getattr(options, name), int) else str(value) for name in ASKED}
    runs = finished(options, asked) if options.resume else {}
    for name, (codes, changed) in jobs.items():
        if name in runs:
            continue
        try:
            tokens = tokens_of(opened(codes), changed)
            runs[name] = {"tokens_3d": tokens, **run(name, codes, changed, options)}
        except (RuntimeError, OSError, ValueError) as error:
            runs[name] = {"error": str(error)[:500]}
        print(name, json.dumps(runs[name]), flush=True)
        write_run(options, {"base": BASE, **asked, "runs": runs})


if __name__ == "__main__":
    main()
