"""What a surface keeps of itself in the original system's unsigned fields, by the band that they were made with.

    python benchmarks/parity/original_fields.py --pack ../shared/data/shapes --count 20

For meshes of a split, at R = 512: the surface of our signed field (the ceiling), and the surface that signs by flood
give of the original's fields with `threshold_factor` 4, 0.5, 0.1 and 0.01, without any network. F-score at 0.01 and
Chamfer-L1 against the mesh, longest side 1, 30,000 points a surface; a failure counts as the worst case.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import trimesh
from tqdm import tqdm

from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.fields.conversion import field_in_world
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.metrics.scores import CUBE_DIAGONAL, compare_meshes
from sdf_vqvae.geometry.unsigned import sign_by_flood
from sdf_vqvae.utils.measurements import measuring_parser, write_run

THRESHOLDS = (4.0, 0.5, 0.1, 0.01)


def main() -> None:
    """Measure, print a table and write `old_fields.json`."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=20, help="objects, drawn with seed 0")
    parser.add_argument("--resolution", type=int, default=512, metavar="R")
    parser.add_argument("--max_faces", type=int, default=20_000)
    options = parser.parse_args()
    logging.getLogger("sdf_vqvae").setLevel(logging.ERROR)
    pack = MeshPack(options.pack)
    entries = [e for e in pack.select(options.split) if e.record["faces"] <= options.max_faces]
    chosen = np.random.default_rng(0).permutation(len(entries))[: options.count]
    rows: dict[str, list[tuple[float, float]]] = {}
    seconds: dict[str, list[float]] = {}
    methods: Counter[str] = Counter()
    for number in tqdm(chosen, unit="mesh"):
        for name, score, cost, method in measure(pack.mesh(entries[number]), options.resolution):
            rows.setdefault(name, []).append(score)
            seconds.setdefault(name, []).append(cost)
            methods[f"{name}: {method}"] += 1
    numbers = {
        name: {
            "chamfer_l1": float(np.mean([s[0] for s in scores])),
            "fscore@0.01": float(np.mean([s[1] for s in scores])),
            "median fscore@0.01": float(np.median([s[1] for s in scores])),
            "seconds to the surface, median": float(np.median(seconds[name])),
        }
        for name, scores in rows.items()
    }
    print(f"{'field':<24} {'Chamfer-L1':>10} {'F@0.01':>8} {'median':>8} {'seconds':>8}")
    for name, row in numbers.items():
        chamfer, mean, median, cost = row.values()
        print(f"{name:<24} {chamfer:>10.4f} {mean:>8.3f} {median:>8.3f} {cost:>8.2f}")
    write_run(options, {"objects": len(chosen), "rows": numbers, "methods": dict(methods)})


def measure(mesh: trimesh.Trimesh, resolution: int) -> list[tuple[str, tuple[float, float], float, str]]:
    """Return name, (Chamfer-L1, F-score), seconds and how signs were found for each field of a mesh."""
    normalized = normalize_mesh(mesh)
    source = trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False)
    signed = FieldDescription(kind="sdf", unit="band", band=3.0, sampling="center", resolution=resolution)
    old = FieldDescription(kind="udf", unit="world", band=None, sampling="corner", resolution=resolution)
    ours = field_in_world(normalized.vertices, normalized.faces, signed, band=3.0, watertight=normalized.watertight)
    widest = field_in_world(normalized.vertices, normalized.faces, old, band=max(THRESHOLDS))
    fields: dict[str, SparseSDF | None] = {"ours, signed (ceiling)": ours}
    for threshold in THRESHOLDS:
        within = widest.sdf < threshold / resolution
        narrow = None
        if within.any():
            narrow = dataclasses.replace(widest, sdf=widest.sdf[within], index=widest.index[within])
        fields[f"theirs, threshold {threshold:g}"] = narrow
    results = []
    for name, field in fields.items():
        start = time.perf_counter()
        method, score, seconds = "no surface", (CUBE_DIAGONAL, 0.0), 0.0
        with contextlib.suppress(ValueError):
            if field is None:
                raise ValueError("no voxel is within the threshold")
            surface = extract_surface(field.sdf, field.index, field.field)
            seconds = time.perf_counter() - start
            compared = compare_meshes(surface, source, samples=30_000)
            score = (compared.chamfer_l1, compared.fscore[0.01])
            method = field.sign_method
            if field.field.kind == "udf":
                by_flood = sign_by_flood(field.sdf * field.field.voxels_per_unit, field.index)
                method = f"{by_flood.method}, grid coarser by {by_flood.factor}"
        results.append((name, score, seconds, method))
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
