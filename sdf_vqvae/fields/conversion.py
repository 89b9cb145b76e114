"""A mesh in the world cube becomes a field of a given description, and a field one of another.

Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.face_repair import is_watertight
from sdf_vqvae.geometry.metrics.surface_distance import distance_to_surface
from sdf_vqvae.geometry.resample import double_field, halve_field
from sdf_vqvae.geometry.voxelizer.dense_surface import voxelize_dense
from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField, voxelize

_NEAR = 2.0
"""Steps from the surface within which all corners of the cells that it cuts lie (sqrt(3)), with some to spare."""

_FARTHEST = 0.75 * 3**0.5
"""Steps from a sample of a grid twice as fine to the farthest of the eight that it is interpolated from."""

_NEARER = 0.25
"""Steps of a grid half as fine by which one of the eight around a sample is nearer to the surface, at least."""

_SKIN = 0.55
"""Steps. What is nowhere deeper is skin: the voxelizer's shells are half a step deep, and a bit for rounding."""


def field_in_world(
    vertices: Tensor,
    faces: Tensor,
    field: FieldDescription,
    *,
    band: float,
    watertight: bool = False,
    center: tuple[float, float, float] = (0.0, 0.0, 0.0),
    scale: float = 1.0,
    up: str = "y",
    voxelizer: Callable[..., VoxelField] = voxelize,
) -> SparseSDF:
    """Voxelize a mesh that stands in the world cube, as a field of the given description.

    Args:
        vertices: float64 `[V, 3]` in [-0.5, 0.5]^3, standing along +y.
        faces: int64 `[F, 3]`.
        field: kind, unit, band and sampling of the result.
        band: half width in voxels (of 1 / R) of the shell to compute, at most the field's.
        watertight: the mesh is known to be closed.
        center: recorded with the field; world = R(up) @ (source - center) * scale.
        scale: see `center`.
        up: see `center`.
        voxelizer: `voxelize`, or `voxelize_dense` for a great many small triangles.

    Raises:
        ValueError: see `voxelize`.
    """
    reach = band
    if field.sampling == "corner":
        # Voxelization samples (i + 0.5) / R - 0.5; moved like this, its sample i stands where i / (R - 1) - 0.5 was.
        steps = field.resolution - 1
        vertices = ((vertices + 0.5) * steps + 0.5) / field.resolution - 0.5
        reach = band * steps / field.resolution
    voxels = voxelizer(
        vertices,
        faces,
        resolution=field.resolution,
        band=reach,
        signed=field.kind == "sdf",
        watertight=watertight,
    )
    return SparseSDF(
        sdf=(voxels.distance.double() * (reach / field.voxels_per_unit)).float(),
        index=voxels.index,
        field=field,
        center=center,
        scale=scale,
        watertight=watertight,
        sign_method=voxels.sign_method,
        up=up,
    )


def convert_field(source: SparseSDF, field: FieldDescription, *, band: float | None = None) -> SparseSDF:
    """Turn a field into one of another description.

    A signed field becomes one of twice or half its grid by interpolation, where its band is wide enough for that; any
    other goes by way of its surface, and unsigned ones get signs (see `extract_surface`, which logs how). Center,
    scale and up are kept.

    Args:
        source: the field.
        field: description of the result.
        band: half width in voxels of the shell to make, at most the description's, which is the default.

    Raises:
        ValueError: the source has no surface, or the wanted field records no band.
    """
    if field.band is None:
        raise ValueError("a field can only be made with a known band")
    band = band or field.band
    if _are_nested(source.field, field) and source.field.band is not None:
        finer = field.resolution > source.field.resolution
        if finer and band <= 2 * (source.field.band - _FARTHEST):
            return _doubled(source, field, band)
        if not finer and band <= source.field.band / 2 + _NEARER:
            return _halved(source, field, band)
    mesh = _surface(source)
    faces = torch.from_numpy(np.asarray(mesh.faces, dtype=np.int64))
    vertices = torch.from_numpy(np.asarray(mesh.vertices, dtype=np.float64))
    converted = field_in_world(
        vertices.to(source.sdf.device),
        faces.to(source.sdf.device),
        field,
        band=band,
        watertight=is_watertight(faces.numpy()),
        center=source.center,
        scale=source.scale,
        up=source.up,
        voxelizer=voxelize_dense,
    )
    return replace(converted, up_from=source.up_from)


