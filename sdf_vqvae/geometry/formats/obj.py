"""OBJ files: vertices and polygons. Materials, groups, normals and texture coordinates are not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numba import njit

from sdf_vqvae.geometry.formats.mesh_file import MAX_VERTICES, OwnFolder
from sdf_vqvae.geometry.formats.polygons import Polygons, read_polygons
from sdf_vqvae.geometry.formats.text_scan import (
    COMPILED,
    as_text,
    code_of,
    ends_word,
    is_blank,
    is_end,
    larger,
    line_of,
    number,
    settle,
    skip_line,
    skip_word,
    whole,
    word_at,
    word_code,
)
from sdf_vqvae.geometry.formats.writing import row_of, rows_of, write_rows

_VALUES = 8
"""Most numbers of a vertex: x y z w r g b a."""


_V, _F, _FO = code_of("v"), code_of("f"), code_of("fo")
# What follows on the next line after a backslash belongs to them too; names may end in one.
_NUMBERED = np.array([code_of(w) for w in ("vt", "vn", "vp", "l", "p", "parm", "curv", "curv2", "trim", "hole",
                                         "scrv", "sp", "bmat", "con", "cstype", "deg", "step", "end")])  # fmt: skip
_NAMED = np.array([code_of(w) for w in ("g", "o", "s", "mg", "usemtl", "mtllib", "usemap", "maplib", "bevel", "lod",
                                      "c_interp", "d_interp", "ctech", "stech", "shadow_obj",
                                      "trace_obj")])  # fmt: skip
_SURFACES = {
    "surf": "a free-form surface",
    "bzp": "a Bezier patch",
    "bsp": "a B-spline patch",
    "cdp": "a Cardinal patch",
    "call": "a line that includes another file",
    "csh": "a line that runs a command",
}
_REFUSED = np.array([code_of(w) for w in _SURFACES])

_DONE, _NOT_NUMBER, _TOO_FEW, _TOO_MANY, _NOT_CORNER, _ZERO, _FAR, _SURFACE, _LOOKS_LIKE_DATA, _SIZE = range(10)


def read(file: Path, folder: OwnFolder) -> trimesh.Trimesh:
    """Read an OBJ file."""
    return read_polygons(file, read_obj)


def read_obj(data: bytes) -> Polygons:
    """Read vertices (`v`) and polygons (`f`, and its old name `fo`); words may be written in capitals.

    Relative corners count from where their line stands. Of a vertex x, y, z are read: w is a weight of free-form
    curves, and what follows a color. Lines and points (`l`, `p`) have no area.

    Raises:
        ValueError: a line that is not understood, with its number; or surfaces other than polygons.
    """
    data = as_text(data)
    text = np.frombuffer(data, np.uint8)
    code, place, values, vertices, corners, filled, counts, polygons, unknown, ignored = _scan(text, 1 << 62)
    corners = corners[:filled]
    if code == _DONE and filled and corners.max() >= vertices:
        code, place = _scan(text, vertices)[:2]
    if code != _DONE:
        raise ValueError(f"{line_of(data, place)}: {_complaint(code, data, place, vertices)}")
    notes: tuple[str, ...] = ()
    if ignored:
        more = f", and {ignored - 1:,} more such lines" if ignored > 1 else ""
        notes = (f"{line_of(data, unknown)} begins with {word_at(data, unknown)}, no word of OBJ: ignored{more}",)
    return Polygons(
        vertices=settle(values[: 3 * vertices].reshape(-1, 3), data),
        corners=corners,
        counts=counts[:polygons],
        notes=notes,
    )


def _complaint(code: int, data: bytes, place: int, vertices: int) -> str:
    word = word_at(data, place)
    if code == _SURFACE:
        name = word.strip("'").lower()
        return f"{word} is {_SURFACES[name]}, which is not read; only polygons are"
    return {
        _NOT_NUMBER: f"a vertex has three numbers or more, but here stands {word}",
        _TOO_FEW: "a face has three corners or more",
        _TOO_MANY: f"a vertex has at most {_VALUES} numbers, but {word} follows",
        _NOT_CORNER: f"{word} is no corner of a face (a, a/b, a//c or a/b/c with whole numbers)",
        _ZERO: f"{word}: vertices are counted from 1, or from -1 backwards",
        _FAR: f"{word}: there are {vertices:,} vertices",
        _LOOKS_LIKE_DATA: f"{word} begins a line, which is neither a word of OBJ nor continues the line before",
        _SIZE: f"more than the {MAX_VERTICES:,} vertices that are read",
    }[code]


@njit(**COMPILED)
def _next(data: Any, place: int) -> int:
    """Return the next place that isn't white space; a backslash and the line end behind it are."""
    while place < len(data):
        if is_blank(data[place]):
            place += 1
        elif data[place] == 92 and place + 1 < len(data) and is_end(data[place + 1]):
            place += 3 if data[place + 1] == 13 and place + 2 < len(data) and data[place + 2] == 10 else 2
        else:
            break
    return place


