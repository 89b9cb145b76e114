"""The voxelizer against exact references, and the surface that its fields hold against the mesh, source by source.

python benchmarks/quality/voxelizer_accuracy.py --pack ../shared/data/shapes --count 100 --workers 14

Of each source's meshes a fixed sample is voxelized. At 2,000 random voxels the distance is compared with libigl's in
float64 and the sign with the exact winding number (0.01 voxel or more off the surface; meshes that got a shell have
other signs and are left out). Then the iso-surface at zero is compared with the mesh: 20,000 points on each, exact
distances from each point to the other surface, F-score at 1 and 2 voxels.
"""

from __future__ import annotations

import functools
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.geometry.isosurface import extract_isosurface
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.metrics.scores import sample_surface
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device

VOXELS, POINTS, BAND = 2000, 20_000, 3.0


def sample(pack: MeshPack, count: int) -> list[PackEntry]:
    """Return a fixed sample of each source."""
    sources: dict[str, list[PackEntry]] = {}
    for entry in pack.entries:
        sources.setdefault(entry.source, []).append(entry)
    random = np.random.default_rng(0)
    return [entries[i] for _, entries in sorted(sources.items()) for i in random.permutation(len(entries))[:count]]


def check(entry: PackEntry, *, folder: Path, resolution: int, device: str) -> dict[str, Any]:
    """Voxelize one mesh and return what came of it."""
    import igl
    import trimesh

    torch.set_num_threads(1)
    target = torch.device(device)
    row: dict[str, Any] = {"id": entry.id, "source": entry.source}
    try:
        mesh = normalize_mesh(MeshPack(folder).mesh(entry))
        field = voxelize(
            mesh.vertices.to(target), mesh.faces.to(target), resolution=resolution, watertight=mesh.watertight
        )
    except ValueError as error:
        return row | {"error": str(error)}
    vertices, faces = mesh.vertices.numpy(), mesh.faces.numpy()
    rows = torch.randperm(len(field.index), generator=torch.Generator().manual_seed(0))[:VOXELS]
    points = (field.index.cpu()[rows].double().numpy() + 0.5) / resolution - 0.5
    exact = np.sqrt(igl.point_mesh_squared_distance(points, vertices, faces)[0]) * resolution
    distances = field.distance.cpu()[rows].double().numpy() * BAND
    row |= {"watertight": mesh.watertight, "sign_method": field.sign_method, "voxels": len(field.index)}
    if field.sign_method == "winding":
        winding = igl.winding_number(vertices, faces, points)
        inside = distances < 0
        if not mesh.watertight and ((winding < -0.5) == inside).mean() > ((winding > 0.5) == inside).mean():
            winding = -winding  # a mesh that looks inward was turned round
        elif mesh.watertight and winding.mean() < 0:
            winding = -winding
        sure = (exact > 0.01) & (np.abs(winding - 0.5) > 1e-3)
        row["wrong_signs"] = int((inside != (winding > 0.5))[sure].sum())
        row["checked_signs"] = int(sure.sum())
        row["largest_error"] = float(np.abs(np.abs(distances) - np.minimum(exact, BAND)).max())
    surface, triangles = extract_isosurface(field.distance, field.index)
    row |= {"chamfer": None, "fscore_1": 0.0, "fscore_2": 0.0}
    if len(triangles):
        rebuilt = (surface.cpu().double().numpy() + 0.5) / resolution - 0.5
        built = trimesh.Trimesh(rebuilt, triangles.cpu().numpy(), process=False)
        source = trimesh.Trimesh(vertices, faces, process=False)
        of_surface, _ = sample_surface(built, POINTS, 0)
        true, _ = sample_surface(source, POINTS, 1)
        to_mesh = np.sqrt(igl.point_mesh_squared_distance(of_surface, vertices, faces)[0]) * resolution
        to_built = np.sqrt(igl.point_mesh_squared_distance(true, rebuilt, triangles.cpu().numpy())[0]) * resolution
        row["chamfer"] = float((to_mesh.mean() + to_built.mean()) / 2)
        for step in (1, 2):
            precision, recall = (to_mesh <= step).mean(), (to_built <= step).mean()
            row[f"fscore_{step}"] = float(2 * precision * recall / max(precision + recall, 1e-12))
    return row


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the means of a group; a mesh that failed or has no surface counts 0 in the F-scores."""
    signs = [r for r in rows if "checked_signs" in r]
    chamfer = [r["chamfer"] for r in rows if r.get("chamfer") is not None]
    return {
        "meshes": len(rows),
        "failed": sum("error" in r for r in rows),
        "shells": sum(r.get("sign_method") == "winding+shell" for r in rows),
        "largest_distance_error_voxels": round(max((r["largest_error"] for r in signs), default=0.0), 6),
        "wrong_signs": sum(r["wrong_signs"] for r in signs),
        "checked_signs": sum(r["checked_signs"] for r in signs),
        "chamfer_voxels": round(float(np.mean(chamfer)), 4) if chamfer else None,
        "fscore_1_voxel": round(float(np.mean([r.get("fscore_1", 0.0) for r in rows])), 4),
        "fscore_2_voxels": round(float(np.mean([r.get("fscore_2", 0.0) for r in rows])), 4),
    }


def main() -> None:
    """Check a sample of every source and write the tables."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--count", type=int, default=100, help="meshes of each source")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", help="default: CUDA where present")
    options = parser.parse_args()
    entries = sample(MeshPack(options.pack), options.count)
    device = str(resolve_device(options.device))
    work = functools.partial(check, folder=options.pack, resolution=options.resolution, device=device)
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        rows = list(tqdm(pool.imap_unordered(work, entries), total=len(entries), mininterval=10))
    rows.sort(key=lambda r: r["id"])
    tables = {}
    for name, group in (("all", rows), ("watertight", [r for r in rows if r.get("watertight")])):
        sources = sorted({r["source"] for r in group})
        tables[name] = {s: summed([r for r in group if r["source"] == s]) for s in sources} | {"total": summed(group)}
        print(name)
        for source, numbers in tables[name].items():
            print(f"  {source:12s} {numbers}")
    failures = {r["id"]: r["error"] for r in rows if "error" in r}
    result = {"resolution": options.resolution, "tables": tables, "failures": failures}
    print(write_run(options, result))


if __name__ == "__main__":
    main()
