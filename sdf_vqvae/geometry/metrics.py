"""How far a rebuilt surface is from the true one: Chamfer distances, F-score, Hausdorff, normal consistency.

Knows two triangle meshes and nothing of fields, codes or networks. Both meshes are moved by the ground
truth's transform (bounding box centered, longest side 1); the prediction is never fitted again, so a shift or
a wrong scale counts against it. Every number comes from points sampled on the two surfaces, with d(p, Q) the
Euclidean distance from p to its nearest point of Q, P the prediction's samples and G the ground truth's.

The two sets of samples are drawn independently, also where the meshes are equal. A perfect prediction
therefore scores the noise of sampling, not zero: about 0.5 * sqrt(area / samples) in Chamfer-L1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import trimesh

Array = npt.NDArray[np.float64]

CUBE_DIAGONAL = 3.0**0.5
"""Largest distance between two points of the unit cube: the distance a failed prediction is charged."""


@dataclass(frozen=True, kw_only=True)
class ReconstructionScore:
    """One prediction against its ground truth, in units of the ground truth's longest side."""

    chamfer_l1: float
    """Mean of the two mean distances."""
    chamfer_l2: float
    """Sum of the two mean squared distances."""
    hausdorff: float
    """Largest distance, over both directions."""
    hausdorff_95: float
    """Larger of the two 95th percentiles of the distances."""
    fscore: dict[float, float]
    """Threshold -> harmonic mean of precision and recall, in 0..1."""
    precision: dict[float, float]
    """Threshold -> share of the prediction's samples that near the ground truth."""
    recall: dict[float, float]
    """Threshold -> share of the ground truth's samples that near the prediction."""
    normal_consistency: float
    """Mean absolute cosine between normals of nearest samples, mean of both directions, in 0..1."""
    samples: int
    """Points sampled on each surface."""
    failed: bool = False
    """There was no prediction, and the worst case stands in for it."""

    @classmethod
    def worst(cls, *, samples: int, thresholds: Sequence[float]) -> ReconstructionScore:
        """Return the score of a prediction that is missing or empty, so that failures enter the mean.

        Every distance is the diagonal of the unit cube, sqrt(3); F-scores and normal consistency are 0.
        """
        zeros = {float(threshold): 0.0 for threshold in thresholds}
        return cls(
            chamfer_l1=CUBE_DIAGONAL,
            chamfer_l2=2 * CUBE_DIAGONAL**2,
            hausdorff=CUBE_DIAGONAL,
            hausdorff_95=CUBE_DIAGONAL,
            fscore=zeros,
            precision=dict(zeros),
            recall=dict(zeros),
            normal_consistency=0.0,
            samples=samples,
            failed=True,
        )

    def to_dict(self) -> dict[str, float | int | bool]:
        """Return flat columns for a table or JSON, e.g. `fscore@0.01`."""
        row: dict[str, float | int | bool] = {
            "chamfer_l1": self.chamfer_l1,
            "chamfer_l2": self.chamfer_l2,
            "hausdorff": self.hausdorff,
            "hausdorff_95": self.hausdorff_95,
            "normal_consistency": self.normal_consistency,
        }
        for name in ("fscore", "precision", "recall"):
            row |= {f"{name}@{threshold:g}": value for threshold, value in getattr(self, name).items()}
        return row | {"samples": self.samples, "failed": self.failed}


def compare_meshes(
    prediction: trimesh.Trimesh | None,
    ground_truth: trimesh.Trimesh,
    *,
    samples: int = 100_000,
    seed: int = 0,
    thresholds: Sequence[float] = (0.005, 0.01, 0.02),
) -> ReconstructionScore:
    """Score a prediction against the ground truth, both in the same units and place.

    Args:
        prediction: The rebuilt mesh. None, or a mesh without area, scores the worst case.
        ground_truth: The true mesh.
        samples: Points sampled on each surface.
        seed: Seed of the samples; the same seed gives the same score.
        thresholds: F-score distances, in units of the ground truth's longest side.

    Raises:
        ValueError: The ground truth has no area, a mesh has coordinates that aren't finite, or an argument is
        out
            of range.
    """
    from scipy.spatial import cKDTree

    if samples < 1:
        raise ValueError(f"samples must be at least 1; got {samples}")
    if not thresholds or min(thresholds) <= 0:
        raise ValueError(f"thresholds must be one or more positive distances; got {tuple(thresholds)}")
    if not _area(ground_truth) > 0:
        raise ValueError("the ground truth has no triangle with an area; check the file it was read from")
    if prediction is None or not _area(prediction) > 0:
        return ReconstructionScore.worst(samples=samples, thresholds=thresholds)

    center, scale = unit_transform(ground_truth)
    # Even and odd seeds keep the two sets of samples independent.
    points, normals = sample_surface(prediction, samples, 2 * seed)
    true_points, true_normals = sample_surface(ground_truth, samples, 2 * seed + 1)
    points, true_points = (points - center) * scale, (true_points - center) * scale
    to_truth, nearest_true = cKDTree(true_points).query(points)
    to_prediction, nearest = cKDTree(points).query(true_points)

    parts = {float(t): fscore(to_truth, to_prediction, t) for t in thresholds}
    return ReconstructionScore(
        chamfer_l1=chamfer_l1(to_truth, to_prediction),
        chamfer_l2=chamfer_l2(to_truth, to_prediction),
        hausdorff=float(max(to_truth.max(), to_prediction.max())),
        hausdorff_95=float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
        fscore={t: part[0] for t, part in parts.items()},
        precision={t: part[1] for t, part in parts.items()},
        recall={t: part[2] for t, part in parts.items()},
        normal_consistency=normal_consistency(normals, true_normals[nearest_true], true_normals, normals[nearest]),
        samples=samples,
    )


