"""Reader of PLY files, as text and binary: vertices, polygons, strips. Colors and the like are not read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import trimesh

from sdf_vqvae.geometry.formats.binary_rows import Column, column_of
from sdf_vqvae.geometry.formats.mesh_file import OwnFolder, check_size, short
from sdf_vqvae.geometry.formats.polygons import Polygons, polygons_of, read_polygons, strip_triangles
from sdf_vqvae.geometry.formats.text_rows import CORNERS, SKIPPED, read_rows, white_end
from sdf_vqvae.geometry.formats.text_scan import decoded
from sdf_vqvae.utils.files import atomic_path

MAX_HEADER = 2**16
"""Longest header of a PLY file; a hundred properties need 3 KB, comments some more."""
MAX_LISTS = 64
"""Most list properties of a PLY file; meshes have one or two."""
_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
          "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
          "int64": "i8", "uint64": "u8", "float16": "f2", "float32": "f4", "float64": "f8"}  # fmt: skip
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_LINE = re.compile(rb"([^\r\n]*)(\r\n|\r|\n)")
_CORNER_LISTS = ("vertex_indices", "vertex_index")
_FACES, _STRIPS, _VERTICES = "face", "tristrips", "vertex"


@dataclass(frozen=True, kw_only=True)
class _Property:
    name: str
    length: np.dtype | None
    """Type of a list's length; None for a single value."""
    values: np.dtype


@dataclass(frozen=True, kw_only=True)
class _Element:
    name: str
    count: int
    properties: list[_Property] = field(default_factory=list)

    @property
    def corners(self) -> int:
        """Which property lists vertices, or -1."""
        names = [p.name if p.length is not None else "" for p in self.properties]
        return next((names.index(name) for name in _CORNER_LISTS if name in names), -1)


def read(file: Path, folder: OwnFolder) -> trimesh.Trimesh:
    """Read a PLY file."""
    return read_polygons(file, read_ply)


def read_ply(data: bytes) -> Polygons:
    """Read the elements `vertex` (x, y, z), `face` and `tristrips` (vertex_indices or vertex_index), in any order.

    Raises:
        ValueError: the header is not understood or claims more than the file holds, a row is not as it says, or
            another element refers to vertices.
    """
    if data[:3].lower() != b"ply":
        data = decoded(data)
    order, elements, place = _header(data)
    _check(elements, len(data) - place, order == "=")
    points = np.empty((0, 3))
    faces: list[tuple[np.ndarray, np.ndarray]] = []
    for element in elements:
        if not element.properties:
            continue
        if order == "=":
            rows = read_rows(data, place, element.name, element.count, _columns(element))
            found, corners, counts, place = rows.points, rows.corners, rows.counts, rows.end
        else:
            found, corners, counts, place = _binary(data, place, element)
        if element.name == _VERTICES:
            points = found
        elif element.name == _FACES:
            faces.append((corners, counts))
        elif element.name == _STRIPS:
            triangles = _strips(corners, counts, element.properties[element.corners].values)
            faces.append((triangles.reshape(-1), np.full(len(triangles), 3)))
    end = white_end(data, place)
    notes = (f"{len(data) - place:,} bytes behind its last element are not read",) if data[end:].strip(b"\0") else ()
    if len(faces) == 1:
        return polygons_of(points, *faces[0], notes)
    corners = np.concatenate([np.empty(0, np.int64), *(c for c, _ in faces)])
    return polygons_of(points, corners, np.concatenate([np.empty(0, np.int64), *(n for _, n in faces)]), notes)


def _header(data: bytes) -> tuple[str, list[_Element], int]:
    """Return the byte order (`=`: text), the elements, and where they begin."""
    order = ""
    elements: list[_Element] = []
    place = number = 0
    own_end = b""
    while place < MAX_HEADER:
        line = _LINE.match(data, place)
        if line is None:
            break
        number += 1
        words = line[1].decode("latin-1").split()
        if number == 1 and [w.lower() for w in words] != ["ply"]:
            break
        own_end = own_end or line[2]
        # A lone CR, or an LF behind it that is already data: as the first line ends.
        place = line.end() - (1 if line[2] == b"\r\n" and own_end == b"\r" else 0)
        if words == ["end_header"]:
            if not order:
                raise ValueError("its header has no line `format`")
            return order, elements, place
        try:
            if words[:1] == ["format"]:
                order = _ORDERS[words[1]]
                if words[2:] != ["1.0"]:
                    raise ValueError("only version 1.0 is read")
            elif words[:1] == ["element"]:
                name, count = words[1:]
                elements.append(_Element(name=name, count=int(count)))
            elif words[:1] == ["property"]:
                elements[-1].properties.append(_property(words[1:], order))
            elif words and words[0] not in ("ply", "comment", "obj_info"):
                raise ValueError("this word is none of PLY's")
        except (ValueError, LookupError) as error:
            why = f" ({error})" if isinstance(error, ValueError) else ""
            raise ValueError(
                f"line {number} of its header is not understood: {short(' '.join(words))}{why}"
            ) from error
    raise ValueError(f"it has no PLY header (ply ... end_header) in its first {MAX_HEADER:,} bytes")