def _surface(source: SparseSDF) -> trimesh.Trimesh:
    # Marching cubes needs no more; a wide band is mostly far from the surface.
    near = source.sdf.abs() * source.field.voxels_per_unit <= _NEAR
    return extract_surface(source.sdf[near], source.index[near], source.field)


def _are_nested(given: FieldDescription, wanted: FieldDescription) -> bool:
    """Return whether the samples of one signed field lie in the middle between eight of the other."""
    signed = given.kind == wanted.kind == "sdf"
    centered = given.sampling == wanted.sampling == "center"
    low, high = sorted((given.resolution, wanted.resolution))
    return signed and centered and high == 2 * low


def _doubled(source: SparseSDF, field: FieldDescription, band: float) -> SparseSDF:
    needed = source.sdf.abs() * source.field.voxels_per_unit <= band / 2 + _FARTHEST
    values, index = double_field(source.sdf[needed], source.index[needed], source.field.resolution)
    values = values * (2 * source.field.voxels_per_unit / field.voxels_per_unit)
    within = values.abs() * field.voxels_per_unit <= band
    return replace(source, sdf=values[within], index=index[within].int(), field=field)


def _halved(source: SparseSDF, field: FieldDescription, band: float) -> SparseSDF:
    """Average eight samples where all are known, and measure how far the surface is from the others, farther out."""
    means, index, whole = halve_field(source.sdf, source.index, source.field.resolution)
    steps = means.double() * source.field.voxels_per_unit / 2
    mesh = _surface(source)

    def steps_from(faces: np.ndarray, which: Tensor) -> Tensor:
        points = ((index[which] + 0.5) / field.resolution - 0.5).cpu().double().numpy()
        distance, _ = distance_to_surface(points, mesh.vertices, faces)
        return torch.from_numpy(distance).to(steps) * field.resolution

    # Their sides are known: where one of eight is missing, the surface is farther away than they are apart.
    steps[~whole] = steps_from(mesh.faces, ~whole) * steps[~whole].sign()
    skin = _skin_faces(source, mesh, field.resolution)
    if len(skin):
        # A shell half a step of this grid thick lies between its samples: it becomes one of a whole step.
        about = steps > -_SKIN / 2
        apart, outside = steps_from(skin, about), steps[about] > 0
        shell = torch.where(outside, apart, -apart) - 0.25
        of_skin = outside | (apart <= _SKIN / 2)
        steps[about] = torch.where(of_skin, torch.minimum(steps[about], shell), steps[about])
    within = steps.abs() <= band
    values = (steps[within] / field.voxels_per_unit).to(source.sdf.dtype)
    return replace(source, sdf=values, index=index[within].int(), field=field)


def _skin_faces(source: SparseSDF, mesh: trimesh.Trimesh, side: int) -> np.ndarray:
    """Return the faces of a field's surface with nothing deep within about a step of a grid of that side."""
    deep = torch.zeros(side, side, side, dtype=torch.bool, device=source.sdf.device)
    inner = source.index[source.sdf * source.field.voxels_per_unit < -_SKIN].long() * side // source.field.resolution
    deep[tuple(inner.T)] = True
    for axis in range(3):
        low, high = deep.narrow(axis, 0, side - 1).clone(), deep.narrow(axis, 1, side - 1).clone()
        deep.narrow(axis, 0, side - 1).logical_or_(high)
        deep.narrow(axis, 1, side - 1).logical_or_(low)
    faces = np.asarray(mesh.faces)
    centers = torch.from_numpy(mesh.vertices[faces].mean(axis=1)).to(deep.device)
    cells = ((centers + 0.5) * side).long().clamp_(0, side - 1)
    return faces[~deep[tuple(cells.T)].cpu().numpy()]
