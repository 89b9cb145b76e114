"""What an OFF file may look like: its keywords, counts, colors, polygons, and its binary kind."""

from __future__ import annotations

import logging
import struct

import pytest
import trimesh

from sdf_vqvae.geometry.mesh import load_mesh

BOX = [(x, y, z) for x in (0, 1) for y in (0, 2) for z in (0, 3)]
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
MIXED = [(0, 1, 3), (0, 3, 2), *QUADS[1:]]
U = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
VERTICES = "".join(f"{x} {y} {z}\n" for x, y, z in BOX)
FACES = "".join(f"{len(f)} {' '.join(map(str, f))}\n" for f in MIXED)
TEXT = f"OFF\n8 7 12\n{VERTICES}{FACES}"
LOOKS = {
    "plain": TEXT,
    "counts beside the keyword": TEXT.replace("OFF\n", "OFF "),
    "counts right behind the keyword": TEXT.replace("OFF\n", "OFF"),
    "no keyword": TEXT.removeprefix("OFF\n"),
    "small letters": TEXT.lower(),
    "no number of edges": TEXT.replace("8 7 12", "8 7"),
    "a line for each number": TEXT.replace("8 7 12", "8\n7\n12"),
    "comments and blank lines": "# by hand\n\n" + TEXT.replace("\n", " # OFF 1 2 3\n\n"),
    "CR LF": TEXT.replace("\n", "\r\n"),
    "CR": TEXT.replace("\n", "\r"),
    "tabs and indents": TEXT.replace(" ", "\t").replace("\n", " \n \t").strip(),
    "colors of faces, of one to four values": TEXT.replace("\n4 ", " 1\n4 ", 1).replace("5\n", "5 0.5 1 0 1\n"),
    "COFF": TEXT.replace("OFF", "COFF").replace(VERTICES, VERTICES.replace("\n", " 255 0 0 255\n")),
    "NOFF": TEXT.replace("OFF", "NOFF").replace(VERTICES, VERTICES.replace("\n", " 0 0 1\n")),
    "STCNOFF": TEXT.replace("OFF", "STCNOFF").replace(VERTICES, VERTICES.replace("\n", " 0 0 1 1 1 1 1 .5 .5\n")),
    "a byte order mark": "\ufeff" + TEXT,
}


def check(mesh: trimesh.Trimesh, volume: float = 6.0) -> None:
    assert abs(mesh.volume) == pytest.approx(volume) and mesh.is_watertight and mesh.is_winding_consistent


@pytest.mark.parametrize("look", LOOKS)
def test_a_box_is_a_box_however_its_lines_look(tmp_path, caplog, look: str) -> None:
    (tmp_path / "a.off").write_bytes(LOOKS[look].encode())
    check(load_mesh(tmp_path / "a.off"))
    assert not caplog.records


def test_faces_of_any_number_of_corners_are_read(tmp_path) -> None:
    faces = [
        tuple(range(7, -1, -1)),
        tuple(range(8, 16)),
        *((i, (i + 1) % 8, 8 + (i + 1) % 8, 8 + i) for i in range(8)),
    ]
    text = "OFF\n16 10 24\n" + "".join(f"{x} {y} {z}\n" for z in (0, 1) for x, y in U)
    text += "".join(f"{len(f)} {' '.join(map(str, f))}\n" for f in faces)
    (tmp_path / "a.off").write_text(text)
    mesh = load_mesh(tmp_path / "a.off")
    check(mesh, 7)
    assert mesh.area == pytest.approx(14 + 16)


@pytest.mark.parametrize(("kind", "values"), [("", 0), ("C", 4), ("N", 3), ("STCN", 9)])
def test_the_binary_kind_is_read(tmp_path, kind: str, values: int) -> None:
    data = f"{kind}OFF BINARY\n".encode() + struct.pack(">3i", 8, 7, 12)
    data += b"".join(struct.pack(f">{3 + values}f", *v, *[0.5] * values) for v in BOX)
    data += b"".join(struct.pack(f">{len(f) + 1}i", len(f), *f) + struct.pack(">i", i % 4) + bytes(4 * (i % 4))
                     for i, f in enumerate(MIXED))  # fmt: skip
    (tmp_path / "a.off").write_bytes(data)
    check(load_mesh(tmp_path / "a.off"))
    for size in range(1, len(data), 7):
        (tmp_path / "cut.off").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cut\.off"):
            load_mesh(tmp_path / "cut.off")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("OFF", "4OFF"), "other than three coordinates (4OFF)"),
        (("OFF", "nOFF\n3"), "other than three coordinates (nOFF)"),
        (("OFF", "Geomview"), "line 1: 'Geomview' stands for the number of vertices or faces"),
        (("8 7 12", "8 -7 12"), "line 2: '-7' stands for the number"),
        (("8 7 12", "80 7 12"), "claims 80 vertices"),
        (("8 7 12", "9 7 12"), "it ends after 6 of 7 rows of the element 'face'"),
        (("1 2 3\n", "1 2\n"), "line 10: a row of the element 'vertex' has fewer values"),
        (("1 2 3\n", "1 2 x\n"), "line 10: 'x' is not a number"),
        (("3 0 1 3\n", "5 0 1 3\n"), "line 11: a row of the element 'face' has fewer values"),
        (("3 0 1 3\n", "3 0 1 9\n"), "face 1 has the index 9, but there are 8 vertices"),
        (("3 0 1 3\n", "3 0 1 b\n"), "line 11: 'b' is not a whole number"),
    ],
)
def test_what_is_not_understood_is_said_with_its_line(tmp_path, change: tuple[str, str], says: str) -> None:
    assert change[0] in TEXT
    (tmp_path / "a.off").write_text(TEXT.replace(*change, 1))
    with pytest.raises(ValueError, match=r"a\.off is not a readable OFF file: ") as error:
        load_mesh(tmp_path / "a.off")
    assert says in str(error.value)


def test_more_than_the_counts_say_is_noted(tmp_path, caplog) -> None:
    (tmp_path / "a.off").write_text(TEXT + "3 0 1 2\n")
    with caplog.at_level(logging.WARNING):
        check(load_mesh(tmp_path / "a.off"))
    assert "line 18: what follows its 7 faces is not read" in caplog.text
