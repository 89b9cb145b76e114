"""What an STL file may look like: bytes behind it, names of every kind, several solids, polygons."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import trimesh

from sdf_vqvae.geometry.mesh import load_mesh

BOX = trimesh.creation.box((1, 2, 3))
OTHER = trimesh.creation.box(bounds=[[5, -1, -1.5], [6, 1, 1.5]])
U = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]


def facet(corners) -> str:
    rows = "".join(f"      vertex {x:g} {y:g} {z:g}\n" for x, y, z in corners)
    return f"  facet normal 0 0 0\n    outer loop\n{rows}    endloop\n  endfacet\n"


def text_of(mesh: trimesh.Trimesh, name: str = "box") -> str:
    return f"solid {name}\n" + "".join(map(facet, mesh.triangles)) + f"endsolid {name}\n"


def binary_of(mesh: trimesh.Trimesh, header: bytes = b"") -> bytes:
    rows = np.zeros(len(mesh.faces), np.dtype([("n", "<f4", 3), ("t", "<f4", (3, 3)), ("a", "<u2")]))
    rows["t"] = mesh.triangles
    return header.ljust(80, b"\0") + struct.pack("<I", len(rows)) + rows.tobytes()


def read(tmp_path, content: bytes | str) -> trimesh.Trimesh:
    (tmp_path / "a.stl").write_bytes(content.encode() if isinstance(content, str) else content)
    mesh = load_mesh(tmp_path / "a.stl")
    mesh.merge_vertices()
    assert mesh.is_watertight and mesh.is_winding_consistent
    return mesh


@pytest.mark.parametrize("header", [b"", b"solid made by X", b"solid facet vertex".ljust(80)])
@pytest.mark.parametrize("behind", [b"", b"\0", b"\0\0", b"\r\n<meta>unit=mm</meta>", b"x" * 50, b"facet" * 100])
def test_bytes_behind_the_last_triangle_are_noted_and_not_read(
    tmp_path, caplog, header: bytes, behind: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        mesh = read(tmp_path, binary_of(BOX, header) + behind)
    assert mesh.volume == pytest.approx(6) and len(mesh.faces) == 12
    assert [
        f"{len(behind):,} bytes behind its 12 triangles are not read" in r.getMessage() for r in caplog.records
    ] == [True] * bool(behind)


def test_binary_files_one_behind_the_other_are_all_read(tmp_path, caplog) -> None:
    mesh = read(tmp_path, binary_of(BOX) + binary_of(OTHER, b"solid"))
    assert mesh.volume == pytest.approx(12) and mesh.body_count == 2 and not caplog.records


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (binary_of(BOX)[:-1], "claims 12 triangles, but the file has room for 11"),
        (binary_of(BOX)[:80] + bytes(4) + binary_of(BOX)[84:], "claims 0 triangles, but the file has room for 12"),
        (binary_of(BOX)[:80] + b"\xff" * 4 + binary_of(BOX)[84:], "claims 4,294,967,295 triangles"),
        (binary_of(BOX)[:70], "neither text (solid ... endsolid) nor holds a triangle in its 70 bytes"),
        (b"hello", "neither text"),
    ],
)
def test_a_binary_file_that_claims_other_than_it_holds_is_refused(tmp_path, content: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=r"a\.stl is not a readable STL file: ") as error:
        read(tmp_path, content)
    assert says in str(error.value)


NAMES = [
    "a",
    "",
    "12 34 56",
    "vertex 1 2 3",
    "facet",
    "facet normal 0 0 1",
    "endsolid",
    "Part 1 (2.5 mm)",
    "größe \\",
]


@pytest.mark.parametrize("name", NAMES)
def test_solids_may_have_any_name(tmp_path, name: str) -> None:
    assert read(tmp_path, text_of(BOX, name)).volume == pytest.approx(6)
    both = read(tmp_path, text_of(BOX, name) + text_of(OTHER, "7 8 9"))
    assert both.volume == pytest.approx(12) and both.body_count == 2


TEXT = text_of(BOX)
LOOKS = {
    "capitals": TEXT.upper(),
    "CR LF": TEXT.replace("\n", "\r\n"),
    "CR": TEXT.replace("\n", "\r"),
    "tabs": TEXT.replace("  ", "\t"),
    "no indents": "\n".join(line.strip() for line in TEXT.splitlines()),
    "a facet a line": TEXT.replace("\n   ", " ").replace("\n  endf", " endf"),
    "blank lines first": "\n\n  " + TEXT,
    "no name at the end": TEXT.replace("endsolid box\n", "endsolid"),
    "normals that are no numbers": TEXT.replace("normal 0 0 0", "normal nan -nan(ind) 1.#QNAN"),
    "no normals": TEXT.replace(" normal 0 0 0", ""),
    "a byte order mark": "\ufeff" + TEXT,
    "zeros behind": TEXT + "\0\0",
    "exponents": TEXT.replace("0.5", "5.000000e-01").replace(" 1 ", " +.1E+1 "),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_box_is_a_box_however_its_lines_look(tmp_path, caplog, look: str) -> None:
    assert read(tmp_path, LOOKS[look]).volume == pytest.approx(6)
    assert not caplog.records


def test_a_facet_of_more_vertices_is_cut_into_triangles(tmp_path) -> None:
    caps = [[(x, y, 0) for x, y in U[::-1]], [(x, y, 1) for x, y in U]]
    ring = list(zip(U, [*U[1:], U[0]], strict=True))
    sides = [[(*a, 0), (*b, 0), (*b, 1), (*a, 1)] for a, b in ring]
    mesh = read(tmp_path, "solid u\n" + "".join(map(facet, caps + sides)) + "endsolid\n")
    assert mesh.volume == pytest.approx(7) and mesh.area == pytest.approx(14 + 16)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("endsolid box\n", ""), "it ends before endsolid"),
        (("  endfacet\nendsolid box\n", ""), "it ends before endsolid"),
        (("vertex -0.5 -1 -1.5", "vertex -0.5 -1"), "line 6: a vertex has three numbers"),
        (("vertex -0.5 -1 -1.5", "vertex -0.5 -1 x"), "line 6: 'x' is not a number"),
        (("vertex -0.5 -1 -1.5", "vertex -0.5 -1 -1.5 9"), "line 6: '9' stands where STL has another word"),
        (("vertex -0.5 -1 -1.5", "vertx -0.5 -1 -1.5"), "line 6: 'vertx' stands where"),
        (("      vertex -0.5 -1 -1.5\n", ""), "fewer than three vertices"),
        (("    endloop\n", "    endloop\n    outer loop\n"), "line 8: 'outer' stands where"),
    ],
)
def test_what_is_not_understood_is_said_with_its_line(tmp_path, change: tuple[str, str], says: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(ValueError, match=r"a\.stl is not a readable STL file: ") as error:
        read(tmp_path, TEXT.replace(*change, 1))
    assert says in str(error.value)


def test_a_text_that_is_cut_anywhere_is_refused(tmp_path) -> None:
    for size in range(5, len(TEXT) - 13, 29):
        with pytest.raises(ValueError, match=r"a\.stl"):
            read(tmp_path, TEXT[:size])
