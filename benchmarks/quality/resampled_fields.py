"""What fields of another grid lose where a tokenizer reads them: resampled fields against those of the meshes.

    python benchmarks/quality/resampled_fields.py --pack ../shared/data/shapes --count 12

Meshes of the pack are voxelized at 256^3 and 512^3, and each field is resampled to the other grid (`convert_field`,
as `as_read` does). Its values are compared with those of the field made of the mesh at that grid: the mean
difference, in voxels, over the voxels that both have within 1.75 of the surface, and the share of these with another
sign. Surfaces are compared with the mesh (F-scores, distances in units of its longest side): `own` is that of the
field itself. Times are of one process.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.objects import pack_objects
from sdf_vqvae.fields.conversion import convert_field
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import to_source_units
from sdf_vqvae.geometry.metrics.scores import GroundTruth
from sdf_vqvae.sparse.coordinates import linear_keys
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.progress import follow
from sdf_vqvae.utils.runtime import resolve_device, setup_logging

GRIDS = (256, 512)
SEEN = {256: 1.75, 512: 3.0}
"""Voxels from the surface that tokenizers of those grids see: so much of a field is resampled for them."""
NEAR = 1.75
MEASURES = ("fscore@0.001", "fscore@0.002", "chamfer_l1", "normal_consistency")


def main() -> None:
    """Print and record the numbers."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="mesh pack (meshes.bin, meshes.jsonl)")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=12, help="meshes, drawn with --seed (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=50_000, help="points on each surface (default %(default)s)")
    parser.add_argument("--device")
    options = parser.parse_args()
    setup_logging()
    objects = [item for item in pack_objects(MeshPack(options.pack)) if item.split == options.split]
    order = torch.randperm(len(objects), generator=torch.Generator().manual_seed(options.seed))
    chosen = [objects[number] for number in order[: options.count].tolist()]
    device = resolve_device(options.device)
    rows = []
    for item in follow(chosen, "meshes"):
        rows.append({"id": item.id, **measured(item.there.mesh(), device, options.samples)})
    summary = {
        what: {key: statistics.mean(row[what][key] for row in rows) for key in rows[0][what]}
        for what in rows[0]
        if what != "id"
    }
    for what, numbers in summary.items():
        print(what, {key: round(value, 5) for key, value in numbers.items()})
    print(write_run(options, {"summary": summary, "objects": rows}))


def measured(mesh: Any, device: torch.device, samples: int) -> dict[str, dict[str, float]]:
    """Return what is measured of a mesh, by the field that it is measured of."""
    truth = GroundTruth(mesh, samples=samples)
    made, results = {}, {}
    for side in GRIDS:
        start = time.perf_counter()
        made[side] = SparseSDF.from_mesh(mesh, side, device=device)
        results[f"own {side}"] = {"seconds": time.perf_counter() - start, **scored(made[side], truth)}
    for given, wanted in (GRIDS, GRIDS[::-1]):
        start = time.perf_counter()
        resampled = convert_field(made[given], made[wanted].field, band=SEEN[wanted])
        results[f"{given} as {wanted}"] = {
            "seconds": time.perf_counter() - start,
            **apart(resampled, made[wanted]),
            **scored(resampled, truth),
        }
    return results


def scored(field: SparseSDF, truth: GroundTruth) -> dict[str, float]:
    """Return how near the surface of a field is to the mesh."""
    surface = extract_surface(field.sdf, field.index, field.field)
    score = truth.score(to_source_units(surface, field.center, field.scale, field.up)).to_dict()
    return {name: float(score[name] or 0.0) for name in MEASURES}


def apart(field: SparseSDF, other: SparseSDF) -> dict[str, float]:
    """Return how far two fields of one description are apart near the other's surface."""
    voxels = other.field.band or 1.0
    near = other.sdf.abs() * voxels <= NEAR
    places = (torch.nn.functional.pad(index, (1, 0)) for index in (field.index, other.index[near]))
    ours, theirs = (linear_keys(place, field.field.resolution) for place in places)
    row = torch.searchsorted(ours, theirs).clamp_(max=len(ours) - 1)
    known = ours[row] == theirs
    given, wanted = field.sdf[row[known]], other.sdf[near][known]
    return {
        "known": float(known.float().mean()),
        "mean_voxels": float((given - wanted).abs().mean()) * voxels,
        "voxels_95": float(torch.quantile((given - wanted).abs()[:: max(1, len(given) // 2**23)], 0.95)) * voxels,
        "wrong_sign": float(((given > 0) != (wanted > 0)).float().mean()),
    }


if __name__ == "__main__":
    main()
