"""Organs of a scan as objects of a dataset: a field file, a mesh in millimetres, a caption and a row of the table."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdf_vqvae.data.captions import captions_cell
from sdf_vqvae.data.field_file import field_file_name
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import write_mesh
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.geometry.volume import SIGN_METHOD, LabelSurface, label_surface
from sdf_vqvae.preprocessing.ct.cases import Case
from sdf_vqvae.preprocessing.ct.masks import Label, label_text
from sdf_vqvae.preprocessing.ct.names import captions, file_stem, says_nothing
from sdf_vqvae.preprocessing.ct.settings import OrganSettings
from sdf_vqvae.utils.errors import brief


@dataclass(frozen=True, kw_only=True)
class Organ:
    """What became of one label of a case."""

    label: Label
    name: str
    named: bool
    """False where the label has no name, or one that says nothing."""
    voxels: int
    volume_ml: float
    sha256: str
    mesh_ml: float | None = None
    num_points: int | None = None
    seconds: float = 0.0
    error: str = ""

    @property
    def file_name(self) -> str:
        """First part of the names of the organ's files and folders, its own within a case."""
        return f"{label_text(self.label)}_{file_stem(self.name)}"

    @property
    def captions(self) -> list[str]:
        """What is said of the organ; nothing where its name isn't known."""
        return captions(self.name, self.volume_ml) if self.named else []

    def row(self, case_id: str, resolution: int, up: Up) -> dict[str, str]:
        """Return the organ's row in the dataset's `metadata.csv`."""
        made = not self.error
        return {
            "sha256": self.sha256,
            "case_id": case_id,
            "organ": self.name,
            "label": label_text(self.label),
            "volume_ml": f"{self.volume_ml:.6g}",
            "mesh_ml": "" if self.mesh_ml is None else f"{self.mesh_ml:.6g}",
            "voxels": str(self.voxels),
            "captions": captions_cell(self.captions),
            "sdf_computed": str(made),
            f"r{resolution}_num_points": "" if self.num_points is None else str(self.num_points),
            f"r{resolution}_error": self.error,
            "error": self.error,
            "sign_method": SIGN_METHOD if made else "",
            "watertight": "True" if made else "",
            "up": up.axis if made else "",
            "up_from": up.known_from if made else "",
        }


def organ_of(case: Case, case_id: str, label: Label) -> Organ:
    """Return what is known of a label before any of its files is made."""
    assert case.masks is not None
    corner, crop = case.masks.crop(label)
    name = case.names.of(label)
    parts = (case_id, label_text(label), name, str(corner), str(crop.shape), case.affine.tobytes().hex())
    content = hashlib.sha256(json.dumps(parts).encode() + np.packbits(crop).tobytes())
    cell = abs(float(np.linalg.det(case.affine[:3, :3]))) / 1000
    voxels = case.masks.count(label)
    return Organ(
        label=label,
        name=name,
        named=label in case.names.named and not says_nothing(name),
        voxels=voxels,
        volume_ml=voxels * cell,
        sha256=content.hexdigest(),
    )


def surface_of(case: Case, label: Label) -> LabelSurface:
    """Return the surface of a label in the millimetres of the scan."""
    assert case.masks is not None
    corner, crop = case.masks.crop(label)
    affine = case.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(corner)
    return label_surface(crop, affine)


def field_of(surface: LabelSurface, settings: OrganSettings, device: str) -> SparseSDF:
    """Return the field of a surface of the scan. Raises a ValueError as `voxelize` does."""
    up = settings.up
    field = SparseSDF.from_label(surface, settings.resolution, band=settings.band, up=up.axis, device=device)
    return replace(field, up_from=up.known_from)


def make_organ(
    case: Case, organ: Organ, settings: OrganSettings, *, field_folder: Path, mesh_folder: Path, device: str
) -> Organ:
    """Write an organ's field and mesh; return it with their numbers, or with the reason why there are none."""
    start = time.perf_counter()
    try:
        surface = surface_of(case, organ.label)
        field = field_of(surface, settings, device)
    except (ValueError, MemoryError) as error:
        return replace(organ, error=brief(error), seconds=time.perf_counter() - start)
    if settings.mesh_suffix:
        path = mesh_folder / f"{organ.file_name}{settings.mesh_suffix}"
        write_mesh(path, surface.mesh, up=settings.up.axis)
    field.save(field_folder / field_file_name(organ.sha256, settings.resolution))
    return replace(
        organ,
        mesh_ml=surface.mesh_ml,
        num_points=len(field.sdf),
        seconds=time.perf_counter() - start,
    )
