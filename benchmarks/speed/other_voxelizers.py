"""The voxelizer beside other libraries on a CPU: signed distances of the same voxels, in the same run.

python benchmarks/speed/other_voxelizers.py --pack ../shared/data/shapes --count 26 --resolution 256

Each mesh is voxelized by ours first (which also finds the voxels); then every other library is given exactly those
voxels and asked for signed distances: point_cloud_utils and libigl, both with fast winding numbers and all cores.
"Wrong sign" is the share of voxels, a tenth of a voxel or more off the surface, whose sign is not that of the exact
winding number, of a random part of the voxels; meshes that ours gives a shell are left out of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.geometry.mesh import NormalizedMesh, normalize_mesh
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize
from sdf_vqvae.utils.measurements import measuring_parser, write_run

CHECKED = 2000


def one_of_each_source(pack: MeshPack, count: int, split: str) -> list[PackEntry]:
    """Return a fixed sample that goes round the sources."""
    sources: dict[str, list[PackEntry]] = {}
    for entry in pack.select(split):
        sources.setdefault(entry.source, []).append(entry)
    random = np.random.default_rng(0)
    shuffled = [[entries[i] for i in random.permutation(len(entries))] for _, entries in sorted(sources.items())]
    rounds = [entries[i] for i in range(max(map(len, shuffled))) for entries in shuffled if i < len(entries)]
    return rounds[:count]


def with_point_cloud_utils(points: np.ndarray, mesh: NormalizedMesh) -> np.ndarray:
    """Signed distances by point_cloud_utils."""
    import point_cloud_utils

    return point_cloud_utils.signed_distance_to_mesh(points, mesh.vertices.numpy(), mesh.faces.numpy())[0]


def with_libigl(points: np.ndarray, mesh: NormalizedMesh) -> np.ndarray:
    """Signed distances by libigl."""
    import igl

    kind = igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER
    return igl.signed_distance(points, mesh.vertices.numpy(), mesh.faces.numpy(), sign_type=kind)[0]


OTHERS: dict[str, Callable[[np.ndarray, NormalizedMesh], np.ndarray]] = {
    "point_cloud_utils": with_point_cloud_utils,
    "libigl": with_libigl,
}


def wrong(inside: np.ndarray, rows: np.ndarray, distance: np.ndarray, winding: np.ndarray) -> float:
    """Return the share of checked voxels off the surface whose sign is not the exact winding number's."""
    sure = (distance[rows] > 0.1) & (np.abs(winding - 0.5) > 1e-3)
    return float((inside[rows] != (winding > 0.5))[sure].mean()) if sure.any() else 0.0


def main() -> None:
    """Time all of them on a sample of meshes and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=26)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--others", default=",".join(OTHERS), help="which libraries, with commas between")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import igl

    libraries = options.others.split(",")
    pack, side = MeshPack(options.pack), options.resolution
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate([None, *one_of_each_source(pack, options.count, options.split)]):
        mesh = normalize_mesh(pack.mesh(entry or pack.entries[0]))
        start = time.perf_counter()
        field = voxelize(mesh.vertices, mesh.faces, resolution=side, watertight=mesh.watertight)
        seconds = {"ours": time.perf_counter() - start}
        points = (field.index.numpy().astype(np.float64) + 0.5) / side - 0.5
        checked = random.permutation(len(points))[:CHECKED]
        winding = igl.winding_number(mesh.vertices.numpy(), mesh.faces.numpy(), points[checked])
        distance = np.abs(field.distance.numpy()) * 3
        inside = {"ours": field.distance.numpy() < 0}
        for name in libraries:
            start = time.perf_counter()
            signed = OTHERS[name](points, mesh)
            seconds[name] = time.perf_counter() - start
            inside[name] = signed < 0
        if number == 0:  # the first is compiled in
            continue
        shell = field.sign_method != "winding"
        rows.append(
            {
                "id": entry.id,
                "faces": len(mesh.faces),
                "voxels": len(points),
                "watertight": mesh.watertight,
                "sign_method": field.sign_method,
                "seconds": {k: round(v, 4) for k, v in seconds.items()},
                "wrong_sign": None if shell else {k: wrong(v, checked, distance, winding) for k, v in inside.items()},
            }
        )
        print(entry.id, len(mesh.faces), len(points), {k: round(v, 3) for k, v in seconds.items()}, flush=True)
    names = ["ours", *libraries]
    totals = {name: sum(r["seconds"][name] for r in rows) for name in names}
    ratios = {name: [r["seconds"][name] / r["seconds"]["ours"] for r in rows] for name in names}
    signs = [r["wrong_sign"] for r in rows if r["wrong_sign"]]
    summary = {
        name: {
            "seconds": round(totals[name], 2),
            "times_ours": round(totals[name] / totals["ours"], 2),
            "median_times_ours": round(float(np.median(ratios[name])), 2),
            "least_times_ours": round(min(ratios[name]), 2),
            "wrong_sign": round(float(np.mean([s[name] for s in signs])), 6),
        }
        for name in names
    }
    for name, numbers in summary.items():
        print(f"{name:20s} {numbers}")
    result = {"threads": options.threads, "resolution": side, "meshes": len(rows), "summary": summary, "rows": rows}
    print(write_run(options, result, "cpu"))


if __name__ == "__main__":
    main()