@njit(**COMPILED)
def _at_end(data: Any, place: int) -> bool:
    """Return whether nothing but a comment follows on a line."""
    return place >= len(data) or is_end(data[place]) or data[place] == 35


@njit(**COMPILED)
def _skip_rest(data: Any, place: int) -> int:
    """Return the place of the end of a line, which may be continued."""
    place = _next(data, place)
    while not _at_end(data, place):
        # A backslash within a line ends a word, and is none itself.
        place = _next(data, max(skip_word(data, place), place + 1))
    return skip_line(data, place)


@njit(**COMPILED)
def _is_in(code: int, codes: Any) -> bool:
    found = False
    for known in codes:
        found |= code == known
    return found


@njit(**COMPILED)
def _corner(data: Any, place: int, vertices: int) -> tuple[int, int, int]:
    """Return the vertex of a corner, counted from 0, the place behind it, and what is wrong with it."""
    start = place
    index, place = whole(data, place)
    if place == start:
        return 0, place, _NOT_CORNER
    slashes = 0
    while place < len(data) and data[place] == 47:
        slashes += 1
        _, place = whole(data, place + 1)
    if slashes > 2 or (place < len(data) and not ends_word(data[place])):
        return 0, start, _NOT_CORNER
    if index == 0:
        return 0, start, _ZERO
    if index < 0:
        index += vertices + 1
        if index <= 0:
            return 0, start, _FAR
    return index - 1, place, _DONE


@njit(**COMPILED)
def _scan(data: Any, most: int) -> tuple[int, int, Any, int, Any, int, Any, int, int, int]:
    """Read all lines; stop at one that isn't understood, or has a corner of `most` or more.

    Returns:
        What was wrong and where; coordinates, corners and counts, each in an array that is larger and the number of
        vertices, corners and polygons; the place of the first unknown word, and how many there are.
    """
    values = np.empty(3 << 10, np.float64)
    corners = np.empty(1 << 10, np.int64)
    counts = np.empty(1 << 8, np.int64)
    vertices = filled = polygons = 0
    unknown, ignored = -1, 0
    code, wrong = _DONE, 0
    place = 0
    while code == _DONE:
        while place < len(data) and (is_blank(data[place]) or is_end(data[place])):
            place += 1
        if place >= len(data):
            break
        start = place
        place = skip_word(data, place)
        word = word_code(data, start, place)
        if word == _V:
            if 3 * vertices == len(values):
                values = larger(values)
            if vertices == MAX_VERTICES:
                code, wrong = _SIZE, start
                break
            found = 0
            place = _next(data, place)
            while not _at_end(data, place):
                behind = place
                if found < 3:
                    values[3 * vertices + found], behind = number(data, place)
                else:
                    # Not read, but a number: two lines that became one are no color.
                    byte = data[place] | 32
                    if 48 <= byte <= 57 or 43 <= byte <= 46 or byte == 110 or byte == 105:
                        behind = skip_word(data, place)
                if behind == place or found == _VALUES:
                    code, wrong = (_NOT_NUMBER if behind == place else _TOO_MANY), place
                    break
                found += 1
                place = _next(data, behind)
            if code == _DONE and found < 3:
                code, wrong = _NOT_NUMBER, place
            vertices += 1
        elif word in (_F, _FO):
            if polygons == len(counts):
                counts = larger(counts)
            found = 0
            place = _next(data, place)
            while not _at_end(data, place):
                if filled == len(corners):
                    corners = larger(corners)
                index, behind, code = _corner(data, place, vertices)
                if code == _DONE and index >= most:
                    code = _FAR
                if code != _DONE:
                    wrong = place
                    break
                corners[filled] = index
                filled += 1
                found += 1
                place = _next(data, behind)
            if code == _DONE and found < 3:
                code, wrong = _TOO_FEW, start
            counts[polygons] = found
            polygons += 1
        elif data[start] == 35:
            pass
        elif _is_in(word, _NUMBERED):
            place = _skip_rest(data, place)
        elif _is_in(word, _REFUSED):
            code, wrong = _SURFACE, start
        elif not _is_in(word, _NAMED):
            # A line that was broken without a backslash, or a blank that was lost behind `f` or `v`.
            first = data[start] | 32
            second = data[start + 1] if start + 1 < len(data) else np.uint8(10)
            if 43 <= first <= 57 or (first in (102, 118) and 43 <= second <= 57):
                code, wrong = _LOOKS_LIKE_DATA, start
            unknown = start if ignored == 0 else unknown
            ignored += 1
        place = skip_line(data, place)
    return code, wrong, values, vertices, corners, filled, counts, polygons, unknown, ignored


def write(path: Path, mesh: trimesh.Trimesh, note: str) -> None:
    """Write the mesh's geometry, as many digits as the object's size asks for."""
    write_rows(path, _rows(mesh, note))


def _rows(mesh: trimesh.Trimesh, note: str) -> Iterator[str]:
    """Yield the text of an OBJ file."""
    yield f"# {note}\n" if note else ""
    yield from rows_of(f"v {row_of(mesh.vertices)}\n", mesh.vertices)
    yield from rows_of("f %d %d %d\n", np.asarray(mesh.faces) + 1)