def _property(words: list[str], order: str) -> _Property:
    if words[0] != "list":
        kind, name = words
        return _Property(name=name, length=None, values=np.dtype(order + _TYPES[kind]))
    length, kind, name = words[1:]
    counted_in = np.dtype(order + _TYPES[length])
    if counted_in.kind == "f":
        raise ValueError("a list's length is a whole number")
    return _Property(name=name, length=counted_in, values=np.dtype(order + _TYPES[kind]))


def _check(elements: list[_Element], left: int, is_text: bool) -> None:
    """Raise a ValueError if a header claims more than follows, or has elements whose meaning is not known."""
    if sum(p.length is not None for e in elements for p in e.properties) > MAX_LISTS:
        raise ValueError(f"it has more than {MAX_LISTS} list properties")
    for element in elements:
        name, count = element.name, element.count
        # A value takes two bytes as text, or its type's; a list at least its length.
        row = sum(2 if is_text else (p.length or p.values).itemsize for p in element.properties)
        if count < 0 or count * row > left + 1:
            raise ValueError(
                f"its header claims {count:,} of the element {name!r}, {row} bytes or more each, but {left:,} follow"
            )
        names = [p.name for p in element.properties if p.length is None]
        if name == _VERTICES and count and not {"x", "y", "z"} <= set(names):
            raise ValueError(f"its vertices have no x, y and z, but {short(', '.join(names))}")
        if name in (_FACES, _STRIPS) and count and element.corners < 0:
            raise ValueError(f"the element {name!r} has no list {_CORNER_LISTS[0]} or {_CORNER_LISTS[1]}")
        if name not in (_FACES, _STRIPS, _VERTICES) and count and element.corners >= 0:
            raise ValueError(f"the element {name!r} refers to vertices, and is not read; faces and tristrips are")
    seen = [e.name for e in elements]
    for name in (_VERTICES, _FACES, _STRIPS):
        if seen.count(name) > 1:
            raise ValueError(f"the element {name!r} stands in its header {seen.count(name)} times")
    check_size(0, max((e.count for e in elements), default=0))


def _columns(element: _Element) -> tuple[tuple[bool, int], ...]:
    """Return what the columns of an element are, as text rows are described."""
    roles = [SKIPPED] * len(element.properties)
    if element.name == _VERTICES and element.count:
        names = [p.name if p.length is None else "" for p in element.properties]
        for axis, name in enumerate("xyz"):
            roles[names.index(name)] = axis
    elif element.name in (_FACES, _STRIPS) and element.count:
        roles[element.corners] = CORNERS
    return tuple((p.length is not None, role) for p, role in zip(element.properties, roles, strict=True))


def _binary(data: bytes, place: int, element: _Element) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Return points, corners and counts of an element, as far as it has them, and the place behind it."""
    columns: list[Column] = [(p.length, p.values) for p in element.properties]
    roles = [role for _, role in _columns(element)]
    points, none = np.empty((0, 3)), np.empty(0, np.int64)
    if CORNERS in roles:
        corners, counts, end = column_of(
            data, place, element.name, element.count, columns, roles.index(CORNERS)
        )  # fmt: skip
        return points, _whole(corners), counts, end
    if all(length is None for length, _ in columns):
        row = np.dtype([(str(i), values) for i, (_, values) in enumerate(columns)])
        end = place + element.count * row.itemsize
        if end > len(data):
            raise ValueError(f"it ends before the {element.count:,} rows of the element {element.name!r} do")
        if 0 in roles:
            rows = np.frombuffer(data, row, element.count, place)
            points = np.empty((element.count, 3))
            for axis in range(3):
                points[:, axis] = rows[str(roles.index(axis))]
        return points, none, none, end
    if 0 not in roles:
        return points, none, none, column_of(data, place, element.name, element.count, columns, -1)[2]
    axes = [column_of(data, place, element.name, element.count, columns, roles.index(axis)) for axis in range(3)]
    return np.stack([values.astype(np.float64) for values, _, _ in axes], axis=1), none, none, axes[0][2]


def _whole(values: np.ndarray) -> np.ndarray:
    """Return indices as int64. Raises a ValueError unless they are whole numbers."""
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        raise ValueError("a face has corners that are not whole numbers")
    return values.astype(np.int64)


def _strips(corners: np.ndarray, counts: np.ndarray, stored: np.dtype) -> np.ndarray:
    """Return the triangles of strips; each list is one or, divided by -1, several. `[F, 3]`"""
    ends = np.cumsum(counts)
    corners = np.insert(corners, ends, -1)
    # What -1 is when an exporter stores it without a sign.
    restarts = (corners == -1) | ((stored.kind == "u") & (stored.itemsize == 4) & (corners == 2**32 - 1))
    return strip_triangles(corners, restarts)


def write(path: Path, mesh: trimesh.Trimesh, note: str) -> None:
    """Write the mesh's geometry in binary, coordinates as 64-bit floats."""
    vertices = np.asarray(mesh.vertices, dtype="<f8")
    faces = np.empty(len(mesh.faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.faces
    header = ["ply", "format binary_little_endian 1.0"] + ([f"comment {note}"] if note else [])
    header += [f"element vertex {len(vertices)}"]
    header += [f"property double {axis}" for axis in "xyz"]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join(header).encode() + vertices.tobytes() + faces.tobytes())
