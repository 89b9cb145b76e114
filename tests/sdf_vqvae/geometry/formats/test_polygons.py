"""Polygons of every shape become triangles of the same area, sharing the edges that they shared."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.formats import polygons as polygons_module
from sdf_vqvae.geometry.formats.polygons import Polygons, in_triangles
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh

U = [(0, 0), (3, 0), (3, 3), (2, 3), (2, 1), (1, 1), (1, 3), (0, 3)]
SPIRAL = [
    (0, 0),
    (7, 0),
    (7, 7),
    (2, 7),
    (2, 3),
    (4, 3),
    (4, 5),
    (5, 5),
    (5, 2),
    (1, 2),
    (1, 8),
    (8, 8),
    (8, -1),
    (0, -1),
]
# A square with a square hole: from the corner of one to that of the other and back, over one edge walked twice.
KEYHOLE = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (1, 1)]
TWO_HOLES = [(0, 0), (9, 0), (9, 5), (0, 5), (0, 0), (1, 1), (1, 3), (3, 3), (3, 1), (5, 1), (5, 3), (7, 3), (7, 1),
             (5, 1), (3, 1), (1, 1)]  # fmt: skip
DART = [(0, 0), (2, 1), (0, 2), (0.5, 1)]
COLLINEAR = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
COLLINEAR_U = [(0, 0), (1.5, 0), (3, 0), (3, 3), (2.5, 3), (2, 3), (2, 2), (2, 1), (1.5, 1), (1, 1), (1, 3), (0, 3)]
REPEATED = [(0, 0), (2, 0), (2, 0), (2, 2), (1, 2), (1, 1), (1, 1), (0, 2)]


def star(points: int) -> list[tuple[float, float]]:
    turn = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, 0.4, 1.0)
    return list(zip((radius * np.cos(turn)).tolist(), (radius * np.sin(turn)).tolist(), strict=True))


SHAPES = {"U": U, "spiral": SPIRAL, "keyhole": KEYHOLE, "two holes": TWO_HOLES, "dart": DART, "star": star(5),
          "collinear": COLLINEAR, "collinear U": COLLINEAR_U, "repeated": REPEATED, "gear": star(60)}  # fmt: skip


def area_of(outline: np.ndarray) -> float:
    x, y = outline.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def prism(outline: np.ndarray, height: float = 1.0) -> Polygons:
    """Return a prism: two caps of all corners, and a quad for each side."""
    count = len(outline)
    ring = np.arange(count)
    sides = np.stack([ring, (ring + 1) % count, count + (ring + 1) % count, count + ring], axis=1)
    vertices = np.concatenate([np.c_[outline, np.zeros(count)], np.c_[outline, np.full(count, height)]])
    return Polygons(
        vertices=vertices,
        corners=np.concatenate([ring[::-1], count + ring, sides.reshape(-1)]),
        counts=np.array([count, count] + [4] * count),
    )


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


def mesh_of(polygons: Polygons) -> trimesh.Trimesh:
    return trimesh.Trimesh(polygons.vertices, in_triangles(polygons), process=False)


@pytest.mark.parametrize("start", [0, 1, 2, 5])
@pytest.mark.parametrize("name", SHAPES)
def test_a_prism_of_any_outline_keeps_volume_area_and_closedness(name: str, start: int) -> None:
    outline = np.roll(np.array(SHAPES[name], dtype=float), start, axis=0)
    area = area_of(outline)
    outline = outline if area > 0 else outline[::-1]
    flat = prism(outline)
    turn = rotation(start)
    turned = Polygons(vertices=flat.vertices @ turn + 5, corners=flat.corners, counts=flat.counts)
    mesh = mesh_of(turned)
    steps = np.linalg.norm(outline - np.roll(outline, 1, axis=0), axis=1)
    assert abs(mesh.volume) == pytest.approx(abs(area))
    assert np.sign(mesh.volume) == np.sign(np.linalg.det(turn))
    assert mesh.area == pytest.approx(2 * abs(area) + steps.sum())
    directed = {(int(a), int(b)) for face in mesh.faces for a, b in zip(face, np.roll(face, -1), strict=True)}
    assert directed == {(b, a) for a, b in directed} and len(directed) == 3 * len(mesh.faces)
    assert len(mesh.faces) == len(flat.corners) - 2 * len(flat.counts)


def test_nothing_stands_in_the_notch_of_a_u(tmp_path) -> None:
    count = len(U)
    lines = [f"v {x} {y} {z}" for z in (0, 0.2) for x, y in U]
    lines.append("f " + " ".join(str(i) for i in range(count, 0, -1)))
    lines.append("f " + " ".join(str(i) for i in range(count + 1, 2 * count + 1)))
    lines += [f"f {i + 1} {(i + 1) % count + 1} {count + (i + 1) % count + 1} {count + i + 1}" for i in range(count)]
    (tmp_path / "u.obj").write_text("\n".join(lines))
    field = SparseSDF.from_mesh(tmp_path / "u.obj", 48, device="cpu")
    places = ((field.index.numpy() + 0.5) / 48 - 0.5) / field.scale + field.center
    notch = (places[:, 0] > 1.25) & (places[:, 0] < 1.75) & (places[:, 1] > 1.25)
    assert field.watertight and not notch.any()
    assert (places[:, 0] < 0.8).any()


def test_quads_are_cut_where_both_halves_stand_upright() -> None:
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    dart = np.c_[np.array(DART), np.zeros(4)]
    for shift in range(4):
        one = Polygons(vertices=np.roll(dart, shift, axis=0), corners=np.arange(4), counts=np.array([4]))
        assert mesh_of(one).area == pytest.approx(1.5) and mesh_of(one).area_faces.min() > 0.1
    plain = Polygons(vertices=square, corners=np.arange(4), counts=np.array([4]))
    assert in_triangles(plain).tolist() == [[0, 1, 2], [0, 2, 3]]


def test_triangles_stay_in_the_order_of_their_polygons() -> None:
    u = np.c_[np.array(U, float), np.zeros(8)]
    corners = np.concatenate([[0, 1, 2], np.arange(8), [2, 1, 0], [0, 1, 4, 7], np.arange(8), [5, 6, 7]])
    faces = in_triangles(Polygons(vertices=u, corners=corners, counts=np.array([3, 8, 3, 4, 8, 3])))
    assert faces[0].tolist() == [0, 1, 2] and faces[7].tolist() == [2, 1, 0] and faces[-1].tolist() == [5, 6, 7]
    for first in (1, 10):
        assert trimesh.Trimesh(u, faces[first : first + 6], process=False).area == pytest.approx(7)


def test_a_polygon_that_is_not_quite_flat_keeps_its_corners_and_its_notch() -> None:
    outline = np.array(U, float)
    bent = np.c_[outline, 0.02 * np.random.default_rng(0).normal(size=8)]
    mesh = mesh_of(Polygons(vertices=bent, corners=np.arange(8), counts=np.array([8])))
    seen = trimesh.Trimesh(bent * [1, 1, 0], mesh.faces, process=False)
    assert seen.area == pytest.approx(7) and mesh.area == pytest.approx(7, rel=0.02)


@pytest.mark.parametrize("outline", [[(0, 0)] * 6, [(i, 2 * i) for i in range(6)], [(0, 0), (1, 1), (1, 0), (0, 1)]])
def test_a_polygon_without_an_area_is_no_failure(outline: list[tuple[int, int]]) -> None:
    vertices = np.c_[np.array(outline, float), np.zeros(len(outline))]
    one = Polygons(vertices=vertices, corners=np.arange(len(outline)), counts=np.array([len(outline)]))
    assert in_triangles(one).shape == (len(outline) - 2, 3)


def test_polygons_too_large_to_cut_are_refused_and_convex_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons_module, "MAX_CORNER_PAIRS", 99)
    turn = np.linspace(0, 2 * np.pi, 1000, endpoint=False)
    assert mesh_of(prism(np.c_[np.cos(turn), np.sin(turn)])).volume == pytest.approx(np.pi, rel=1e-4)
    with pytest.raises(ValueError, match="not convex, here 2 of up to 8 corners"):
        in_triangles(prism(np.array(U, float)))


def test_a_closed_mesh_of_polygons_is_watertight_as_a_field(tmp_path) -> None:
    outline = np.array(COLLINEAR_U)
    solid = prism(outline)
    ends = np.cumsum(solid.counts)
    faces = [solid.corners[end - count : end] for end, count in zip(ends, solid.counts, strict=True)]
    text = "".join(f"v {x} {y} {z}\n" for x, y, z in solid.vertices)
    text += "".join("f " + " ".join(str(i + 1) for i in face) + "\n" for face in faces)
    (tmp_path / "u.obj").write_text(text)
    assert normalize_mesh(load_mesh(tmp_path / "u.obj")).watertight
