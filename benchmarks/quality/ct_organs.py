"""A whole CT case end to end, from both layouts: organs, their volumes in ml against the labels', time and memory.

    python benchmarks/quality/ct_organs.py --data ../shared/data/ct --spacing 3,3,3
    python benchmarks/quality/ct_organs.py --data ../shared/data/ct --spacing 3,3,3 --picture docs/ct-organs.png

Runs what `process_m3d_seg_format.py --use_mask --compute_sdf` runs, in one process. Beside it: balls in voxels of
several spacings, whose radius and normals are known, against marching cubes on the bare label.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.isosurface import extract_isosurface
from sdf_vqvae.geometry.picture import render_mesh
from sdf_vqvae.geometry.volume import label_surface
from sdf_vqvae.preprocessing.ct.cases import load_case
from sdf_vqvae.preprocessing.ct.layouts import CaseFiles, find_case_sets, pair_case
from sdf_vqvae.preprocessing.ct.organs import surface_of
from sdf_vqvae.preprocessing.ct.processing import process_case
from sdf_vqvae.preprocessing.ct.settings import OrganSettings, Settings
from sdf_vqvae.utils.files import atomic_path
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import peak_host_bytes, setup_logging

BALLS = (((1.0, 1.0, 1.0), 20.0), ((3.0, 3.0, 3.0), 30.0), ((0.8, 0.8, 5.0), 30.0))
LARGE_ML = 10.0


def main() -> None:
    """Print and record the numbers; draw the picture where asked to."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--data", type=Path, required=True, help="folder with m3d_seg/ and nifti/")
    parser.add_argument("--spacing", default="3,3,3", help="of the M3D-Seg case, which records none")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--device", default="cpu", help="where fields are computed")
    parser.add_argument("--picture", type=Path, help="PNG of a few organs")
    options = parser.parse_args()
    setup_logging()
    x, y, z = (float(part) for part in options.spacing.split(","))
    nifti = options.data / "nifti"
    cases = {
        "nifti": pair_case(nifti / "ct.nii.gz", nifti / "organs.nii.gz", None),
        "m3d_seg": find_case_sets(options.data / "m3d_seg", (x, y, z))[0].cases[0],
    }
    if options.picture is not None:
        draw(cases["nifti"], options.picture)
    numbers: dict[str, Any] = {"resolution": options.resolution, "balls": [ball_row(*ball) for ball in BALLS]}
    with tempfile.TemporaryDirectory() as folder:
        for name, files in cases.items():
            numbers[name] = run(files, Path(folder) / name, options.resolution, options.device)
            print(name, {key: value for key, value in numbers[name].items() if key != "organs"})
        numbers["layouts"] = compare(Path(folder), options.resolution)
    print(numbers["layouts"])
    print(write_run(options, numbers))


def run(files: CaseFiles, output: Path, resolution: int, device: str) -> dict[str, Any]:
    """Process a case and return its organs and a summary."""
    settings = Settings(
        output=output,
        default_resolution=512,
        use_mask=True,
        compute_sdf=True,
        replace_npy=False,
        assume_hu=False,
        organ_names=(),
        organ=OrganSettings(resolution=resolution, band=3.0, mesh_suffix=".ply"),
    )
    start = time.perf_counter()
    info = process_case(files, settings, device)
    seconds = time.perf_counter() - start
    write_organ_table(output, info)
    organs = [
        {
            "name": o["name"],
            "voxels": o["voxels"],
            "label_ml": round(o["volume_ml"], 4),
            "mesh_ml": None if o["mesh_ml"] is None else round(o["mesh_ml"], 4),
            "error_percent": None if o["mesh_ml"] is None else 100 * abs(o["mesh_ml"] / o["volume_ml"] - 1),
            "num_points": o["num_points"],
            "seconds": round(o["seconds"], 3),
            "error": o["error"],
        }
        for o in info["organs"]
    ]
    good = [o for o in organs if not o["error"]]
    large = [o for o in good if o["label_ml"] > LARGE_ML]
    return {
        "organs_found": len(organs),
        "organs_made": len(good),
        "over_10_ml": len(large),
        "worst_percent_over_10_ml": max(o["error_percent"] for o in large),
        "worst_percent": max(o["error_percent"] for o in good),
        "smallest_ml": min(o["label_ml"] for o in organs),
        "largest_ml": max(o["label_ml"] for o in organs),
        "seconds": seconds,
        "seconds_an_organ": seconds / len(organs),
        "peak_host_GiB": peak_host_bytes() / 2**30,
        "output_MiB": sum(p.stat().st_blocks * 512 for p in output.rglob("*") if p.is_file()) / 2**20,
        "organs": organs,
    }


def write_organ_table(output: Path, info: dict[str, Any]) -> None:
    """Write the table of the organs' dataset."""
    from sdf_vqvae.data.tables import METADATA, write_table

    write_table(output / "organs" / METADATA, info["organ_rows"])


def compare(folder: Path, resolution: int) -> dict[str, Any]:
    """Return how far the fields of the two layouts are apart, and how far their volumes from the labels'."""
    nifti, m3d = (FieldFolder(folder / name / "organs", resolution) for name in ("nifti", "m3d_seg"))
    by_name = {row["organ"].replace("_", " "): number for number, row in enumerate(nifti.rows)}
    same_voxels, largest, errors = 0, 0.0, []
    for number, row in enumerate(m3d.rows):
        first, second = m3d[number], nifti[by_name[row["organ"]]]
        if torch.equal(first.index, second.index):
            same_voxels += 1
            largest = max(largest, float((first.sdf - second.sdf).abs().max()))
        if float(row["volume_ml"]) > LARGE_ML:
            errors.append(100 * abs(field_ml(first) / float(row["volume_ml"]) - 1))
    return {
        "organs_in_both": len(by_name),
        "same_voxels": same_voxels,
        "largest_difference_in_bands": largest,
        "worst_percent_of_the_field_s_own_surface_over_10_ml": max(errors),
    }


