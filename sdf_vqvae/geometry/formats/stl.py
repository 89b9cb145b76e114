"""STL files, read in binary and as text, written in binary."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numba import njit

from sdf_vqvae.geometry.formats.mesh_file import OwnFolder, check_size
from sdf_vqvae.geometry.formats.polygons import Polygons, read_polygons
from sdf_vqvae.geometry.formats.text_scan import (
    COMPILED,
    as_text,
    code_of,
    decoded,
    larger,
    line_of,
    number,
    settle,
    skip_blanks,
    skip_line,
    skip_white,
    skip_word,
    word_at,
    word_code,
)
from sdf_vqvae.geometry.formats.writing import half_side, loses_in_float32, round_center
from sdf_vqvae.utils.files import atomic_path

logger = logging.getLogger(__name__)

_TITLE = 80  # bytes before the number of triangles
_HEADER = _TITLE + 4
_LOST = 2e-5
"""What writing 32-bit floats may cost, in parts of the object's longest side: a two-hundredth of a voxel at 256^3. To
do better would cost the object's place."""
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


def read(file: Path, folder: OwnFolder) -> trimesh.Trimesh:
    """Read an STL file."""
    return read_polygons(file, read_stl)


def read_stl(data: bytes) -> Polygons:
    """Read an STL file of either kind, whatever its header begins with; bytes behind the last triangle are noted.

    Raises:
        ValueError: a binary file claims more triangles than it holds, or none and holds some; a text is not
            understood, with the line, or ends early.
    """
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= _HEADER else 0
    if len(data) == _HEADER + _TRIANGLE.itemsize * count:
        return _binary(data, [(_HEADER, count)], 0)
    text = decoded(data)
    # Triangles in binary have zero bytes, in their attributes at least; text has none.
    if text[:80].lstrip()[:5].lower() in (b"solid", b"facet") and b"\0" not in text.rstrip(b"\0"):
        return _text(as_text(text))
    return _binary(data, *_solids(data))


