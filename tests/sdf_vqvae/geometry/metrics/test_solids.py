"""Promises of the distances to surfaces and of the overlaps of solids and voxels: known shapes, exact twins."""

from __future__ import annotations

import igl
import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.geometry.metrics.occupancy import (
    Grid,
    fans_over_holes,
    inside_at,
    inside_grid_and_points,
    iou,
    points_near,
)
from sdf_vqvae.geometry.metrics.scores import compare_meshes, sample_surface
from sdf_vqvae.geometry.metrics.surface_distance import distance_to_surface, spatial_order
from sdf_vqvae.geometry.metrics.surface_voxels import surface_voxels
from sdf_vqvae.geometry.voxelizer.winding import winding_number


def box(extents=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(extents=extents)
    mesh.apply_translation(shift)
    return mesh


def sphere(radius: float = 0.5, subdivisions: int = 4) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def arrays(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return np.array(mesh.vertices, dtype=np.float64), np.array(mesh.faces, dtype=np.int64)


def soup(count: int, seed: int) -> np.ndarray:
    """Triangles of all sizes and shapes, slivers among them."""
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-3, -0.2, (count, 1, 1))
    return rng.uniform(-0.4, 0.4, (count, 1, 3)) + size * rng.uniform(-0.5, 0.5, (count, 3, 3))


def distance_to_triangle(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The plain definition: the height over the plane if the foot lies in the triangle, else the nearest edge."""
    a, b, c = corners
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    best = np.full(len(points), np.inf)
    inside = np.ones(len(points), dtype=bool)
    for p, q in ((a, b), (b, c), (c, a)):
        along = np.clip((points - p) @ (q - p) / ((q - p) @ (q - p)), 0, 1)
        best = np.minimum(best, np.linalg.norm(points - p - along[:, None] * (q - p), axis=1))
        inside &= np.cross(q - p, points - p) @ normal >= 0
    return np.where(inside, np.abs((points - a) @ normal), best)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_distances_are_those_to_the_nearest_triangle(seed):
    corners = soup(30, seed)
    points = np.random.default_rng(seed + 1).uniform(-1, 1, (200, 3))
    each = np.stack([distance_to_triangle(points, triangle) for triangle in corners], axis=1)
    distance, face = distance_to_surface(points, corners.reshape(-1, 3), np.arange(90).reshape(-1, 3))
    assert np.allclose(distance, each.min(axis=1), atol=1e-9)
    assert np.allclose(each[np.arange(200), face], distance, atol=1e-9)


def test_distances_agree_with_a_second_library_on_a_real_mesh(repository):
    other = pytest.importorskip("point_cloud_utils")
    from sdf_vqvae.geometry.mesh import load_mesh

    mesh = load_mesh(repository / "examples" / "chair.glb")
    vertices, faces = np.asarray(mesh.vertices, dtype=np.float64), np.asarray(mesh.faces, dtype=np.int64)
    points = sample_surface(mesh, 5000, seed=0)[0] + np.random.default_rng(0).normal(0, 0.01, (5000, 3))
    ours, _ = distance_to_surface(points, vertices, faces)
    theirs, _, _ = other.closest_points_on_mesh(points, vertices, faces)
    assert np.abs(ours - theirs).max() < 1e-9


@given(count=st.integers(0, 50), seed=st.integers(0, 1000))
def test_the_order_of_points_in_space_is_a_permutation(count, seed):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    assert sorted(spatial_order(points).tolist()) == list(range(count))


@pytest.mark.parametrize("subdivisions", [1, 3])
def test_rays_count_the_winding_number(subdivisions):
    """Nested and overlapping parts, turned so that nothing is aligned with the grid, and aligned with it."""
    parts = [sphere(0.5, subdivisions), box((0.3, 0.4, 0.9), (0.2, 0.1, 0.0)), sphere(0.2, subdivisions)]
    parts[2].invert()
    mesh = trimesh.util.concatenate(parts)
    for turned in (False, True):
        if turned:
            mesh.apply_transform(trimesh.transformations.rotation_matrix(0.7, (1, 2, 3)))
        vertices, faces = arrays(mesh)
        grid = Grid.round(vertices, count=20)
        solid, undecided = grid.inside_by_rays(vertices, faces)
        assert len(undecided) == 0
        centers = grid.low + (np.argwhere(np.ones_like(solid)) + 0.5) * grid.cell
        exact = winding_number(torch.from_numpy(centers), torch.from_numpy(vertices[faces])).numpy()
        sure = np.abs(exact - np.round(exact)) < 1e-6  # not on the surface itself
        assert sure.mean() > 0.95
        assert np.array_equal(solid.ravel()[sure], exact[sure] > 0.5)


def test_a_mesh_with_a_hole_keeps_its_inside():
    """No column leaks: cells below the hole are decided by libigl."""
    ball = sphere()
    torn = ball.submesh([ball.triangles_center[:, 2] < 0.47], append=True)
    vertices, faces = arrays(torn)
    grid = Grid.round(vertices, count=48)
    solid, undecided = grid.inside_by_rays(vertices, faces)
    assert len(undecided)
    solid, _ = inside_grid_and_points(grid, np.empty((0, 3)), vertices, faces)
    centers = grid.low + (np.argwhere(np.ones_like(solid)) + 0.5) * grid.cell
    exact = igl.winding_number(vertices, faces, centers)
    assert (solid.ravel() != (exact > 0.5)).mean() < 1e-3


def torn_mesh(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Solids of several parts, closed and not."""
    parts = [sphere(0.5, 3), box((0.3, 0.4, 0.9), (0.2, 0.1, 0.0)), sphere(0.2, 2)]
    parts[2].invert()
    mesh = trimesh.util.concatenate(parts)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(0.7, (1, 2, 3)))
    vertices, faces = arrays(mesh)
    keep = np.ones(len(faces), dtype=bool)
    if kind == "with holes":
        middle = vertices[faces].mean(axis=1)
        keep = (middle[:, 2] < 0.44) & (middle[:, 0] < 0.45)
        keep[::97] = False
    elif kind == "triangles that share nothing":
        vertices, faces = vertices[faces].reshape(-1, 3), np.arange(faces.size).reshape(-1, 3)
    elif kind == "looking inward":
        faces = np.ascontiguousarray(faces[:, ::-1])
    elif kind == "walls along the rays":
        vertices, faces = arrays(trimesh.util.concatenate([box(), box((0.5, 0.5, 2.0)), box((0.2, 0.3, 0.4))]))
        faces = np.concatenate([faces, faces[:, [0, 0, 1]], [[0, 1, 0], [1, 2, 3], [3, 2, 1]]])
        keep = np.ones(len(faces), dtype=bool)
    return vertices, faces[keep]


@pytest.mark.parametrize(
    "kind", ["closed", "with holes", "triangles that share nothing", "looking inward", "walls along the rays"]
)
def test_points_are_inside_where_the_winding_number_exceeds_a_half(kind):
    vertices, faces = torn_mesh(kind)
    points = np.random.default_rng(0).uniform(-0.7, 0.7, (3000, 3))
    exact = winding_number(torch.from_numpy(points), torch.from_numpy(vertices[faces])).numpy()
    exact = -exact if kind == "looking inward" else exact
    sure = np.abs(exact - 0.5) > 0.01
    assert sure.mean() > 0.95
    assert 0.1 < (exact > 0.5).mean() < 0.9
    assert np.array_equal(inside_at(points, vertices, faces)[sure], exact[sure] > 0.5)


def test_fans_close_every_hole():
    vertices, faces = torn_mesh("with holes")
    tips, fans = fans_over_holes(vertices, faces)
    assert len(tips) > 5
    whole = np.concatenate([faces, fans])
    edges = np.concatenate([whole[:, [0, 1]], whole[:, [1, 2]], whole[:, [2, 0]]])
    assert sorted(edges.tolist()) == sorted(edges[:, ::-1].tolist())
    assert fans.max() == len(vertices) + len(tips) - 1


def test_faces_without_area_leave_a_solid_closed():
    """They are not sampled, but the inside is that of the mesh with them."""
    vertices, faces = arrays(box())
    split = np.concatenate([faces[1:], [[faces[0, 0], faces[0, 1], 8], [8, faces[0, 1], faces[0, 2]]]])
    vertices = np.concatenate([vertices, vertices[faces[0, [0, 2]]].mean(axis=0, keepdims=True)])
    sliver = np.array([[faces[0, 0], 8, faces[0, 2]]])
    mesh = trimesh.Trimesh(vertices, np.concatenate([split, sliver]), process=False)
    score = compare_meshes(mesh, box(), watertight=True, samples=1000)
    assert (score.volume_iou, score.surface_iou, score.voxel_iou) == (1.0, 1.0, 1.0)


def test_concentric_spheres_overlap_by_the_ratio_of_their_volumes():
    score = compare_meshes(sphere(0.47, 5), sphere(0.5, 5), watertight=True, samples=20_000)
    assert score.volume_iou == pytest.approx((0.47 / 0.5) ** 3, abs=0.003)
    # Of the layer within 0.02 of the surface the truth has the inner half; the smaller ball reaches none of it.
    assert score.surface_iou == 0.0
    inner = compare_meshes(sphere(0.49, 5), sphere(0.5, 5), watertight=True, samples=20_000)
    shell = (0.49**3 - 0.48**3) / (0.5**3 - 0.48**3)
    assert inner.surface_iou == pytest.approx(shell, abs=0.02)


@settings(max_examples=5, deadline=None)
@given(shift=st.floats(0.01, 0.6), axis=st.integers(0, 2))
def test_shifted_boxes_overlap_as_computed_by_hand(shift, axis):
    move = np.eye(3)[axis] * shift
    score = compare_meshes(box(shift=move), box(), watertight=True, samples=1000)
    assert score.volume_iou == pytest.approx((1 - shift) / (1 + shift), abs=0.02)


def test_a_shifted_sheet_is_its_shift_away():
    """The distance is to the surface, not to its samples: exact where samples of 1,000 points would see 0.03."""
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    moved = flat.copy()
    moved.apply_translation([0, 0, 0.0015])
    score = compare_meshes(moved, flat, samples=1000)
    assert score.chamfer_l1 == pytest.approx(0.0015, rel=1e-9)
    assert score.chamfer_l2 == pytest.approx(2 * 0.0015**2, rel=1e-9)
    assert score.hausdorff == pytest.approx(0.0015, rel=1e-9)
    assert (score.fscore[0.001], score.fscore[0.002]) == (0.0, 1.0)
    assert score.volume_iou is None
    assert score.surface_iou is None


def test_a_mesh_that_looks_inward_is_the_same_solid():
    turned = sphere()
    turned.invert()
    score = compare_meshes(turned, sphere(), watertight=True, samples=1000)
    assert (score.volume_iou, score.surface_iou, score.voxel_iou) == (1.0, 1.0, 1.0)


def test_points_near_a_surface_fill_the_layer_evenly():
    ball = sphere(0.5, 5)
    on_surface, _ = sample_surface(ball, 50_000, seed=0)
    vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces, dtype=np.int64)
    points = points_near(vertices, faces, on_surface, ball.area, seed=0)
    radius = np.linalg.norm(points, axis=1)
    assert 30_000 < len(points) < 70_000
    assert (np.abs(radius - 0.5) < 0.0205).all()
    inner, outer = 0.5**3 - 0.48**3, 0.52**3 - 0.5**3
    assert (radius < 0.5).mean() == pytest.approx(inner / (inner + outer), abs=0.01)


