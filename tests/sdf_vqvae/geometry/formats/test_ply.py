"""What a PLY file may hold: text or binary, elements and properties in any order, polygons and strips."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from sdf_vqvae.geometry.mesh import load_mesh

KINDS = ("ascii", "binary_little_endian", "binary_big_endian")
CODES = {"char": "b", "uchar": "B", "short": "h", "ushort": "H", "int": "i", "uint": "I", "float": "f", "double": "d",
         "int8": "b", "uint8": "B", "int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "float32": "f",
         "float64": "d"}  # fmt: skip
XYZ = ("float x", "float y", "float z")
BOX = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
MIXED = [(0, 1, 3), (0, 3, 2), *QUADS[1:]]
U = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
LIST = "list uchar int vertex_indices"


def write(file: Path, kind: str, *elements: tuple[str, tuple[str, ...], list[Any]], end: str = "\n") -> Path:
    """Write elements (name, properties, rows), a row a value for each property, lists as tuples."""
    header = ["ply", f"format {kind} 1.0", "comment made by a test", "obj_info 3 vertex"]
    body = b""
    order = ">" if "big" in kind else "<"
    for name, properties, rows in elements:
        header += [f"element {name} {len(rows)}", *(f"property {p}" for p in properties)]
        for row in rows:
            words = []
            for value, words_of in zip(row, (p.split() for p in properties), strict=True):
                if words_of[0] == "list":
                    words += [str(len(value)), *map(str, value)]
                    packed = struct.pack(order + CODES[words_of[1]], len(value))
                    packed += struct.pack(order + CODES[words_of[2]] * len(value), *value)
                else:
                    words.append(repr(value))
                    packed = struct.pack(order + CODES[words_of[0]], value)
                body += packed if kind != "ascii" else b""
            body += (" ".join(words) + end).encode() if kind == "ascii" else b""
    file.write_bytes(end.join([*header, "end_header", ""]).encode() + body)
    return file


def one(faces: list[Any]) -> list[Any]:
    return [(face,) for face in faces]


def check(mesh: trimesh.Trimesh, volume: float = 6.0) -> None:
    assert abs(mesh.volume) == pytest.approx(volume) and mesh.is_watertight and mesh.is_winding_consistent


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("faces", [QUADS, MIXED], ids=["quads", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_triangles_and_quads_are_read_in_every_kind(tmp_path, kind: str, faces: list[Any], end: str) -> None:
    file = write(tmp_path / "a.ply", kind, ("vertex", XYZ, BOX), ("face", (LIST,), one(faces)), end=end)
    check(load_mesh(file))


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_with_notches_are_read_in_every_kind(tmp_path, kind: str) -> None:
    vertices = [(x, y, z) for z in (0, 1) for x, y in U]
    faces = [
        tuple(range(7, -1, -1)),
        tuple(range(8, 16)),
        *((i, (i + 1) % 8, 8 + (i + 1) % 8, 8 + i) for i in range(8)),
    ]
    mesh = load_mesh(write(tmp_path / "a.ply", kind, ("vertex", XYZ, vertices), ("face", (LIST,), one(faces))))
    check(mesh, 7)
    assert mesh.area == pytest.approx(14 + 16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", ["char", "uchar", "short", "ushort", "int", "uint32"])
@pytest.mark.parametrize("index", ["int8", "uint8", "short", "uint16", "int", "uint"])
def test_lists_have_any_types(tmp_path, kind: str, length: str, index: str) -> None:
    faces = ("face", (f"list {length} {index} vertex_index",), one(MIXED))
    check(load_mesh(write(tmp_path / "a.ply", kind, ("vertex", XYZ, BOX), faces)))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_corners_in_floats_are_read_if_they_are_whole(tmp_path, kind: str) -> None:
    kinds = ("list uchar float vertex_indices",)
    check(load_mesh(write(tmp_path / "a.ply", kind, ("vertex", XYZ, BOX), ("face", kinds, one(MIXED)))))
    with pytest.raises(ValueError, match="corners that are not whole numbers"):
        load_mesh(write(tmp_path / "a.ply", kind, ("vertex", XYZ, BOX), ("face", kinds, one([(0, 1.5, 2)]))))


@pytest.mark.parametrize("kind", KINDS)
def test_other_properties_and_elements_may_stand_anywhere(tmp_path, kind: str) -> None:
    vertices = [(9, z, (1.0, 2.0)[: int(x)], x, (7,) * i, y, 255) for i, (x, y, z) in enumerate(BOX)]
    kinds = (
        "uchar red",
        "double z",
        "list uchar float tags",
        "double x",
        "list int short more",
        "double y",
        "uchar b",
    )
    faces = [((1.5, 2.5) * len(face), i, face, (3,)) for i, face in enumerate(MIXED)]
    face_kinds = ("list uchar float texcoord", "int material", LIST, "list uchar int extra")
    check(load_mesh(write(
        tmp_path / "a.ply",
        kind,
        ("camera", ("float view_px", "list uchar int what"), [(1.0, (1, 2, 3)), (2.0, ())]),
        ("face", face_kinds, faces),
        ("material", ("uchar r",), [(1,), (2,)]),
        ("vertex", kinds, vertices),
        ("edge", ("int vertex1", "int vertex2"), [(0, 1)]),
    )))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_doubles_keep_their_precision(tmp_path, kind: str) -> None:
    far = [(x + 448262.123456789, y + 5411932.987654321, z) for x, y, z in BOX]
    vertices = ("vertex", ("double x", "double y", "float64 z"), far)
    mesh = load_mesh(write(tmp_path / "a.ply", kind, vertices, ("face", (LIST,), one(QUADS))))
    np.testing.assert_array_equal(mesh.vertices, far)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", ["int", "uint"])
def test_strips_are_read_with_their_restarts(tmp_path, kind: str, index: str) -> None:
    # A ring of four sides as one strip, and the two ends as strips of their own in the same list.
    ring = [0, 1, 4, 5, 6, 7, 2, 3, 0, 1]
    again = -1 if index == "int" else 2**32 - 1
    strips = [(*ring, again, 0, 4, 2, 6), (1, 3, 5, 7)]
    element = ("tristrips", (f"list int {index} vertex_indices",), one(strips))
    mesh = load_mesh(write(tmp_path / "a.ply", kind, ("vertex", XYZ, BOX), element))
    assert len(mesh.faces) == 12
    check(mesh)


@pytest.mark.parametrize("kind", KINDS)
def test_points_without_faces_hold_no_triangle(tmp_path, kind: str) -> None:
    splats = (
        "vertex",
        (*XYZ, "float f_dc_0", "float opacity", "float scale_0", "float rot_0"),
        [(0, 0, 0, 1, 1, 1, 1)] * 5,
    )
    for elements in ([splats], [splats, ("face", (LIST,), [])]):
        with pytest.raises(ValueError, match="holds no triangle"):
            load_mesh(write(tmp_path / "a.ply", kind, *elements))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("elements", "says"),
    [
        ([("vertex", XYZ, BOX), ("range_grid", (LIST,), one(MIXED))], "'range_grid' refers to vertices"),
        ([("vertex", XYZ, BOX), ("face", ("list uchar int corners",), one(MIXED))], "has no list vertex_indices"),
        ([("vertex", ("float x", "float y"), [(1, 2)]), ("face", (LIST,), [])], "no x, y and z, but 'x, y'"),
        (
            [("vertex", XYZ, BOX), ("face", (LIST,), one([(0, 1, 8)]))],
            "face 1 has the index 8, but there are 8 vertices",
        ),
        ([("vertex", XYZ, BOX), ("face", (LIST,), one([(0, 1, 2), (0, 1, -1)]))], "face 2 has the index -1"),
        ([("vertex", XYZ, BOX), ("vertex", XYZ, BOX)], "'vertex' stands in its header 2 times"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, kind: str, elements: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"a\.ply is not a readable PLY file: ") as error:
        load_mesh(write(tmp_path / "a.ply", kind, *elements))
    assert says in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_cut_anywhere_is_refused(tmp_path, kind: str) -> None:
    elements = (
        ("vertex", XYZ, BOX),
        ("face", (LIST,), one(MIXED)),
        ("edge", ("int a", "list uchar int b"), [(1, (2,))]),
    )
    whole = write(tmp_path / "a.ply", kind, *elements).read_bytes().rstrip(b"\n" if kind == "ascii" else b"")
    check(load_mesh(tmp_path / "a.ply"))
    for size in range(1, len(whole) - 1, 7):
        (tmp_path / "cut.ply").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.ply"):
            load_mesh(tmp_path / "cut.ply")


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_behind_the_last_element_are_noted(tmp_path, caplog, kind: str) -> None:
    file = write(tmp_path / "a.ply", kind, ("vertex", XYZ, BOX), ("face", (LIST,), one(MIXED)))
    for behind, noted in ((b"", False), (b"\n\n", False), (b"\0\0\0", False), (b"\n1 2 3", True)):
        caplog.clear()
        (tmp_path / "b.ply").write_bytes(file.read_bytes() + behind)
        with caplog.at_level(logging.WARNING):
            check(load_mesh(tmp_path / "b.ply"))
        assert bool(caplog.records) == noted


def test_faces_of_one_or_two_corners_are_left_out_with_a_note(tmp_path, caplog) -> None:
    file = write(
        tmp_path / "a.ply", "ascii", ("vertex", XYZ, BOX), ("face", (LIST,), one([*MIXED, (0, 1), (3,), ()]))
    )
    with caplog.at_level(logging.WARNING):
        check(load_mesh(file))
    assert "3 faces of fewer than three corners" in caplog.text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("format ascii 1.0", "format ascii 2.0"), "line 2 of its header is not understood: 'format ascii 2.0'"),
        (("format ascii", "format text"), "line 2 of its header"),
        (("format ascii 1.0\n", ""), "no line `format`"),
        (("property float x", "property real x"), "'property real x'"),
        (("property float x", "propery float x"), "none of PLY's"),
        (("element vertex 8", "element vertex eight"), "'element vertex eight'"),
        (("list uchar int", "list float int"), "a list's length is a whole number"),
        (("1 2 3\n", "1 2\n"), "line 19: a row of the element 'vertex' has fewer values"),
        (
            ("1 2 3\n", "1 2 3 4\n"),
            "line 19: a row of the element 'vertex' has more values than it should: '4'",
        ),
        (("1 2 3\n", "1 2 three\n"), "line 19: 'three' is not a number"),
        (("3 0 1 3\n", "3 0 1 3.5\n"), "line 20: '3.5' is not a whole number"),
        (("3 0 1 3\n", "4 0 1 3\n"), "line 20: a row of the element 'face' has fewer values"),
        (("3 0 1 3\n", "-3 0 1 3\n"), "line 20: '-3' is not a whole number"),
    ],
)
def test_what_is_not_understood_is_said_with_its_line(tmp_path, change: tuple[str, str], says: str) -> None:
    file = write(tmp_path / "a.ply", "ascii", ("vertex", XYZ, BOX), ("face", (LIST,), one(MIXED)))
    text = file.read_text()
    assert change[0] in text
    file.write_text(text.replace(*change, 1))
    with pytest.raises(ValueError, match=r"a\.ply") as error:
        load_mesh(file)
    assert says in str(error.value)
