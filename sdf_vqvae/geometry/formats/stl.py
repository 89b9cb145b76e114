"""Reader of STL files, binary and as text."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numba import njit

from sdf_vqvae.geometry.formats.mesh_file import check_size
from sdf_vqvae.geometry.formats.polygons import Polygons
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

_HEADER = 84
_TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])


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
