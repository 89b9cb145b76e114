"""How many objects a second become codes, with the voxelizer feeding the tokenizer.

python benchmarks/speed/encoding.py --pack ../shared/data/shapes --count 1000

Meshes of a pack go through what `vae-qwen3vl encode` does (Draco decoding, normalization, voxelizing, encoding) in
one process, several objects at a time. The first objects, which compile kernels, are not timed. Beside it, fields
that are there already are encoded alone: what of the time is the tokenizer's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdf_vqvae.codes.encoding import EncodeWorker, objects_of
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.data.objects import Place
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device


def wait(device: torch.device) -> float:
    """Return the time when all work on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(
    worker: EncodeWorker, jobs: list[tuple[str, Place]], warm: list[tuple[str, Place]], at_a_time: int
) -> dict[str, Any]:
    """Encode objects from their meshes, and once more from their fields alone."""
    device = worker.vae.device
    groups = [jobs[i : i + at_a_time] for i in range(0, len(jobs), at_a_time)]
    for i in range(0, len(warm), at_a_time):
        worker(warm[i : i + at_a_time])
    start, spent = wait(device), time.process_time()
    results = [result for group in groups for result in worker(group)]
    seconds, spent = wait(device) - start, time.process_time() - spent
    codes = sum(len(values) for _, values, *_ in results if values is not None)
    alone, voxels, encoded = 0.0, 0, 0
    for group in groups:
        names, places = zip(*group, strict=True)
        fields = [(n, f) for n, f in zip(names, worker.fields_of(places), strict=True) if isinstance(f, SparseSDF)]
        start = wait(device)
        worker.encode_fields(fields)
        alone += wait(device) - start
        voxels += sum(len(field.sdf) for _, field in fields)
        encoded += len(fields)
    return {
        "objects_at_a_time": at_a_time,
        "objects": len(results),
        "failed": {name: error for name, *_, error in results if error},
        "seconds": round(seconds, 2),
        "processor_seconds_an_object": round(spent / len(results), 3),
        "objects_per_second": round(len(results) / seconds, 1),
        "codes_per_second": round(codes / seconds),
        "tokenizer_alone_objects_per_second": round(encoded / alone, 1),
        "voxels_an_object": round(voxels / max(1, encoded)),
        "codes_an_object": round(codes / max(1, encoded)),
    }


def main() -> None:
    """Measure several group sizes and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", help="only the meshes of this one")
    parser.add_argument("--count", type=int, default=1000, help="a fixed sample of so many meshes")
    parser.add_argument("--warm", type=int, default=96, help="meshes before the clock starts")
    parser.add_argument("--objects_at_a_time", default="1,16", help="group sizes, with commas between")
    parser.add_argument("--batch_voxels", type=int, default=2_000_000)
    parser.add_argument("--device", help="default: CUDA where present")
    options = parser.parse_args()
    device = str(resolve_device(options.device))
    settings = EncodeSettings(
        source=options.pack, output=options.pack, split=options.split, batch_voxels=options.batch_voxels
    )
    worker = EncodeWorker(device, settings=settings)
    jobs = list(objects_of(settings, worker.vae).places.items())
    order = np.random.default_rng(0).permutation(len(jobs))
    warm = [jobs[i] for i in order[: options.warm]]
    timed = [jobs[i] for i in order[options.warm : options.warm + options.count]]
    rows = []
    for size in map(int, options.objects_at_a_time.split(",")):
        rows.append(measure(worker, timed, warm, size))
        print({k: v for k, v in rows[-1].items() if k != "failed"}, flush=True)
    print(write_run(options, {"device": device, "rows": rows}))


if __name__ == "__main__":
    main()
