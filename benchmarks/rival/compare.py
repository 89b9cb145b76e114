"""Ours and the rival's design on the same objects, each trained for the same time on the same data.

    vae-qwen3vl evaluate PACK -o RUN --split test --vae_config OURS/config.json --vae_ckpt OURS/model.safetensors
    python benchmarks/rival/compare.py --ours RUN --log OURS/log.jsonl

The rival's scores are those of `rival_dense_occupancy.py`, in its kindest reading. Means are over the objects that
both have.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from meshes import table_of
from rebuilding import OBJECTS, print_table

from sdf_vqvae.evaluation.rebuild import ROWS
from sdf_vqvae.evaluation.run import read_objects
from sdf_vqvae.training.run_log import read_log
from sdf_vqvae.utils.measurements import measuring_parser, read_runs, write_run
from sdf_vqvae.utils.strict_files import parse_json

READING = "middle"


def main() -> None:
    """Compare and write the table."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--ours", type=Path, required=True, help="folder that `vae-qwen3vl evaluate` wrote")
    parser.add_argument("--log", type=Path, required=True, help="log.jsonl of our training run")
    parser.add_argument("--rival", default="dense 64^3", help="name of the rival's run (default: %(default)s)")
    options = parser.parse_args()
    rival = read_runs(options.out / "dense_occupancy.json")[options.rival]
    scored = (options.out / OBJECTS.format(options.rival)).read_bytes().splitlines()
    theirs = {line["id"]: line for line in map(parse_json, scored)}
    ours = read_objects(options.ours)
    shared = sorted(theirs.keys() & ours.keys())
    if not shared:
        raise SystemExit(f"{options.ours} and the rival's scores have no object in common")
    table = table_of(
        [
            {
                "watertight": theirs[name]["watertight"],
                **{f"rival {row}": theirs[name][f"{row} {READING}"] for row in ROWS},
                **{f"ours {row}": ours[name][row] for row in ROWS},
            }
            for name in shared
        ]
    )
    print_table(table)
    log = read_log(options.log)
    first = next(record for record in log if record["kind"] == "train")
    clock = {
        "rival": {
            "preparing_seconds": rival["training_grids"]["seconds"],
            "training_seconds": rival["training"]["seconds"],
            "steps": rival["training"]["steps"],
        },
        "ours": {
            "seconds_before_first_step": round(first["seconds"], 1),
            "seconds_in_all": round(log[-1]["seconds"], 1),
            "steps": log[-1]["step"],
        },
    }
    compared = {
        "objects": len(shared),
        "reading": READING,
        "clock": clock,
        "codes_median": statistics.median(ours[name]["codes"] for name in shared),
        "table": table,
    }
    print(write_run(options, compared, f"{len(shared)} objects"))


if __name__ == "__main__":
    main()