def reference_voxels(corners: np.ndarray, side: int) -> np.ndarray:
    """Voxels that hold one of very many points of the surface: a subset of those it touches, missing few."""
    on = np.zeros((side,) * 3, dtype=bool)
    steps = np.linspace(0, 1, 120)
    u, v = (grid.ravel() for grid in np.meshgrid(steps, steps))
    keep = u + v <= 1
    weights = np.stack([1 - u - v, u, v], axis=1)[keep]
    for triangle in corners:
        cell = np.floor((weights @ triangle + 0.5) * side).astype(int)
        on[tuple(np.clip(cell, 0, side - 1).T)] = True
    return on


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_voxels_are_those_that_the_surface_touches(seed):
    corners = np.clip(soup(12, seed), -0.49, 0.49)
    vertices = corners.reshape(-1, 3)
    exact = surface_voxels(vertices, np.arange(len(vertices)).reshape(-1, 3), side=16)
    sampled = reference_voxels(corners, side=16)
    assert not (sampled & ~exact).any()
    assert (exact & ~sampled).sum() <= 0.05 * exact.sum() + 3


def test_voxels_of_a_box_are_its_walls():
    on = surface_voxels(*arrays(box((0.96, 0.96, 0.96))), side=64)
    assert on.sum() == 64**3 - 60**3 - (64**3 - 62**3)  # walls in the second layer from outside
    assert iou(on, on) == 1.0
    assert iou(np.zeros(3, dtype=bool), np.zeros(3, dtype=bool)) == 1.0


def test_surface_outside_the_cube_counts_for_the_voxels_at_its_walls():
    at_the_wall, beyond = (surface_voxels(*arrays(box((s, s, s))), side=8) for s in (1.0, 1.002))
    assert np.array_equal(at_the_wall, beyond)
    assert not surface_voxels(*arrays(box(shift=(5, 0, 0))), side=8).any()


@pytest.mark.parametrize(
    "prediction",
    [
        sphere(1e6),
        sphere(1e-6),
        box(shift=(1e4, 0, 0)),
        trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False),
    ],
    ids=["huge", "tiny", "far away", "one triangle"],
)
def test_absurd_predictions_score_badly_and_fast(prediction):
    score = compare_meshes(prediction, box(), watertight=True, samples=1000)
    assert score.chamfer_l1 > 0.3
    assert score.fscore[0.01] < 0.05
    assert score.volume_iou < 0.5
    assert score.voxel_iou < 0.5
    assert all(np.isfinite(v) for v in score.to_dict().values())
