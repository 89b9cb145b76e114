"""Promises of the reconstruction metrics: analytic values, one transform for both, no dropped failures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import trimesh

from sdf_vqvae.geometry.metrics.scores import (
    ReconstructionScore,
    chamfer_l1,
    chamfer_l2,
    compare_meshes,
    fscore,
    sample_surface,
    unit_transform,
)


def sphere(radius: float = 0.5, subdivisions: int = 5) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)


def test_samples_lie_on_the_surface_evenly_by_area() -> None:
    mesh = trimesh.creation.box(extents=(1.0, 2.0, 4.0))
    points, normals = sample_surface(mesh, 50_000, seed=1)
    half = np.array([0.5, 1.0, 2.0])
    axis = np.abs(normals).argmax(axis=1)
    rows = np.arange(len(points))
    assert np.allclose(np.linalg.norm(normals, axis=1), 1)
    assert np.allclose(points[rows, axis], half[axis] * normals[rows, axis])
    assert (np.abs(points) <= half + 1e-12).all()
    share = np.bincount(axis) / len(points)
    assert np.allclose(share, np.array([8, 4, 2]) / 14, atol=0.01)
    on_top = points[axis == 2]
    assert np.allclose(on_top[:, :2].mean(axis=0), 0, atol=0.02)
    assert np.allclose(on_top[:, :2].std(axis=0), [1 / math.sqrt(12), 2 / math.sqrt(12)], atol=0.02)


def test_samples_depend_on_the_seed_alone() -> None:
    first, again, other = (sample_surface(sphere(), 100, seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_triangles_without_area_are_never_sampled() -> None:
    vertices = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]]
    mesh = trimesh.Trimesh(vertices, [[3, 3, 3], [0, 1, 2], [3, 3, 0]], process=False)
    points, normals = sample_surface(mesh, 1000, seed=0)
    assert points.max() <= 1
    assert np.allclose(normals, [0, 0, 1])


def test_formulas_on_distances_known_by_hand() -> None:
    to_truth, to_prediction = np.array([0.0, 0.2]), np.array([0.1, 0.1, 0.4])
    assert chamfer_l1(to_truth, to_prediction) == pytest.approx((0.1 + 0.2) / 2)
    assert chamfer_l2(to_truth, to_prediction) == pytest.approx(0.02 + 0.06)
    assert fscore(to_truth, to_prediction, 0.15) == pytest.approx((2 * 0.5 * (2 / 3) / (0.5 + 2 / 3), 0.5, 2 / 3))
    assert fscore(to_truth + 1, to_prediction + 1, 0.15) == (0.0, 0.0, 0.0)


def test_a_mesh_against_itself_scores_nothing_but_rounding() -> None:
    score = compare_meshes(sphere(), sphere(), samples=10_000)
    assert score.hausdorff < 1e-12
    assert set(score.fscore.values()) == {1.0}
    assert set(score.fscore_diagonal.values()) == {1.0}
    assert score.normal_consistency == pytest.approx(1.0)
    assert score.voxel_iou == 1.0
    assert not score.failed


def test_concentric_spheres_are_their_gap_apart() -> None:
    score = compare_meshes(sphere(0.53), sphere(0.5), samples=50_000, thresholds=(0.025, 0.035))
    assert score.chamfer_l1 == pytest.approx(0.03, rel=0.03)
    assert score.chamfer_l2 == pytest.approx(2 * 0.03**2, rel=0.05)
    assert score.hausdorff == pytest.approx(0.03, rel=1e-3)
    assert score.hausdorff_95 <= score.hausdorff
    assert score.fscore[0.025] == 0.0
    assert score.fscore[0.035] == pytest.approx(1.0, abs=1e-3)


def test_both_meshes_move_by_the_ground_truths_transform() -> None:
    """A common change of units changes nothing; a shift of the prediction alone counts in full."""
    truth, prediction = sphere(0.5), sphere(0.5)
    prediction.apply_translation([0.1, 0, 0])
    before = compare_meshes(prediction, truth, samples=20_000)
    for mesh in (truth, prediction):
        mesh.apply_scale(250.0)
        mesh.apply_translation([1000.0, -300.0, 77.0])
    after = compare_meshes(prediction, truth, samples=20_000)
    assert after.chamfer_l1 == pytest.approx(before.chamfer_l1, rel=1e-6)
    assert before.chamfer_l1 > 0.04
    center, scale = unit_transform(truth)
    assert np.allclose(center, [1000.0, -300.0, 77.0])
    assert scale == pytest.approx(1 / 250.0)


def test_winding_does_not_change_the_score() -> None:
    truth, flipped = sphere(), sphere()
    flipped.invert()
    assert compare_meshes(flipped, truth, samples=20_000).normal_consistency > 0.999


def test_half_a_surface_has_full_precision_and_half_recall() -> None:
    truth = sphere()
    half = truth.submesh([truth.triangles_center[:, 2] > 0], append=True)
    score = compare_meshes(half, truth, samples=50_000, thresholds=(0.02,))
    assert score.precision[0.02] > 0.999
    assert score.recall[0.02] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("missing", [None, trimesh.Trimesh(), trimesh.Trimesh([[0, 0, 0]] * 3, [[0, 1, 2]])])
def test_a_missing_prediction_scores_the_worst_case(missing: trimesh.Trimesh | None) -> None:
    score = compare_meshes(missing, sphere(), samples=1000, thresholds=(0.01, 0.02), watertight=True)
    assert score.failed
    assert score == ReconstructionScore.worst(samples=1000, thresholds=(0.01, 0.02), watertight=True)
    assert (score.chamfer_l1, score.chamfer_l2) == pytest.approx((math.sqrt(3), 6.0))
    assert score.fscore == {0.01: 0.0, 0.02: 0.0}
    assert (score.normal_consistency, score.voxel_iou, score.volume_iou, score.surface_iou) == (0, 0, 0, 0)


def test_scores_become_flat_rows_for_json() -> None:
    row = compare_meshes(sphere(), sphere(), samples=1000, thresholds=(0.1,)).to_dict()
    assert json.loads(json.dumps(row)) == row
    assert {"chamfer_l1", "chamfer_l2", "fscore@0.1", "recall@0.1", "normal_consistency", "failed"} <= set(row)


def test_wrong_input_is_refused_by_name() -> None:
    spoiled = sphere()
    spoiled.vertices[0] = np.nan
    with pytest.raises(ValueError, match="ground truth has no triangle"):
        compare_meshes(sphere(), trimesh.Trimesh())
    with pytest.raises(ValueError, match="NaN or infinite"):
        compare_meshes(spoiled, sphere())
    with pytest.raises(ValueError, match="samples must be at least 1; got 0"):
        compare_meshes(sphere(), sphere(), samples=0)
    with pytest.raises(ValueError, match="positive distances"):
        compare_meshes(sphere(), sphere(), thresholds=())
    with pytest.raises(ValueError, match="no area"):
        sample_surface(trimesh.Trimesh(), 10, seed=0)
