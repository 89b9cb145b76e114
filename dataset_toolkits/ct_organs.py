"""Organs of a scan as objects of a dataset: a field file, a mesh in millimetres, a caption and a row of the table."""

from __future__ import annotations

import hashlib
import json
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dataset_toolkits.ct_cases import Case
from sdf_vqvae.archives import one_line
from sdf_vqvae.field_folder import field_file_name
from sdf_vqvae.geometry.mesh_writing import write_mesh
from sdf_vqvae.geometry.volume import SIGN_METHOD, LabelSurface, label_surface
from sdf_vqvae.sparse_sdf import SparseSDF

_SIDES = ("left", "right")
_PLURALS = {"vertebrae": "vertebra"}
_WHOLE_ML = 10


@dataclass(frozen=True, kw_only=True)
class OrganSettings:
    """How organs are written."""

    resolution: int
    band: float
    mesh_suffix: str
    """`.ply`, `.obj` and so on; empty for no meshes."""


@dataclass(frozen=True, kw_only=True)
class Organ:
    """What became of one label of a case."""

    label: int
    name: str
    voxels: int
    volume_ml: float
    sha256: str
    mesh_ml: float | None = None
    num_points: int | None = None
    seconds: float = 0.0
    error: str = ""

    def row(self, case_id: str, resolution: int) -> dict[str, str]:
        """Return the organ's row in the dataset's `metadata.csv`."""
        made = not self.error
        return {
            "sha256": self.sha256,
            "case_id": case_id,
            "organ": self.name,
            "label": str(self.label),
            "volume_ml": f"{self.volume_ml:.6g}",
            "mesh_ml": "" if self.mesh_ml is None else f"{self.mesh_ml:.6g}",
            "voxels": str(self.voxels),
            "captions": json.dumps(captions(self.name, self.volume_ml)),
            "sdf_computed": str(made),
            f"r{resolution}_num_points": "" if self.num_points is None else str(self.num_points),
            f"r{resolution}_error": self.error,
            "error": self.error,
            "sign_method": SIGN_METHOD if made else "",
            "watertight": "True" if made else "",
        }


def organ_of(case: Case, case_id: str, label: int) -> Organ:
    """Return what is known of a label before any of its files is made."""
    assert case.masks is not None
    corner, crop = case.masks.crop(label)
    name = case.names.of(label)
    parts = (case_id, str(label), name, str(corner), str(crop.shape), case.affine.tobytes().hex())
    content = hashlib.sha256(json.dumps(parts).encode() + np.packbits(crop).tobytes())
    cell = abs(float(np.linalg.det(case.affine[:3, :3]))) / 1000
    voxels = case.masks.count(label)
    return Organ(label=label, name=name, voxels=voxels, volume_ml=voxels * cell, sha256=content.hexdigest())


def surface_of(case: Case, label: int) -> LabelSurface:
    """Return the surface of a label in the millimetres of the scan."""
    assert case.masks is not None
    corner, crop = case.masks.crop(label)
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(corner)
    return label_surface(crop, affine)


def make_organ(
    case: Case, organ: Organ, settings: OrganSettings, *, field_folder: Path, mesh_folder: Path, device: str
) -> Organ:
    """Write an organ's field and mesh; return it with their numbers, or with the reason why there are none."""
    start = time.perf_counter()
    try:
        surface = surface_of(case, organ.label)
        field = SparseSDF.from_label(surface, settings.resolution, band=settings.band, device=device)
    except (ValueError, MemoryError) as error:
        return replace(organ, error=one_line(error), seconds=time.perf_counter() - start)
    if settings.mesh_suffix:
        write_mesh(mesh_folder / f"{organ.label}_{file_stem(organ.name)}{settings.mesh_suffix}", surface.mesh)
    field.save(field_folder / field_file_name(organ.sha256, settings.resolution))
    return replace(
        organ,
        mesh_ml=surface.mesh_ml,
        num_points=len(field.sdf),
        seconds=time.perf_counter() - start,
    )


def file_stem(name: str) -> str:
    """Return a name as a part of a path: letters, digits and single underscores, nothing else."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:60] or "label"


def in_words(name: str) -> str:
    """Return an organ's name as it is said: `kidney_left` is the left kidney, `rib right 7` the right rib 7."""
    words = [_PLURALS.get(w, w) if i == 0 else w for i, w in enumerate(name.replace("_", " ").split())]
    for side in _SIDES:
        if words.count(side) == 1 and words[0] != side:
            words.remove(side)
            words.insert(0, side)
    return " ".join(words)


def captions(name: str, volume_ml: float) -> list[str]:
    """Return an organ's captions, the longest first."""
    words = in_words(name)
    amount = (
        f"{volume_ml:.0f}" if volume_ml >= _WHOLE_ML else f"{volume_ml:.1f}" if volume_ml >= 1 else f"{volume_ml:.2g}"
    )
    return [f"The {words}, from a CT scan, {amount} ml.", f"A CT scan of the {words}.", words]
