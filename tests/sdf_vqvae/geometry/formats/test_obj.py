"""What an OBJ file may look like, and what is said of a line that is not understood."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import trimesh

from sdf_vqvae.geometry.formats.obj import read_obj
from sdf_vqvae.geometry.mesh import load_mesh

BOX = trimesh.creation.box((1, 2, 3))
VERTICES = [f"v {x:g} {y:g} {z:g}" for x, y, z in BOX.vertices]
FACES = [f"f {a} {b} {c}" for a, b, c in BOX.faces + 1]
TEXT = "\n".join([*VERTICES, *FACES]) + "\n"


def box_at(x: float, end: str = "\n") -> str:
    lines = [f"v {x + a:g} {b:g} {c:g}" for a, b, c in BOX.vertices]
    return end.join([*lines, *(f"f {a - 8} {b - 8} {c - 8}" for a, b, c in BOX.faces)]) + end


def with_faces(change) -> str:
    return "\n".join([*VERTICES, *(change(i, face) for i, face in enumerate(FACES))])


def slashes(i: int, face: str) -> str:
    form = ("{0}", "{0}/1", "{0}//1", "{0}/1/1", "{0}/", "{0}//")[i % 6]
    return "f " + " ".join(form.format(word) for word in face.split()[1:])


LOOKS = {
    "tabs": TEXT.replace(" ", "\t"),
    "a tab behind f, in half of them": with_faces(lambda i, f: f.replace("f ", "f\t") if i % 2 else f),
    "half of the faces indented": with_faces(lambda i, f: "  \t" * (i % 2) + f),
    "blanks of all kinds": TEXT.replace(" ", " \t\v\f  ").replace("\n", "  \n\n"),
    "CR LF": TEXT.replace("\n", "\r\n"),
    "CR": TEXT.replace("\n", "\r"),
    "no line end at the end": TEXT.strip(),
    "continued lines": TEXT.replace(" ", " \\\n", 20).replace("f ", "f \\\r\n "),
    "a backslash right behind a number": with_faces(lambda i, f: "\\\n ".join(f.rsplit(" ", 1))),
    "comments behind data": TEXT.replace("\n", " # a comment, f 1 2 3\n"),
    "a comment that ends in a backslash": "# C:\\models\\\n" + TEXT.replace("f ", "# \\\nf ", 3),
    "names that end in a backslash": TEXT.replace("f ", "g a\\\nusemtl C:\\\nf "),
    "fo": with_faces(lambda i, f: "fo" + f[1:] if i % 2 else f),
    "capitals": TEXT.upper(),
    "slashes of all kinds": "vt 0 0\nvn 0 0 1\n" + with_faces(slashes),
    "faces before vertices": "\n".join([*FACES, *VERTICES]),
    "a weight": TEXT.replace("\nv", " 0.5\nv"),
    "colors": TEXT.replace("\nv", " 1 .5 0e0\nv").replace("\nf", " 1 0 0 1\nf", 1),
    "groups, materials, smoothing": TEXT.replace("f ", "g a b\no c\ns off\nusemtl f 1\nmtllib v\nf ", 3),
    "points and lines": TEXT + "p 1 2 3\nl 1 2 \\\n3\nvt 0.5\nvn 1 0 0\nvp 0.1\n",
    "plus signs": with_faces(lambda i, f: f.replace(" ", " +")),
    "zeros behind the last line": TEXT + "\0\0\0",
    "relative corners behind each face's own vertices": box_at(0),
}


def read(tmp_path, text: str | bytes) -> trimesh.Trimesh:
    file = tmp_path / "a.obj"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_mesh(file)


@pytest.mark.parametrize("look", LOOKS)
def test_a_box_is_a_box_however_its_lines_look(tmp_path, caplog, look: str) -> None:
    mesh = read(tmp_path, LOOKS[look])
    assert mesh.volume == pytest.approx(6) and mesh.is_watertight and len(mesh.faces) == 12
    np.testing.assert_allclose(mesh.extents, [1, 2, 3])
    assert not caplog.records


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_how_text_is_encoded(tmp_path, encoding: str) -> None:
    assert read(tmp_path, ("# größe\n" + TEXT).encode(encoding)).volume == pytest.approx(6)


def test_old_comments_and_names_of_any_encoding_are_ignored(tmp_path) -> None:
    assert read(tmp_path, b"# gr\xf6\xdfe\no \xff\xfe\n" + TEXT.encode()).volume == pytest.approx(6)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_relative_corners_count_from_where_their_line_stands(tmp_path, end: str) -> None:
    mesh = read(tmp_path, f"o a{end}" + box_at(0, end) + f"o b{end}" + box_at(5, end))
    assert mesh.volume == pytest.approx(12) and mesh.body_count == 2
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -1, -1.5], [5.5, 1, 1.5]])


def test_positive_and_relative_corners_can_stand_in_one_face(tmp_path) -> None:
    assert read(tmp_path, "v 9 9 9\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 2 -2 4\nv 7 7 7\n").area == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("f 1 2", "three corners"),
        ("f", "three corners"),
        ("f 1 2 # 3", "three corners"),
        ("f 1 2 0", "'0': vertices are counted from 1"),
        ("f 1 2 9", "'9': there are 8 vertices"),
        ("f 1 2 -9", "'-9': there are 8 vertices"),
        ("f 1 2 3.5", "'3.5' is no corner"),
        ("f 1 2 x", "'x' is no corner"),
        ("f 1 2 3/x", "'3/x' is no corner"),
        ("f 1/1/1/1 2 3", "'1/1/1/1' is no corner"),
        ("f 1,2,3", "'1,2,3' is no corner"),
        ("f 1 2 99999999999999999999", "is no corner"),
        ("f1 2 3", "begins a line"),
        ("1 2 3", "begins a line"),
        ("v 1 2", "three numbers or more, but here stands the end of the line"),
        ("v", "three numbers or more"),
        ("v 1 2 x", "'x' is not a number"),
        ("v 0,5 1,5 2,5", "'0,5' is not a number"),
        ("v 1_0 2 3", "'1_0' is not a number"),
        ("v 1 2 1.#QNAN", "is not a number"),
        ("v 1 2 3 v 4 5 6", "but here stands 'v'"),
        ("v 1 2 3 4 5 6 7 8 9", "at most 8 numbers"),
        ("v 1 2 0x3", "'0x3' is not a number"),
        ("surf 0 1 0 1 1 2 3 4", "'surf' is a free-form surface"),
        ("bsp 1 2 3", "'bsp' is a B-spline patch"),
        ("call other.obj", "'call' is a line that includes another file"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_that_is_not_understood_is_an_error_with_its_number(tmp_path, line: str, says: str, end: str) -> None:
    text = (TEXT + line + "\n# end\n").replace("\n", end)
    with pytest.raises(ValueError, match=r"a\.obj is not a readable OBJ file: line 21: ") as error:
        read(tmp_path, text)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_word_is_ignored_with_one_note(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        mesh = read(tmp_path, "vc 1 0 0\n" + TEXT + "xyzzy f 1 2 3\nvc 0 0 1\n")
    assert mesh.volume == pytest.approx(6)
    assert [r.getMessage().split("a.obj: ")[1] for r in caplog.records] == [
        "line 1 begins with 'vc', no word of OBJ: ignored, and 2 more such lines"
    ]


def test_curves_without_a_surface_and_lines_alone_hold_no_triangle(tmp_path) -> None:
    for text in (
        "v 0 0 0\nv 1 1 1\nl 1 2\n",
        "v 0 0 0\nv 1 0 0\ncstype bezier\ndeg 1\ncurv 0 1 1 2\nend\n",
        "# nothing\n",
    ):
        with pytest.raises(ValueError, match="holds no triangle"):
            read(tmp_path, text)


def test_bytes_that_are_no_text_are_refused(tmp_path) -> None:
    for content in (TEXT.encode("utf-16-le"), TEXT.encode() + bytes(9) + b"f 1 2 3", b"\xff\xfe" + b"a" * 3):
        with pytest.raises(ValueError, match=r"a\.obj is not a readable OBJ file"):
            read(tmp_path, content)


def test_numbers_are_the_nearest_floats() -> None:
    chance = np.random.default_rng(0)
    sizes = 10.0 ** chance.integers(-40, 40, 3000)
    some = chance.normal(size=3000) * sizes
    forms = (repr, "{:.6f}".format, "{:.17g}".format, "{:.25e}".format, "{:.3e}".format)
    words = [forms[i % 5](float(x)) for i, x in enumerate(some)]
    words += ["1e-320", "5e-324", "1.7976931348623157e308", "-0", ".5", "5.", "+.5E+1", "0e999", "9007199254740993"]
    words += ["123456789012345678", "8.5e22", "0." + "0" * 40 + "1", "1" * 40, "inf", "1e999", "-Infinity"]
    words += ["0"] * (-len(words) % 3)
    text = "".join("v " + " ".join(words[i : i + 3]) + "\n" for i in range(0, len(words), 3))
    found = read_obj(text.encode()).vertices.reshape(-1)
    expected = np.array([float(w) for w in words])
    np.testing.assert_array_equal(found.view(np.int64), expected.view(np.int64))
