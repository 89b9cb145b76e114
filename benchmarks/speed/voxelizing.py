"""How many meshes a second become signed sparse voxels: a pack, from decoded arrays to voxels on the device.

python benchmarks/speed/voxelizing.py --pack ../shared/data/shapes --resolutions 256,512 --workers 8 --batch 16

On a GPU, worker processes normalize the meshes (weld, center, scale) and one process voxelizes them, several at a
time; on a CPU every worker does both, one mesh at a time. All meshes are decoded before the clock starts; nothing is
written to disk. A mesh that fails counts as done and is listed with its reason.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.geometry.mesh import NormalizedMesh, normalize_mesh
from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField, voxelize_batch
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device

BYTES_A_VOXEL = 3 * 4 + 4
Row = tuple[str, int, str, str]  # id, voxels, sign method, reason of failure


def chosen(options: argparse.Namespace, pack: MeshPack) -> list[PackEntry]:
    """Return the meshes to voxelize: all, or a fixed sample; in a mixed order, so that workers share evenly."""
    entries = [e for e in pack.entries if e.record["faces"] <= options.max_faces]
    order = np.random.default_rng(0).permutation(len(entries))
    return [entries[i] for i in order[: options.count or None]]


def decode(options: argparse.Namespace, number: int) -> list[tuple[str, Any]]:
    """Return one worker's share of the meshes."""
    pack = MeshPack(options.pack)
    return [(e.id, pack.mesh(e)) for e in chosen(options, pack)[number :: options.workers]]


def normalize_share(options: argparse.Namespace, number: int, ready: Barrier, results: Queue[Any]) -> None:
    """Worker for a GPU: normalize one share and hand it on in batches, then None."""
    torch.set_num_threads(1)
    meshes = decode(options, number)
    ready.wait()
    part: list[tuple[str, tuple[np.ndarray, np.ndarray, bool] | str]] = []
    for name, mesh in meshes:
        try:
            normalized = normalize_mesh(mesh)
            part.append((name, (normalized.vertices.numpy(), normalized.faces.numpy(), normalized.watertight)))
        except ValueError as error:
            part.append((name, str(error)))
        if len(part) == options.batch:
            results.put(part)
            part = []
    results.put(part)
    results.put(None)


def voxelize_share(
    options: argparse.Namespace, number: int, resolution: int, ready: Barrier, results: Queue[Any]
) -> None:
    """Worker for a CPU: normalize and voxelize one share and hand on what came of it, then None."""
    torch.set_num_threads(options.threads)
    meshes = decode(options, number)
    warm = normalize_mesh(meshes[0][1])
    fields([warm], torch.device("cpu"), resolution)  # compiles
    ready.wait()
    for name, mesh in meshes:
        try:
            results.put([row(name, fields([normalize_mesh(mesh)], torch.device("cpu"), resolution)[0])])
        except ValueError as error:
            results.put([(name, 0, "", str(error))])
    results.put(None)


def fields(meshes: list[NormalizedMesh], device: torch.device, resolution: int) -> list[VoxelField]:
    """Voxelize normalized meshes on a device."""
    parts = [(m.vertices, m.faces, m.watertight) for m in meshes]
    return voxelize_batch(parts, resolution=resolution, device=device)


def row(name: str, field: VoxelField) -> Row:
    """Return what is recorded of a mesh that succeeded."""
    return name, len(field.index), field.sign_method, ""


def from_workers(results: Queue[Any], workers: int) -> Iterator[Any]:
    """Yield what the workers hand on until all have finished."""
    while workers:
        handed = results.get(timeout=600)
        if handed is None:
            workers -= 1
        elif handed:
            yield handed


def on_gpu(part: list[tuple[str, Any]], device: torch.device, resolution: int) -> list[Row]:
    """Voxelize a batch; where one of it fails, one by one."""
    usable = [(name, arrays) for name, arrays in part if not isinstance(arrays, str)]
    rows: list[Row] = [(name, 0, "", why) for name, why in part if isinstance(why, str)]
    tensors = [(torch.from_numpy(v), torch.from_numpy(f), closed) for _, (v, f, closed) in usable]
    try:
        voxelized = voxelize_batch(tensors, resolution=resolution, device=device)
        return rows + [row(name, field) for (name, _), field in zip(usable, voxelized, strict=True)]
    except ValueError:
        for (name, _), (vertices, faces, closed) in zip(usable, tensors, strict=True):
            try:
                alone = voxelize_batch([(vertices, faces, closed)], resolution=resolution, device=device)[0]
                rows.append(row(name, alone))
            except ValueError as error:
                rows.append((name, 0, "", str(error)))
    return rows


def measure(options: argparse.Namespace, resolution: int, device: torch.device) -> dict[str, Any]:
    """Run the workers at one resolution and sum up."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(options.workers + 1), context.Queue(maxsize=4 * options.workers)
    gpu = device.type == "cuda"
    workers = [
        context.Process(
            target=normalize_share if gpu else voxelize_share,
            args=(options, i, ready, results) if gpu else (options, i, resolution, ready, results),
        )
        for i in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    if gpu:
        pack = MeshPack(options.pack)
        warm = [normalize_mesh(pack.mesh(e)) for e in chosen(options, pack)[: 2 * options.batch]]
        fields(warm, device, resolution)  # compiles
        torch.cuda.synchronize(device)
    ready.wait()
    start = time.perf_counter()
    rows: list[Row] = []
    for part in from_workers(results, options.workers):
        rows += on_gpu(part, device, resolution) if gpu else part
    if gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    for worker in workers:
        worker.join()
    voxels = sum(r[1] for r in rows)
    return {
        "meshes": len(rows),
        "seconds": round(seconds, 2),
        "meshes_per_second": round(len(rows) / seconds, 1),
        "voxels_a_mesh": round(voxels / max(1, len(rows))),
        "gigabytes_of_voxels": round(voxels * BYTES_A_VOXEL / 1e9, 2),
        "sign_methods": dict(Counter(r[2] for r in rows if r[2])),
        "failures": {r[0]: r[3] for r in rows if r[3]},
    }


def main() -> None:
    """Measure every resolution and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--resolutions", default="256,512", help="grid sides, with commas between")
    parser.add_argument("--count", type=int, default=0, help="a fixed sample of so many meshes (default: all)")
    parser.add_argument("--max_faces", type=int, default=20_000, help="leave out meshes with more faces")
    parser.add_argument("--workers", type=int, default=2, help="processes that normalize, and on a CPU voxelize")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads of each process on a CPU")
    parser.add_argument("--batch", type=int, default=16, help="meshes at a time on a GPU")
    parser.add_argument("--device", help="default: CUDA where present")
    options = parser.parse_args()
    device = resolve_device(options.device)
    numbers = {}
    for resolution in map(int, options.resolutions.split(",")):
        numbers[str(resolution)] = measure(options, resolution, device)
        print(resolution, {k: v for k, v in numbers[str(resolution)].items() if k != "failures"}, flush=True)
    print(write_run(options, {"device": device.type, "resolutions": numbers}))


if __name__ == "__main__":
    main()