def chamfer_l1(to_truth: Array, to_prediction: Array) -> float:
    """Return the mean of the two mean distances: (mean_P d(p, G) + mean_G d(g, P)) / 2."""
    return float((to_truth.mean() + to_prediction.mean()) / 2)


def chamfer_l2(to_truth: Array, to_prediction: Array) -> float:
    """Return the sum of the two mean squared distances: mean_P d(p, G)^2 + mean_G d(g, P)^2."""
    return float(np.square(to_truth).mean() + np.square(to_prediction).mean())


def fscore(to_truth: Array, to_prediction: Array, threshold: float) -> tuple[float, float, float]:
    """Return (F-score, precision, recall) at a distance: F = 2 p r / (p + r), 0 where p + r = 0.

    Precision p is the share of P with d(p, G) < threshold, recall r the share of G with d(g, P) < threshold.
    """
    precision = float((to_truth < threshold).mean())
    recall = float((to_prediction < threshold).mean())
    both = precision + recall
    return (2 * precision * recall / both if both else 0.0), precision, recall


def normal_consistency(
    normals: Array,  # [P, 3]
    nearest_true_normals: Array,  # [P, 3]
    true_normals: Array,  # [G, 3]
    nearest_normals: Array,  # [G, 3]
) -> float:
    """Return (mean_P |n(p) . n(nearest g)| + mean_G |n(g) . n(nearest p)|) / 2, blind to the winding."""
    forward = np.abs((normals * nearest_true_normals).sum(axis=1)).mean()
    backward = np.abs((true_normals * nearest_normals).sum(axis=1)).mean()
    return float((forward + backward) / 2)


def unit_transform(mesh: trimesh.Trimesh) -> tuple[Array, float]:
    """Return (center [3], scale) with which `(points - center) * scale` has its longest side 1."""
    used = _corners(mesh).reshape(-1, 3)
    low, high = used.min(axis=0), used.max(axis=0)
    return (low + high) / 2, float(1 / (high - low).max())


def sample_surface(mesh: trimesh.Trimesh, count: int, seed: int) -> tuple[Array, Array]:
    """Return `count` points [count, 3] drawn evenly by area, and their unit normals [count, 3].

    The same mesh, count and seed give the same points.

    Raises:
        ValueError: The mesh has no area, or a coordinate isn't finite.
    """
    corners = _corners(mesh)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(cross, axis=1)
    total = np.cumsum(length)
    if not len(total) or not total[-1] > 0:
        raise ValueError(f"the mesh has {len(corners)} triangles and no area; nothing to sample")
    rng = np.random.default_rng(seed)
    # Searching from the right, strictly below the total, never lands on a triangle without area.
    face = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    face = np.minimum(face, np.flatnonzero(length)[-1])
    # The square root spreads points evenly over a triangle.
    root, share = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    a, b, c = (corners[face, i] for i in range(3))
    points = (1 - root) * a + root * (1 - share) * b + root * share * c
    return points, cross[face] / length[face, None]


def _corners(mesh: trimesh.Trimesh) -> Array:
    """Return the triangles' corners [F, 3, 3] in double precision."""
    corners = np.asarray(mesh.vertices, dtype=np.float64)[np.asarray(mesh.faces, dtype=np.int64)]
    corners = corners.reshape(-1, 3, 3)
    if not np.isfinite(corners).all():
        raise ValueError("the mesh has coordinates that are NaN or infinite; repair it first")
    return corners


def _area(mesh: trimesh.Trimesh) -> float:
    corners = _corners(mesh)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return float(np.linalg.norm(cross, axis=1).sum() / 2)
