"""Mesh files in and out, and the one normalization that everything after them relies on.

Knows nothing of voxels. What kinds of files there are is in `formats`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.geometry.face_repair import repair_faces
from sdf_vqvae.geometry.formats.mesh_file import OwnFolder
from sdf_vqvae.geometry.formats.registry import READABLE, WRITABLE, module_of
from sdf_vqvae.geometry.up import lay_back, stand_up, up_note
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import regular_file

LONGEST_SIDE = 0.95
_FLAT = 1e-12
"""Height over length below which a triangle is a line: float64 knows corners to 1e-16 of the largest coordinate."""
_FILE = "read_from"  # in a mesh's metadata, for messages about what is found out later
_AREA_FACES = 2**16  # looked at together; the first part almost always has one with an area
# What reading a damaged file raises: what the readers find, values of another kind in JSON, numbers out of range, the
# system's own errors, and those of libraries in C++.
_DAMAGE = (
    ValueError, LookupError, TypeError, ArithmeticError, AttributeError, OSError, MemoryError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalizedMesh:
    """A mesh in the world cube [-0.5, 0.5]^3, standing along +y: bounding box centered, longest side 0.95, welded."""

    vertices: Tensor
    """float64 `[V, 3]`, world units."""
    faces: Tensor
    """int64 `[F, 3]`."""
    center: tuple[float, float, float]
    """Center of the bounding box in source units; world = R(up) @ (source - center) * scale."""
    scale: float
    """World units a source unit."""
    watertight: bool
    """Every edge is shared by exactly two faces that run along it in opposite directions."""
    up: str = "y"
    """The axis of the source that points up; R(up) is its `rotation`."""


def load_mesh(path: str | os.PathLike[str]) -> trimesh.Trimesh:
    """Read a mesh file (GLB, glTF, OBJ, PLY, STL, OFF); a scene is flattened with its transforms.

    Materials and textures are not read. Buffers of a glTF must lie in its folder or below.

    Raises:
        ValueError: the file is missing, of another kind, damaged, names files elsewhere, claims more than it holds,
            or holds no triangle.
    """
    file = regular_file(path, "mesh file")
    suffix = file.suffix.lower()
    if suffix not in READABLE:
        raise ValueError(f"{file}: cannot read {file.suffix or 'a file without a suffix'!r}; use one of {READABLE}")
    try:
        mesh = module_of(suffix).read(file, OwnFolder(file.parent))
        faces = len(mesh.faces)
    except ImportError as error:
        raise ValueError(f"{file} needs a library that is not installed: {brief(error)}") from error
    except _DAMAGE as error:
        raise ValueError(f"{file} is not a readable {suffix[1:].upper()} file: {brief(error)}") from error
    if faces == 0:
        raise ValueError(f"{file} holds no triangle (a point cloud or an empty scene)")
    mesh.metadata[_FILE] = str(file)
    return mesh


def write_mesh(
    path: str | os.PathLike[str], mesh: trimesh.Trimesh, *, up: str | None = None
) -> tuple[float, float, float] | None:
    """Write OBJ, PLY, GLB, STL or OFF by the suffix, replacing an earlier file only when complete.

    PLY holds 64-bit floats, OBJ and OFF as many digits as the object's size asks for. GLB holds 32-bit floats: where
    they don't do, they are relative to a place near the object, and the node puts them there. STL can't say where an
    object stands: where 32-bit floats don't do, the object is moved near the origin, and a warning says by how much.
    Geometry alone is written to PLY, STL, OBJ and OFF.

    Args:
        path: where to.
        mesh: it is not turned.
        up: the axis of it that points up, where that is known: a comment in the file says so (see `up_of`).

    Returns:
        What was taken from the coordinates of an STL file, in the mesh's units; None where they are the mesh's own.

    Raises:
        ValueError: another suffix, or an STL file can't hold numbers of this size.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITABLE:
        raise ValueError(f"{path}: cannot write {suffix or 'a file without a suffix'!r}; use one of {WRITABLE}")
    return module_of(suffix).write(Path(path), mesh, "" if up is None else up_note(up))