def field_ml(field: SparseSDF) -> float:
    """Return the volume that the surface of a field encloses: what is left of it after the grid."""
    vertices, faces = extract_isosurface(field.sdf, field.index)
    volume = trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False).volume
    return float(volume) / (field.field.resolution * field.scale) ** 3 / 1000


def ball_row(spacing: tuple[float, float, float], radius: float) -> dict[str, Any]:
    """Return the errors of a ball's surface, and those of marching cubes on the bare label."""
    center = np.array([0.3, 0.1, -0.2])
    shape = [2 * (int(radius / s) + 3) + 1 for s in spacing]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [-(n // 2) * s for n, s in zip(shape, spacing, strict=True)]
    points = np.indices(shape).reshape(3, -1).T * spacing + affine[:3, 3]
    mask = (np.linalg.norm(points - center, axis=1) <= radius).reshape(shape)
    surface = label_surface(mask, affine)
    return {
        "spacing_mm": list(spacing),
        "radius_mm": radius,
        "volume_error_percent": 100 * abs(surface.mesh_ml / surface.label_ml - 1),
        **{f"ours_{k}": v for k, v in _sphere_errors(surface.mesh, center, radius).items()},
        **{f"bare_{k}": v for k, v in _sphere_errors(bare_surface(mask, affine), center, radius).items()},
    }


def _sphere_errors(mesh: trimesh.Trimesh, center: np.ndarray, radius: float) -> dict[str, float]:
    """Return the mean distance to a sphere (mm) and the mean angle to its normals (degrees), by area."""
    out = mesh.triangles_center - center
    lengths = np.linalg.norm(out, axis=1)
    cosine = np.clip((mesh.face_normals * out).sum(axis=1) / lengths, -1, 1)
    area = mesh.area_faces
    return {
        "distance_mm": float(np.average(np.abs(lengths - radius), weights=area)),
        "angle_degrees": float(np.average(np.degrees(np.arccos(cosine)), weights=area)),
    }


def bare_surface(mask: np.ndarray, affine: np.ndarray) -> trimesh.Trimesh:
    """Return what marching cubes make of a label as it is: its staircase."""
    padded = np.pad(mask, 1)
    index = torch.from_numpy(np.argwhere(np.ones_like(padded)))
    vertices, faces = extract_isosurface(torch.from_numpy(0.5 - padded.reshape(-1).astype(np.float32)), index)
    return trimesh.Trimesh(
        (vertices.double().numpy() - 1) @ affine[:3, :3].T + affine[:3, 3], faces.numpy(), process=False
    )


# -- the picture -------------------------------------------------------------------------------------------------

_COLORS = ((0.72, 0.42, 0.36), (0.85, 0.80, 0.68), (0.80, 0.62, 0.45), (0.62, 0.70, 0.82), (0.78, 0.55, 0.62))


def draw(files: CaseFiles, path: Path, size: int = 300) -> None:
    """Draw the left kidney as it is labeled and as its surface, and other organs."""
    from PIL import Image, ImageDraw, ImageFont

    case = load_case(files, with_image=False)
    assert case.masks is not None
    numbers = {case.names.of(n): n for n in case.masks.places}

    def surface(*names: str) -> trimesh.Trimesh:
        return trimesh.util.concatenate([surface_of(case, numbers[name]).mesh for name in names])

    corner, crop = case.masks.crop(numbers["kidney_left"])
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(corner)
    bones = [n for n in numbers if n.startswith(("vertebrae", "rib", "hip", "femur", "sacrum"))]
    panels: Sequence[tuple[str, trimesh.Trimesh]] = (
        ("left kidney, the label's voxels", bare_surface(crop, affine)),
        ("left kidney, its surface", surface("kidney_left")),
        ("liver", surface("liver")),
        ("colon", surface("colon")),
        ("vertebra L3", surface("vertebrae_L3")),
        ("left hip", surface("hip_left")),
        ("aorta and iliac arteries", surface("aorta", "iliac_artery_left", "iliac_artery_right")),
        (f"{len(bones)} bones", surface(*bones)),
    )
    font = ImageFont.load_default(size=16)
    title = 30
    sheet = Image.new("RGB", (4 * size, 2 * (size + title)), "white")
    pen = ImageDraw.Draw(sheet)
    upright = np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])  # right, anterior, superior -> seen from the front
    colors = (0, 0, 0, 2, 1, 1, 4, 1)
    for place, ((name, mesh), color) in enumerate(zip(panels, colors, strict=True)):
        left, top = place % 4 * size, place // 4 * (size + title)
        turned = trimesh.Trimesh(mesh.vertices @ upright.T, mesh.faces, process=False)
        picture = render_mesh(turned, size, azimuth=20.0, elevation=12.0, color=_COLORS[color])
        sheet.paste(Image.fromarray(picture), (left, top + title))
        pen.text((left + size // 2, top + title // 2 + 4), name, fill=(38, 44, 54), font=font, anchor="mm")
    with atomic_path(path) as temporary:
        sheet.quantize(128).save(temporary, format="PNG", optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
