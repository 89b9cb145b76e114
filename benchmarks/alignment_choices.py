"""Which choices make a language model read shapes best: one thing changed at a time, equal budget, chosen on `val`.

python benchmarks/alignment_choices.py --codes train_codes --parallel 5

Every variant is a run of train_finetune.py on the same objects for as many epochs, and an evaluation of its result on
the split `val`: validation loss of the captions with the objects' own shapes and with other objects' (nats a token),
and closed questions by likelihood. Variants run beside each other, so their seconds are not a measure of speed; their
3D tokens are. One seed each: differences between `base` and `base_again`, which differ in the seed alone, are noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from record import write_result

from sdf_vqvae.training_log import read_log
from vae_qwen3vl.align_training import LORA_FINAL, PROJECTOR_FINAL
from vae_qwen3vl.blind_controls import OWN

ROOT = Path(__file__).resolve().parents[1]
BASE: dict[str, Any] = {
    "merge": 4,
    "max_3d_tokens": 512,
    "positions": "mrope",
    "projector_layers": 2,
    "use_lora": True,
    "lora_r": 16,
    "lr": 1e-3,
    "lora_lr": 5e-4,
    "projector_share": 0.1,
    "batch_size": 64,
    "num_workers": 3,
}


def _parts(count: int) -> dict[str, int]:
    """Return the same 64 objects a step in so many batches, where one batch of longer sequences would not fit."""
    return {"batch_size": BASE["batch_size"] // count, "gradient_accumulation_steps": count}


VARIANTS: dict[str, dict[str, Any]] = {
    "tokens_2048": {"merge": 1, "max_3d_tokens": 2048, **_parts(8)},  # the slowest first
    "tokens_512": {"merge": 2, "max_3d_tokens": 512, **_parts(4)},
    "tokens_256": {"merge": 2, "max_3d_tokens": 256, **_parts(2)},
    "pooled_256": {"merge": 1, "max_3d_tokens": 256, **_parts(2)},
    "base": {},
    "base_again": {"seed": 43},
    "tokens_64": {"max_3d_tokens": 64},
    "sequential": {"positions": "sequential"},
    "sine": {"positions": "sequential", "use_3d_pos": True},
    "mrope_and_sine": {"use_3d_pos": True},
    "one_layer": {"projector_layers": 1},
    "three_layers": {"projector_layers": 3},
    "projector_only": {"use_lora": False},
    "lora_4": {"lora_r": 4},
    "lower_rate": {"lr": 3e-4, "lora_lr": 1.5e-4},
    "higher_rate": {"lr": 3e-3, "lora_lr": 1.5e-3},
    "shifts": {"shift_cells": 3},
    "captions_alone": {"caption_share": 1.0},
}
KINDS = ("category", "organ", "side", "system", "longest_side", "shape", "pieces", "part_of")


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as a command line."""
    made: list[str] = []
    for name, value in settings.items():
        made += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return made


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate one variant; return its numbers."""
    settings = BASE | {"epochs": options.epochs, "val_every": 10**9} | VARIANTS[name]
    out = options.work / name
    common = ["--data_dir", str(options.codes), "--seed", str(settings.pop("seed", 42))]
    common += ["--vl_model", options.vl_model] if options.vl_model else []
    start = time.perf_counter()
    train = [sys.executable, "-m", "vae_qwen3vl.train_finetune", *common, *flags(settings), "--output_dir", str(out)]
    train += ["--max_samples", str(options.max_samples), "--save_every", str(10**9)]
    done = subprocess.run(train, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-8:]}
    folder = Path(done.stdout.strip().splitlines()[-1])
    val = [record for record in read_log(folder / "log.jsonl") if record["kind"] == "val"][-1]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    numbers = {
        "settings": VARIANTS[name],
        "val_loss": val["val_loss"],
        "val_loss_other_shape": val["val_loss_other_shape"],
        "gap": val["val_loss_other_shape"] - val["val_loss"],
        "objects": result["objects"],
        "seconds": round(seconds, 1),
    }
    parts = ["--projector_ckpt", str(folder / PROJECTOR_FINAL)]
    parts += ["--lora_dir", str(folder / LORA_FINAL)] if (folder / LORA_FINAL).is_dir() else []
    ask = [sys.executable, "-m", "vae_qwen3vl.eval_3d_vl", *common, *parts, "--split", "val", "--batch_size", "64"]
    ask += ["--max_eval_samples", str(options.max_eval_samples), "--measures", "closed_sets"]
    done = subprocess.run([*ask, "--output_dir", str(folder / "val")], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        return numbers | {"error": done.stderr.decode().strip().splitlines()[-8:]}
    summary = json.loads((folder / "val" / "eval_summary.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (folder / "val" / "eval_results.jsonl").open(encoding="utf-8")]
    numbers["tokens_3d"] = sorted(record["tokens_3d"] for record in records)[len(records) // 2]
    closed = {kind: summary["closed"][kind] for kind in KINDS if "rows" in summary["closed"].get(kind, {})}
    numbers["top_1"] = {kind: found["rows"][OWN]["top_1"]["mean"] for kind, found in closed.items()}
    numbers["top_1_blind"] = {kind: _best_blind(found) for kind, found in closed.items()}
    return numbers


def _best_blind(found: dict[str, Any]) -> float:
    return found["rows"][found["gaps"]["top_1"]["control"]]["top_1"]["mean"]


def main() -> None:
    """Run the variants, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True, help="folder of cached codes with splits and questions")
    parser.add_argument("--vl_model", help="language model (default: the embedded one)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the objects (default %(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="runs beside each other (default %(default)s)")
    parser.add_argument("--max_samples", type=int, default=0, help="objects to train on (default: all)")
    parser.add_argument("--max_eval_samples", type=int, default=0, help="objects to evaluate (default: all)")
    parser.add_argument("--work", type=Path, default=Path("choices_out"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="folder for the result (default: benchmarks/results)")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(options.parallel) as pool:
        jobs = {name: pool.submit(run, name, options) for name in options.variants}
        for name, job in jobs.items():
            found[name] = job.result()
            print(name, json.dumps(found[name]), flush=True)
            write_result("alignment_choices", {"base": BASE, "epochs": options.epochs, "runs": found}, options.out)


if __name__ == "__main__":
    main()
