"""One mesh to its field files at several resolutions: what a worker of `sdf_voxelize` does.

Apart from the program, so that worker processes import it under its own name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sdf_vqvae.codes.pipeline import settle_up
from sdf_vqvae.data.field_file import StoredField, field_file_name
from sdf_vqvae.data.objects import Place
from sdf_vqvae.fields.conversion import field_in_world
from sdf_vqvae.fields.sparse_sdf import MAX_VOXELS, SparseSDF
from sdf_vqvae.geometry.mesh import NormalizedMesh, normalize_mesh
from sdf_vqvae.preprocessing.voxelize.settings import FieldKind
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.runtime import resolve_device
from sdf_vqvae.utils.workers import disk_is_full


@dataclass(frozen=True, kw_only=True)
class VoxelizeJob:
    """One object to voxelize."""

    name: str
    """Its id, and the first part of its files' names."""
    place: Place
    resolutions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Voxelized:
    """The files of one object, and why some are missing."""

    fields: dict[int, StoredField]
    """By resolution."""
    errors: dict[int, str]
    """By resolution."""


def make_voxelizer(device: str, *, folder: Path, kind: FieldKind) -> Callable[[VoxelizeJob], Voxelized]:
    """Return the function that voxelizes one object into a folder (for `run_jobs`)."""
    return functools.partial(voxelize_object, device=resolve_device(device), folder=folder, kind=kind)


def voxelize_object(job: VoxelizeJob, *, device: torch.device, folder: Path, kind: FieldKind) -> Voxelized:
    """Write the field files of one object; the mesh is read once.

    What goes wrong at one resolution (no voxel within a narrow band, too many voxels) leaves the others alone.

    Raises:
        ValueError: the mesh can't be used.
        OSError: a file can't be written.
    """
    loaded = job.place.mesh()
    assert job.place.up is not None
    up = settle_up(job.place.up, loaded)
    mesh = normalize_mesh(loaded, up.axis)
    fields: dict[int, StoredField] = {}
    errors: dict[int, str] = {}
    for resolution in job.resolutions:
        path = folder / field_file_name(job.name, resolution)
        try:
            field = replace(_field(mesh, kind, resolution, device), up_from=up.known_from)
            field.save(path)
        except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
            if disk_is_full(error):
                raise
            errors[resolution] = (
                f"out of memory: {brief(error)}" if not isinstance(error, ValueError) else brief(error)
            )
            continue
        fields[resolution] = StoredField(
            voxels=len(field.sdf),
            sign_method=field.sign_method,
            watertight=field.watertight,
            up=up,
            size=path.stat().st_size,
        )
    return Voxelized(fields=fields, errors=errors)


def _field(mesh: NormalizedMesh, kind: FieldKind, resolution: int, device: torch.device) -> SparseSDF:
    field = field_in_world(
        mesh.vertices.to(device),
        mesh.faces.to(device),
        kind.stored(resolution),
        band=kind.band,
        watertight=mesh.watertight,
        center=mesh.center,
        scale=mesh.scale,
        up=mesh.up,
    )
    if len(field.sdf) > MAX_VOXELS:
        raise ValueError(
            f"it has {len(field.sdf):,} voxels, more than the {MAX_VOXELS:,} that are read: lower the band"
        )
    return field
