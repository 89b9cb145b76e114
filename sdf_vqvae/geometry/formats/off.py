"""OFF files: vertices and polygons, read from text and binary, written as text.

Colors, normals and the like are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import trimesh

from sdf_vqvae.geometry.formats.binary_rows import Column, column_of
from sdf_vqvae.geometry.formats.mesh_file import OwnFolder, check_size
from sdf_vqvae.geometry.formats.polygons import Polygons, polygons_of, read_polygons
from sdf_vqvae.geometry.formats.text_rows import CORNERS, read_rows, white_end
from sdf_vqvae.geometry.formats.text_scan import as_text, decoded, line_of, word_at
from sdf_vqvae.geometry.formats.writing import row_of, rows_of, write_rows

_KEYWORD = re.compile(rb"((?:ST|C|N|4|n)*)(OFF|off)(?=[\s#\d])[ \t]*(BINARY\b)?")
_COUNT = re.compile(rb"\d{1,18}(?=[\s#]|$)")
_EDGES = re.compile(rb"\s*\d+[ \t]*(?=[\r\n#]|$)")  # may be left out; nobody needs it
_POINT = ((False, 0), (False, 1), (False, 2))
_FACE = ((True, CORNERS),)
_INT, _FLOAT = np.dtype(">i4"), np.dtype(">f4")


def read(file: Path, folder: OwnFolder) -> trimesh.Trimesh:
    """Read an OFF file."""
    return read_polygons(file, read_off)


def read_off(data: bytes) -> Polygons:
    """Read OFF, with or without its keyword, and its kinds with colors (C), normals (N) and texture places (ST).

    Raises:
        ValueError: the header is not understood or claims more than the file holds, a row is not as it should be, or
            the vertices have other than three coordinates (4OFF, nOFF).
    """
    data = decoded(data)
    start = white_end(data, 0, comments=True)
    keyword = _KEYWORD.match(data, start)
    if keyword is not None:
        kind = keyword[1].decode()
        if "4" in kind or "n" in kind:
            raise ValueError(f"its vertices have other than three coordinates ({kind}OFF), which are not read")
        if keyword[3]:
            return _binary(data, keyword.end(), kind)
        start = keyword.end()
    data = as_text(data)
    counts = []
    place = start
    for _ in range(2):
        place = white_end(data, place, comments=True)
        number = _COUNT.match(data, place)
        if number is None:
            raise ValueError(
                f"{line_of(data, place)}: {word_at(data, place)} stands for the number of vertices or faces"
            )
        counts.append(int(number[0]))
        place = number.end()
    edges = _EDGES.match(data, place)
    place = edges.end() if edges else place
    _check(counts[0], counts[1], len(data) - place, 6, 2)
    points = read_rows(data, place, "vertex", counts[0], _POINT, comments=True)
    faces = read_rows(data, points.end, "face", counts[1], _FACE, comments=True)
    end = white_end(data, faces.end, comments=True)
    notes = (f"{line_of(data, end)}: what follows its {counts[1]:,} faces is not read",) if end < len(data) else ()
    return polygons_of(points.points, faces.corners, faces.counts, notes)


def _check(vertices: int, faces: int, left: int, point: int, face: int) -> None:
    """Raise a ValueError if a header claims more than the bytes that follow."""
    if vertices * point + faces * face > left + 1:
        raise ValueError(f"its header claims {vertices:,} vertices and {faces:,} faces, but {left:,} bytes follow")
    check_size(0, vertices)


def _binary(data: bytes, place: int, kind: str) -> Polygons:
    """Read the binary kind: numbers of four bytes, the first byte the highest."""
    place = data.find(b"\n", place) + 1
    if place == 0 or len(data) - place < 12:
        raise ValueError("it ends before the numbers of vertices and faces")
    vertices, faces = (int(n) for n in np.frombuffer(data, _INT, 2, place))
    place += 12
    values = 3 + 3 * kind.count("N") + 4 * kind.count("C") + 2 * kind.count("ST")
    if vertices < 0 or faces < 0:
        raise ValueError(f"its header claims {vertices:,} vertices and {faces:,} faces")
    _check(vertices, faces, len(data) - place, 4 * values, 8)
    points = np.frombuffer(data, _FLOAT, vertices * values, place).reshape(-1, values)[:, :3].astype(np.float64)
    place += 4 * vertices * values
    columns: list[Column] = [(_INT, _INT), (_INT, _FLOAT)]  # corners, and the color
    corners, counts, place = column_of(data, place, "face", faces, columns, 0)
    notes = (f"{len(data) - place:,} bytes behind its last face are not read",) if data[place:].strip() else ()
    return polygons_of(points, corners.astype(np.int64), counts, notes)


def write(path: Path, mesh: trimesh.Trimesh, note: str) -> None:
    """Write the mesh's geometry, as many digits as the object's size asks for."""
    write_rows(path, _rows(mesh, note))


def _rows(mesh: trimesh.Trimesh, note: str) -> Iterator[str]:
    """Yield the text of an OFF file."""
    yield "OFF\n" + (f"# {note}\n" if note else "")
    yield f"{len(mesh.vertices)} {len(mesh.faces)} 0\n"
    yield from rows_of(f"{row_of(mesh.vertices)}\n", mesh.vertices)
    yield from rows_of("3 %d %d %d\n", mesh.faces)
