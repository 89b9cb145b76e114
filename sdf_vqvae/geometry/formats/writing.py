"""Mesh files out, each in the precision of the object itself, however far from the origin it stands.

A coordinate counts in parts of the object's longest side, not of the distance to the origin: 32-bit floats know a
house at UTM coordinates to half a metre. Knows formats and numbers; nothing of what the mesh is.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from sdf_vqvae.geometry.formats import WRITABLE
from sdf_vqvae.geometry.up import up_note
from sdf_vqvae.utils.files import atomic_path

logger = logging.getLogger(__name__)

_LOST = 5e-7
"""What writing a GLB file's positions as 32-bit floats may cost, in parts of the object's longest side."""
_LOST_BY_STL = 2e-5
"""The same for STL, where it costs the object's place to do better: a two-hundredth of a voxel at 256^3."""
_DIGITS = 9
"""Significant digits, as many as 32-bit floats have, of a coordinate as large as the object."""
_ROWS = 2**16  # of text, made at once
_STL_HEADER = 80


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
    note = "" if up is None else up_note(up)
    taken = _place_for_stl(path, mesh) if suffix == ".stl" else None
    with atomic_path(path) as temporary:
        if suffix == ".glb":
            _as_scene(mesh).export(temporary, file_type="glb", tree_postprocessor=functools.partial(_say, note=note))
        elif suffix == ".stl":
            temporary.write_bytes(_stl(mesh, taken, note))
        elif suffix == ".ply":
            temporary.write_bytes(_ply(mesh, note))
        else:
            with temporary.open("w", encoding="ascii") as file:
                file.writelines(_obj(mesh, note) if suffix == ".obj" else _off(mesh, note))
    if taken is not None:
        logger.warning(
            "%s: STL holds 32-bit floats, too coarse for an object that far from the origin: %s were taken from its "
            "x, y and z (GLB, PLY, OBJ and OFF keep its place)",
            path,
            ", ".join(map(repr, taken)),
        )
    return taken


# -- 32-bit floats -----------------------------------------------------------------------------------------------


def _half_side(vertices: np.ndarray) -> float:
    """Return half the longest side of the bounding box of `[V, 3]`: the whole one may exceed the largest float."""
    if len(vertices) == 0:
        return 0.0
    return float((vertices.max(axis=0) / 2 - vertices.min(axis=0) / 2).max())


def _loses(vertices: np.ndarray, share: float) -> bool:
    """Return whether 32-bit floats are off by more than a share of the longest side."""
    half = _half_side(vertices)
    if half == 0:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(vertices - vertices.astype(np.float32))
    return not float(off.max()) / 2 <= share * half


def _round_center(vertices: np.ndarray) -> np.ndarray:
    """Return a place within the object's size of its center, of numbers with few digits. float64 `[3]`"""
    center = vertices.min(axis=0) / 2 + vertices.max(axis=0) / 2
    places = -math.floor(math.log10(_half_side(vertices)))
    return np.array([round(float(value), places) for value in center])


def _as_scene(mesh: trimesh.Trimesh) -> trimesh.Trimesh | trimesh.Scene:
    """Return the mesh, or where 32-bit floats would lose too much of it, a scene whose one node puts it in place."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not _loses(vertices, _LOST):
        return mesh
    center, unit = _round_center(vertices), 1.0
    if _loses(vertices - center, _LOST):  # beyond what 32-bit floats count at all
        unit = 2.0 ** round(math.log2(_half_side(vertices)))
    moved = mesh.copy()
    moved.vertices = (vertices - center) / unit
    place = np.diag([unit, unit, unit, 1.0])
    place[:3, 3] = center
    scene = trimesh.Scene()
    scene.add_geometry(moved, transform=place)
    return scene


def _say(document: dict[str, Any], note: str) -> None:
    """Put a note into a glTF document."""
    if note:
        document["asset"]["generator"] = f"{document['asset'].get('generator', '')} {note}".strip()


def _place_for_stl(path: str | os.PathLike[str], mesh: trimesh.Trimesh) -> tuple[float, float, float] | None:
    """Return what has to be taken from a mesh's coordinates for STL to hold it; None where nothing has to be."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not _loses(vertices, _LOST_BY_STL):
        return None
    center = _round_center(vertices)
    if _loses(vertices - center, _LOST_BY_STL):
        raise ValueError(
            f"{path}: STL holds 32-bit floats, and none for an object of size {2 * _half_side(vertices):g}: write "
            "GLB, PLY, OBJ or OFF"
        )
    x, y, z = (float(value) for value in center)
    return x, y, z


def _stl(mesh: trimesh.Trimesh, taken: tuple[float, float, float] | None, up_note: str) -> bytes:
    """Return a binary STL file; its header names what was taken from the coordinates."""
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces)]  # [F, 3, 3]
    note = up_note.encode()
    if taken is not None:
        corners = corners - taken
        note = f"{up_note} moved by {' '.join(f'{-value:.12g}' for value in taken)}".strip().encode()
    sides = corners[:, 1:] - corners[:, :1]
    sides /= np.maximum(np.abs(sides).max(axis=(1, 2), keepdims=True), np.finfo(np.float64).tiny)
    normals = np.cross(sides[:, 0], sides[:, 1])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    rows = np.zeros(len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attributes", "<u2")])
    rows["normal"], rows["corners"] = normals, corners
    return note[:_STL_HEADER].ljust(_STL_HEADER, b"\0") + struct.pack("<I", len(rows)) + rows.tobytes()


# -- 64-bit floats -----------------------------------------------------------------------------------------------


def _ply(mesh: trimesh.Trimesh, note: str) -> bytes:
    """Return a binary PLY file with coordinates of 64 bits."""
    vertices = np.asarray(mesh.vertices, dtype="<f8")
    faces = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0"] + ([f"comment {note}"] if note else [])
    header += [f"element vertex {len(vertices)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode() + vertices.tobytes() + faces.tobytes()


def _obj(mesh: trimesh.Trimesh, note: str) -> Iterator[str]:
    """Yield the text of an OBJ file."""
    yield f"# {note}\n" if note else ""
    yield from _lines(f"v {_row_of(mesh.vertices)}\n", mesh.vertices)
    yield from _lines("f %d %d %d\n", np.asarray(mesh.faces) + 1)


def _off(mesh: trimesh.Trimesh, note: str) -> Iterator[str]:
    """Yield the text of an OFF file."""
    yield "OFF\n" + (f"# {note}\n" if note else "")
    yield f"{len(mesh.vertices)} {len(mesh.faces)} 0\n"
    yield from _lines(f"{_row_of(mesh.vertices)}\n", mesh.vertices)
    yield from _lines("3 %d %d %d\n", mesh.faces)


def _row_of(vertices: np.ndarray) -> str:
    """Return the format of a vertex: with digits for the distance to the origin beside those for the object."""
    half = _half_side(vertices)
    distance = float(np.abs(vertices).max()) / half if half > 0 else math.inf
    digits = 17 if distance == math.inf else min(17, _DIGITS + math.ceil(math.log10(distance)))
    return " ".join([f"%.{digits}g"] * 3)


def _lines(row: str, values: np.ndarray) -> Iterator[str]:
    """Yield the rows of a table `[N, 3]` as text, many at once."""
    for start in range(0, len(values), _ROWS):
        part = np.asarray(values[start : start + _ROWS])
        yield row * len(part) % tuple(part.reshape(-1).tolist())
