"""What an evaluation costs for each object: seconds of a core, of the networks' process and of scores.

    python benchmarks/speed/evaluating.py SHAPES --split val --objects 12 --name 256

Everything runs in one process with one thread, so that a second of a core is one of work. Beside a GPU scores run in
other processes: an evaluation then takes the seconds on the clock of `rebuild` and of handing over, for one object
after another, or those of `score` divided by the processes, whichever is more.
"""

from __future__ import annotations

import pickle
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from tqdm import tqdm

from sdf_vqvae.evaluation.objects import list_shapes
from sdf_vqvae.evaluation.rebuild import rebuild, score_rebuilt
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.measurements import measuring_parser, write_run

T = TypeVar("T")


def timed(row: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    """Run `work` and note its seconds of a core and on the clock."""
    core, clock = time.process_time(), time.perf_counter()
    result = work()
    row[f"{stage}_core"] = round(time.process_time() - core, 3)
    row[f"{stage}_clock"] = round(time.perf_counter() - clock, 3)
    return result


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("shapes", help="a pack, a folder of meshes, or a mesh file")
    parser.add_argument("--split", help="of a pack")
    parser.add_argument("--objects", type=int, default=12, help="drawn at random")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--vae_config")
    parser.add_argument("--vae_ckpt")
    parser.add_argument("--device")
    options = parser.parse_args()
    torch.set_num_threads(1)
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    side = vae.config.data_resolution
    shapes = list_shapes(options.shapes, split=options.split, max_samples=options.objects, resolution=side)
    for shape in shapes[:2]:  # compiles
        score_rebuilt(rebuild(vae, shape), samples=1000)
    rows: list[dict[str, float]] = []
    records = []
    for shape in tqdm(shapes, disable=None):
        row: dict[str, float] = {}
        made = timed(row, "rebuild", lambda shape=shape: rebuild(vae, shape))
        row["megabytes"] = round(len(timed(row, "hand_over", lambda made=made: pickle.dumps(made))) / 1e6, 1)
        record = timed(row, "score", lambda made=made: score_rebuilt(made, samples=options.samples))
        rows.append({"voxels": record.get("voxels", 0), "codes": record["codes"], **row})
        records.append({"id": shape.id, **rows[-1]})
    means = {name: round(statistics.fmean(row[name] for row in rows), 3) for name in rows[0]}
    print(means)
    print(write_run(options, {"side": side, "device": vae.device.type, "means": means, "objects": records}))


if __name__ == "__main__":
    main()
