"""Ours and the rival's design on the same objects, each trained for the same time on the same data.

    vae-qwen3vl evaluate PACK -o RUN --split test --vae_config OURS/config.json --vae_ckpt OURS/model.safetensors
    python benchmarks/rival_compare.py --ours RUN --log OURS/log.jsonl

The rival's scores are those of `rival_dense_occupancy.py`. Means are over the objects that both have; a measure that
one of them lacks for an object (IoU of solids that are not watertight) is left out for that object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from record import RESULTS, write_result

MEASURES = (
    "chamfer_l1",
    "fscore@0.001",
    "fscore@0.002",
    "fscore@0.005",
    "fscore@0.01",
    "normal_consistency",
    "surface_iou",
    "volume_iou",
    "voxel_iou",
)
ROWS = {
    "rival": ("ceiling middle", "continuous middle", "discrete middle"),
    "ours": ("ceiling", "continuous", "discrete"),
}


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one on each line."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def means(objects: list[dict[str, Any]], row: str) -> dict[str, float]:
    """Return the means of a row over the objects that have the measure."""
    found = {}
    for name in MEASURES:
        values = [one[row][name] for one in objects if one[row].get(name) is not None]
        found[name] = statistics.fmean(values)
    return found


def main() -> None:
    """Compare and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path, required=True, help="folder that `vae-qwen3vl evaluate` wrote")
    parser.add_argument("--log", type=Path, required=True, help="log.jsonl of our training run")
    parser.add_argument("--rival", type=Path, default=RESULTS / "rival_dense_occupancy.json")
    parser.add_argument("--out", type=Path, help="folder for the result (default: benchmarks/results)")
    options = parser.parse_args()
    rival = json.loads(options.rival.read_text(encoding="utf-8"))
    sides = {
        "rival": {one["id"]: one for one in rival["objects"]},
        "ours": {one["id"]: one for one in json_lines(options.ours / "objects.jsonl")},
    }
    shared = sorted(sides["rival"].keys() & sides["ours"].keys())
    if not shared:
        raise SystemExit(f"{options.ours} and {options.rival} have no object in common")
    table = {
        f"{side} {row}": means([sides[side][name] for name in shared], row) for side in sides for row in ROWS[side]
    }
    log = json_lines(options.log)
    steps = [record for record in log if record["kind"] == "train"]
    clock = {
        "rival": {
            "preparing_seconds": rival["training_grids"]["seconds"],
            "training_seconds": rival["training"]["seconds"],
            "steps": rival["training"]["steps"],
        },
        "ours": {
            "seconds_before_first_step": round(steps[0]["seconds"], 1),
            "seconds_in_all": round(log[-1]["seconds"], 1),
            "steps": log[-1]["step"],
            "codes_median": statistics.median(sides["ours"][name]["codes"] for name in shared),
        },
    }
    for name, row in table.items():
        print(f"{name:20}" + "".join(f"{row[measure]:9.4f}" for measure in MEASURES))
    print(write_result("rival_compare", {"objects": len(shared), "clock": clock, "table": table}, options.out))


if __name__ == "__main__":
    main()