def normalize_mesh(mesh: trimesh.Trimesh, up: str = "y") -> NormalizedMesh:
    """Weld equal vertices, drop faces without area in index space, and move the mesh into the world cube.

    A flat mesh is fine (an open sheet); one whose faces are all lines or points is not.

    Args:
        mesh: in any units.
        up: its axis that points up, and becomes +y. A mesh and its turned copy give the very same numbers.

    Raises:
        ValueError: no face with an area, coordinates that are not finite, face indices out of range, or no extent;
            or `up` is no axis.
    """
    try:
        return _normalized(mesh, up)
    except ValueError as error:
        file = mesh.metadata.get(_FILE)
        raise ValueError(f"{file}: {error}" if file else str(error)) from error


def _normalized(mesh: trimesh.Trimesh, up: str) -> NormalizedMesh:
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    faces = np.asarray(mesh.faces, dtype=np.int64)
    if len(faces) == 0:
        raise ValueError("the mesh has no faces")
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.shape[1:] != (3,):
        raise ValueError(f"a mesh has vertices [V, 3] and faces [F, 3], got {vertices.shape} and {faces.shape}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise ValueError(f"face indices must lie in 0..{len(vertices) - 1}, got {faces.min()}..{faces.max()}")
    used, faces = np.unique(faces, return_inverse=True)
    vertices = vertices[used]
    if not np.isfinite(vertices).all():
        raise ValueError("the mesh has vertices that are not finite numbers")
    vertices = stand_up(vertices, up)
    vertices, welded = _weld(vertices)
    faces = welded[faces.reshape(-1, 3)]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    if len(faces) == 0:
        raise ValueError("every face of the mesh has two equal corners")
    if not _has_area(vertices, faces):
        raise ValueError("no face of the mesh has an area: all of them are lines or points")
    low, high = vertices[faces].min(axis=(0, 1)), vertices[faces].max(axis=(0, 1))
    # Halves, since the sum or difference of the largest floats is not finite.
    center, extent = low / 2 + high / 2, 2 * float((high / 2 - low / 2).max())
    scale = LONGEST_SIDE / extent if extent > 0 else np.inf
    if not 0 < scale < np.inf:
        raise ValueError(f"the mesh has no usable extent: its longest side is {extent}")
    x, y, z = lay_back(center, up).tolist()
    vertices = (vertices - center) * scale
    faces, watertight = repair_faces(vertices, faces)
    return NormalizedMesh(
        vertices=torch.from_numpy(vertices),
        faces=torch.from_numpy(faces),
        center=(x, y, z),
        scale=scale,
        watertight=watertight,
        up=up,
    )


def _has_area(vertices: np.ndarray, faces: np.ndarray) -> bool:
    """Return whether a face has three corners that don't lie on a line, as far as float64 tells."""
    for part in np.array_split(faces, max(1, len(faces) // _AREA_FACES)):
        corners = vertices[part]
        largest = np.abs(corners).max(axis=(1, 2), keepdims=True)
        corners = corners / np.where(
            largest > 0, largest, 1
        )  # neither the largest nor the least floats over- or underflow
        sides = corners[:, 1:] - corners[:, :1]
        longest = np.abs(sides).max(axis=(1, 2))
        crossed = np.abs(np.cross(sides[:, 0], sides[:, 1])).max(axis=1)
        if (crossed > _FLAT * longest * longest).any():
            return True
    return False


def _weld(vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different vertices `[W, 3]`, sorted, and which of them each of the given `[V, 3]` is. int64 `[V]`"""
    order = np.lexsort(vertices.T[::-1])
    ranked = vertices[order]
    new = np.append(True, (ranked[1:] != ranked[:-1]).any(axis=1))
    number = np.empty(len(vertices), dtype=np.int64)
    number[order] = np.cumsum(new) - 1
    return ranked[new], number


def to_source_units(
    mesh: trimesh.Trimesh, center: tuple[float, float, float], scale: float, up: str = "y"
) -> trimesh.Trimesh:
    """Move a mesh from the world cube back to the units, place and axes of its source."""
    vertices = lay_back(np.asarray(mesh.vertices) / scale, up) + np.asarray(center)
    return trimesh.Trimesh(vertices, mesh.faces, process=False)