def _solids(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """Return where the triangles of a binary file stand, and their numbers; and how many bytes are left."""
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= _HEADER else 0
    held = max(0, len(data) - _HEADER) // _TRIANGLE.itemsize
    if count == 0 and held == 0:
        raise ValueError(f"it is neither text (solid ... endsolid) nor holds a triangle in its {len(data):,} bytes")
    if count == 0:
        raise ValueError(f"its header claims 0 triangles, but the file has room for {held:,}: it was not finished")
    if count > held:
        raise ValueError(f"its header claims {count:,} triangles, but the file has room for {held:,}")
    end = _HEADER + _TRIANGLE.itemsize * count
    solids = [(_HEADER, count)]
    # Files that were put one behind the other; other bytes there don't look like that.
    while len(data) - end > _HEADER:
        more = struct.unpack_from("<I", data, end + 80)[0]
        if more == 0 or end + _HEADER + _TRIANGLE.itemsize * more > len(data):
            break
        solids.append((end + _HEADER, more))
        end += _HEADER + _TRIANGLE.itemsize * more
    return solids, len(data) - end


def _binary(data: bytes, solids: list[tuple[int, int]], left: int) -> Polygons:
    count = sum(n for _, n in solids)
    check_size(count, 3 * count)
    points = np.empty((count, 3, 3))
    filled = 0
    for start, triangles in solids:
        points[filled : filled + triangles] = np.frombuffer(data, _TRIANGLE, triangles, start)["corners"]
        filled += triangles
    notes = (f"{left:,} bytes behind its {count:,} triangles are not read",) if left else ()
    return Polygons(
        vertices=points.reshape(-1, 3), corners=np.arange(3 * count), counts=np.full(count, 3), notes=notes
    )


def _text(data: bytes) -> Polygons:
    code, place, values, counts, facets = _facets(np.frombuffer(data, np.uint8))
    if code == _ENDED:
        raise ValueError("it ends before endsolid")
    if code != _DONE:
        says = {
            _UNKNOWN: f"{word_at(data, place)} stands where STL has another word",
            _TOO_FEW: "a facet ends that has fewer than three vertices",
            _NOT_NUMBER: "a vertex has three numbers",
        }
        raise ValueError(f"{line_of(data, place)}: {says[code]}")
    counts = counts[:facets]
    corners = int(counts.sum())
    return Polygons(
        vertices=settle(values[: 3 * corners].reshape(-1, 3), data), corners=np.arange(corners), counts=counts
    )


_DONE, _ENDED, _UNKNOWN, _TOO_FEW, _NOT_NUMBER = range(5)
_BETWEEN, _IN_FACET, _IN_LOOP, _BEHIND_LOOP = range(4)


_SOLID, _ENDSOLID, _FACET, _OUTER, _VERTEX, _ENDLOOP, _ENDFACET = (
    code_of(w) for w in ("solid", "endsolid", "facet", "outer", "vertex", "endloop", "endfacet")
)


@njit(**COMPILED)
def _skip_words(data: Any, place: int, count: int) -> int:
    for _ in range(count):
        place = skip_word(data, skip_blanks(data, place))
    return place


@njit(**COMPILED)
def _facets(data: Any) -> tuple[int, int, Any, Any, int]:
    """Return what was wrong and where; coordinates, and corners of each facet, in larger arrays; how many facets."""
    values = np.empty(9 << 8, np.float64)
    counts = np.empty(1 << 8, np.int64)
    filled = facets = found = 0
    state, closed = _BETWEEN, False
    place = skip_white(data, 0)
    while place < len(data):
        start = place
        place = skip_word(data, place)
        code = word_code(data, start, place)
        if state == _BETWEEN and code in (_SOLID, _ENDSOLID):
            # A name follows, which may be anything.
            closed = code == _ENDSOLID
            place = skip_line(data, place)
        elif state == _BETWEEN and code == _FACET:
            place = _skip_words(data, place, 4)  # normal x y z
            state, found, closed = _IN_FACET, 0, False
        elif state == _IN_FACET and code == _OUTER:
            place = _skip_words(data, place, 1)  # loop
            state = _IN_LOOP
        elif state == _IN_LOOP and code == _VERTEX:
            for _ in range(3):
                place = skip_blanks(data, place)
                if place >= len(data) or data[place] == 10 or data[place] == 13:
                    return _NOT_NUMBER, start, values, counts, facets
                if filled == len(values):
                    values = larger(values)
                values[filled], place = number(data, place)
                filled += 1
            found += 1
        elif state == _IN_LOOP and code == _ENDLOOP:
            state = _BEHIND_LOOP
        elif state == _BEHIND_LOOP and code == _ENDFACET:
            if found < 3:
                return _TOO_FEW, start, values, counts, facets
            if facets == len(counts):
                counts = larger(counts)
            counts[facets] = found
            facets += 1
            state = _BETWEEN
        else:
            return _UNKNOWN, start, values, counts, facets
        place = skip_white(data, place)
    return (_DONE if closed and state == _BETWEEN else _ENDED), place, values, counts, facets


def write(path: Path, mesh: trimesh.Trimesh, note: str) -> tuple[float, float, float] | None:
    """Write a binary file, near the origin where 32-bit floats can't hold the mesh in place: the header says so."""
    taken = _place_taken(path, mesh)
    with atomic_path(path) as temporary:
        temporary.write_bytes(_bytes_of(mesh, taken, note))
    if taken is not None:
        logger.warning(
            "%s: STL holds 32-bit floats, too coarse for an object that far from the origin: %s were taken from its "
            "x, y and z (GLB, PLY, OBJ and OFF keep its place)",
            path,
            ", ".join(map(repr, taken)),
        )
    return taken


def _place_taken(path: Path, mesh: trimesh.Trimesh) -> tuple[float, float, float] | None:
    """Return what has to be taken from a mesh's coordinates for STL to hold it; None where nothing has to be."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not loses_in_float32(vertices, _LOST):
        return None
    center = round_center(vertices)
    if loses_in_float32(vertices - center, _LOST):
        raise ValueError(
            f"{path}: STL holds 32-bit floats, and none for an object of size {2 * half_side(vertices):g}: write "
            "GLB, PLY, OBJ or OFF"
        )
    x, y, z = (float(value) for value in center)
    return x, y, z


def _bytes_of(mesh: trimesh.Trimesh, taken: tuple[float, float, float] | None, up_note: str) -> bytes:
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
    return note[:_TITLE].ljust(_TITLE, b"\0") + struct.pack("<I", len(rows)) + rows.tobytes()
