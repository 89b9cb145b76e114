"""Faces as exporters leave them: doubled, reversed or half flipped, a solid stays solid and a sheet a sheet."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.face_repair import is_watertight, repair_faces
from sdf_vqvae.geometry.mesh import normalize_mesh, to_source_units

BALL = trimesh.creation.icosphere(subdivisions=3)
V, F = np.asarray(BALL.vertices), np.asarray(BALL.faces)
BACK = F[:, ::-1]
BOWL = F[V[F][:, :, 2].mean(axis=1) < 0]
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
QUADS = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=float)
RESOLUTION = 48
VOXEL = 1 / 0.95 / RESOLUTION
"""In parts of an object's longest side."""


def mesh_of(vertices, faces) -> trimesh.Trimesh:
    return trimesh.Trimesh(np.asarray(vertices), np.asarray(faces), process=False)


def flipped(faces: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    chosen = np.random.default_rng(seed).random(len(faces)) < share
    return np.where(chosen[:, None], faces[:, ::-1], faces)


def fans(polygons: np.ndarray) -> np.ndarray:
    """Cut quads as a reader that starts at their first corner does."""
    return np.concatenate([polygons[:, [0, 1, 2]], polygons[:, [0, 2, 3]]])


def joined(*parts) -> trimesh.Trimesh:
    return trimesh.util.concatenate([mesh_of(vertices, faces) for vertices, faces in parts])


def surface(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, SparseSDF]:
    """Return the surface of the mesh's field in the mesh's units, and the field."""
    field = SparseSDF.from_mesh(mesh, RESOLUTION, device="cpu")
    found = extract_surface(field.sdf, field.index, field.field)
    return to_source_units(found, field.center, field.scale), field


BALLS = {
    "as it is": F,
    "twice, one reversed": np.concatenate([F, BACK]),
    "twice, the same way": np.concatenate([F, np.roll(F, 1, axis=1)]),
    "twice and once reversed": np.concatenate([F, F, BACK]),
    "both sides mixed": np.random.default_rng(0).permutation(np.concatenate([F, np.roll(BACK, 1, axis=1)])),
    "both sides of some faces": np.concatenate([F, BACK[:400]]),
    "a hole in one of two sides": np.concatenate([F[10:], BACK]),
    "a small hole in both sides": np.concatenate([F[10:], BACK[10:]]),
    "inside out": BACK,
    "every other face flipped": np.concatenate([F[::2], BACK[1::2]]),
    "faces flipped at random": flipped(F, 0.5),
    "faces flipped at random, with a small hole": flipped(F[10:], 0.5),
    "most faces flipped": flipped(F, 0.9),
}


@pytest.mark.parametrize("faces", BALLS.values(), ids=BALLS)
def test_a_ball_is_solid_however_its_faces_are_written(faces):
    found, field = surface(mesh_of(V, faces))
    assert found.volume == pytest.approx(BALL.volume, rel=0.02)
    assert field.sign_method == "winding"
    np.testing.assert_allclose(found.extents, 2, atol=0.03)


def test_a_ball_of_triangles_that_share_no_vertices_is_solid_with_both_sides():
    corners = np.concatenate([V[F], V[BACK]]).reshape(-1, 3)
    found, field = surface(mesh_of(corners, np.arange(len(corners)).reshape(-1, 3)))
    assert found.volume == pytest.approx(BALL.volume, rel=0.02)
    assert field.watertight


@pytest.mark.parametrize("start", [0, 1])
def test_both_sides_of_polygons_are_one_however_each_is_cut_into_triangles(start):
    reverse = np.roll(QUADS[:, ::-1], start, axis=1)
    found, field = surface(mesh_of(CUBE, np.concatenate([fans(QUADS), fans(reverse)])))
    assert found.volume == pytest.approx(1, rel=0.02)
    assert field.watertight


def test_a_cavity_is_kept_and_so_is_one_with_some_faces_flipped():
    whole = BALL.volume * (1 - 0.5**3)
    for share in (0, 0.1):
        found, _ = surface(joined((V, flipped(F, share)), (V / 2, flipped(BACK, share, seed=1))))
        assert found.volume == pytest.approx(whole, rel=0.03)
        assert len(found.split(only_watertight=False)) == 2


def test_balls_within_balls_within_balls_alternate_as_their_faces_say():
    found, _ = surface(joined((V, F), (V * 0.7, BACK), (V * 0.4, F)))
    assert found.volume == pytest.approx(BALL.volume * (1 - 0.7**3 + 0.4**3), rel=0.05)


def test_a_body_beside_another_is_solid_though_its_faces_look_inward():
    found, _ = surface(joined((V, F), (V * 0.9 + np.array([3, 0, 0]), BACK)))
    assert found.volume == pytest.approx(BALL.volume * (1 + 0.9**3), rel=0.03)


def test_the_cavity_of_a_mirrored_body_stays_one():
    away = np.array([4, 0, 0])
    found, _ = surface(joined((V * 1.5, F), (V + away, BACK), (V * 0.7 + away, F)))
    assert found.volume == pytest.approx(BALL.volume * (1.5**3 + 1 - 0.7**3), rel=0.03)
    assert len(found.split(only_watertight=False)) == 3


@pytest.mark.parametrize("step", [(1, 1, 0), (1, 1, 1)])
def test_boxes_that_touch_in_an_edge_or_corner_are_solid_though_one_looks_inward(step):
    faces = fans(QUADS)
    for second in (faces, faces[:, ::-1]):
        found, field = surface(joined((CUBE, faces), (CUBE + np.array(step), second)))
        assert abs(found.volume) == pytest.approx(2, rel=0.02) and field.sign_method == "winding"


def test_a_cavity_that_touches_the_skin_of_its_solid_is_kept():
    faces = fans(QUADS)
    found, _ = surface(joined((CUBE, faces), (CUBE * 0.5 + np.array([0.5, 0.5, 0.25]), faces[:, ::-1])))
    assert found.volume == pytest.approx(1 - 0.5**3, abs=0.02)


def test_a_body_of_two_sides_beside_one_of_one_is_solid():
    found, _ = surface(joined((V, np.concatenate([F, BACK])), (V + np.array([3, 0, 0]), F)))
    assert found.volume == pytest.approx(2 * BALL.volume, rel=0.03)


@pytest.mark.parametrize(
    ("vertices", "faces", "area"),
    [
        pytest.param(SQUARE[:3], [[0, 1, 2]], 0.5, id="a triangle"),
        pytest.param(SQUARE[:3], [[0, 1, 2], [2, 1, 0]], 0.5, id="a triangle of two sides"),
        pytest.param(SQUARE, [[0, 1, 2], [0, 2, 3]], 1, id="a square"),
        pytest.param(SQUARE, [[0, 1, 2], [0, 2, 3], [2, 1, 0], [3, 2, 0]], 1, id="a square of two sides"),
        pytest.param(SQUARE, [[0, 1, 2], [0, 2, 3], [3, 2, 1], [3, 1, 0]], 1, id="two sides, cut otherwise"),
        pytest.param(V, np.concatenate([BOWL, BOWL[:, ::-1]]), 2 * np.pi * 4 / 4, id="a bowl of two sides"),
        pytest.param(
            CUBE, np.concatenate([fans(QUADS[:5]), fans(QUADS[:5, ::-1])]), 5, id="an open box of two sides"
        ),
    ],
)
def test_a_sheet_becomes_a_shell_one_voxel_thick(vertices, faces, area):
    mesh = mesh_of(vertices, faces)
    found, field = surface(mesh)
    assert field.sign_method == "winding+shell"
    thickness = VOXEL * mesh.extents.max()
    assert 0.65 < found.volume / (area * thickness) < 1.1  # by where walls lie between samples


@pytest.mark.parametrize("thickness", [0.1, 0.5, 0.9])
def test_a_closed_plate_thinner_than_a_voxel_does_not_vanish(thickness):
    plate = trimesh.creation.box((1, 0.8, thickness * VOXEL))
    found, field = surface(plate)
    assert field.watertight
    np.testing.assert_allclose(found.extents, plate.extents, atol=1.5 * VOXEL)
    block = trimesh.creation.box((0.3, 0.3, 0.3), transform=trimesh.transformations.translation_matrix([0, 0, 0.4]))
    if thickness == 0.1:
        both, _ = surface(trimesh.util.concatenate([plate, block]))
        np.testing.assert_allclose(both.extents[:2], plate.extents[:2], atol=1.5 * VOXEL)


def test_two_boxes_that_share_a_wall_keep_it():
    beside = trimesh.creation.box(transform=trimesh.transformations.translation_matrix([1, 0, 0]))
    mesh = trimesh.util.concatenate([trimesh.creation.box(), beside])
    assert len(normalize_mesh(mesh).faces) == 24


def test_what_is_coherent_stays_as_it_is_and_what_has_one_side_only_too():
    for mesh in (BALL, trimesh.creation.torus(1, 0.3), mesh_of(V, BOWL)):
        faces = np.asarray(mesh.faces)
        assert repair_faces(np.asarray(mesh.vertices) / 2, faces)[0] is faces
    count = 20
    strip = np.array([[2 * i, 2 * i + 2, 2 * i + 3, 2 * i + 1] for i in range(count)])
    strip[-1, 1:3] = 1, 0
    turn = np.linspace(0, 2 * np.pi, count, endpoint=False)[:, None] + np.zeros(2)
    across = np.array([-0.1, 0.1]) * np.cos(turn / 2)
    up = np.array([-0.1, 0.1]) * np.sin(turn / 2)
    vertices = np.stack([(0.4 + across) * np.cos(turn), (0.4 + across) * np.sin(turn), up], axis=2).reshape(-1, 3)
    faces, closed = repair_faces(vertices, fans(strip))
    np.testing.assert_array_equal(faces, fans(strip))
    assert not closed


def test_watertight_means_each_edge_twice_and_in_both_directions():
    box = np.asarray(trimesh.creation.box().faces)
    assert is_watertight(box)
    assert not is_watertight(box[1:])
    turned = np.array(box)
    turned[0] = turned[0, ::-1]
    assert not is_watertight(turned)
    assert not is_watertight(np.concatenate([box, box]))
    assert not is_watertight(np.concatenate([box, box[:, ::-1]]))
