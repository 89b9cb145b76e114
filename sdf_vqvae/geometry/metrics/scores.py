"""How far a rebuilt surface is from the true one: distances, F-scores, normals, and overlaps of solids and voxels.

Knows two triangle meshes and nothing of fields, codes or networks. Both meshes are moved by the ground truth's
transform (bounding box centered, longest side 1); the prediction is never fitted again, so a shift or a wrong scale
counts against it.

P are points sampled evenly on the prediction, G on the ground truth; d(p, T) is the Euclidean distance from p to the
nearest point of the other mesh's surface, not to its nearest sample: between two sets of 100,000 samples the spacing
alone costs about 0.002. A perfect prediction scores 0 in every distance and 1 in every share.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sdf_vqvae.geometry.metrics.occupancy import Grid, inside_grid_and_points, iou, points_near
from sdf_vqvae.geometry.metrics.surface_distance import cross_products, distance_to_surface, twice_areas, with_area
from sdf_vqvae.geometry.metrics.surface_voxels import surface_voxels

if TYPE_CHECKING:
    import trimesh

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

CUBE_DIAGONAL = 3.0**0.5
"""Largest distance between two points of the unit cube: the distance a failed prediction is charged."""
THRESHOLDS = (0.001, 0.002, 0.005, 0.01, 0.02)
"""Distances of the F-scores, in units of the ground truth's longest side."""
DIAGONAL_SHARES = (0.0125, 0.025, 0.05)
"""Distances of the F-scores that are shares of the bounding box's diagonal."""

_FARTHEST = 0.5
"""How far from the ground truth's bounding box volume IoU looks; cells would grow with what lies beyond."""
_NO_AREA = "the ground truth has no triangle with an area; check the file it was read from"

FORMULAS = {
    "transform": "both meshes: (x - center) * scale of the ground truth's bounding box, longest side 1; no re-fit",
    "P, G": "points sampled evenly by area on the prediction and on the ground truth, fixed seed",
    "d(p, T), d(g, S)": "exact distance from a point to the other mesh's surface (not to its samples)",
    "chamfer_l1": "(mean_P d(p, T) + mean_G d(g, S)) / 2",
    "chamfer_l2": "mean_P d(p, T)^2 + mean_G d(g, S)^2",
    "hausdorff": "max(max_P d(p, T), max_G d(g, S)); hausdorff_95: the larger of the two 95th percentiles",
    "fscore@t": "2 p r / (p + r), precision p = share of P with d(p, T) < t, recall r = share of G with d(g, S) < t",
    "fscore@t*diagonal": "the same at t times the diagonal of the ground truth's bounding box",
    "normal_consistency": "(mean_P |n(p) . n(nearest point of T)| + mean_G |n(g) . n(nearest point of S)|) / 2",
    "volume_iou": "|A and B| / |A or B|, A and B the cell centers in prediction and truth (winding number > 0.5), "
    "128^3 cells of the truth's bounding box + 0.05 on every side (of both boxes where the prediction exceeds "
    "that, up to 0.5); watertight truths only",
    "surface_iou": "the same over about 50,000 points spread evenly over the volume within 0.02 of the truth's "
    "surface; watertight truths only",
    "voxel_iou": "|A and B| / |A or B|, A and B the voxels of 64^3 in [-0.5, 0.5]^3 that the surfaces touch (exact "
    "triangle-box test); voxel_f1 = 2 IoU / (1 + IoU)",
    "failures": f"no prediction: every distance sqrt(3) = {CUBE_DIAGONAL:.3f}, chamfer_l2 6, every share 0; counted, "
    "not dropped",
}
"""What every measure is, for people."""


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
    """Mean absolute cosine between normals of samples and of their nearest points, mean of both directions."""
    voxel_iou: float
    """Overlap of the voxels of 64^3 that the surfaces touch, in 0..1."""
    fscore_diagonal: dict[float, float] = field(default_factory=dict)
    """Share of the bounding box's diagonal -> F-score at that distance."""
    volume_iou: float | None = None
    """Overlap of the two solids; None where the ground truth is not known to be one."""
    surface_iou: float | None = None
    """Overlap of the two solids near the ground truth's surface; None as above."""
    samples: int
    """Points sampled on each surface."""
    failed: bool = False
    """There was no prediction, and the worst case stands in for it."""

    @classmethod
    def worst(
        cls, *, samples: int, thresholds: Sequence[float] = THRESHOLDS, watertight: bool = False
    ) -> ReconstructionScore:
        """Return the score of a prediction that is missing or empty, so that failures enter the mean.

        Every distance is the diagonal of the unit cube, sqrt(3); every share is 0.
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
            voxel_iou=0.0,
            fscore_diagonal=dict.fromkeys(DIAGONAL_SHARES, 0.0),
            volume_iou=0.0 if watertight else None,
            surface_iou=0.0 if watertight else None,
            samples=samples,
            failed=True,
        )

    def to_dict(self) -> dict[str, float | int | bool | None]:
        """Return flat columns for a table or JSON, e.g. `fscore@0.01` and `fscore@0.05*diagonal`."""
        row: dict[str, float | int | bool | None] = {
            "chamfer_l1": self.chamfer_l1,
            "chamfer_l2": self.chamfer_l2,
            "hausdorff": self.hausdorff,
            "hausdorff_95": self.hausdorff_95,
            "normal_consistency": self.normal_consistency,
            "volume_iou": self.volume_iou,
            "surface_iou": self.surface_iou,
            "voxel_iou": self.voxel_iou,
            "voxel_f1": 2 * self.voxel_iou / (1 + self.voxel_iou),
        }
        for name in ("fscore", "precision", "recall"):
            row |= {f"{name}@{threshold:g}": value for threshold, value in getattr(self, name).items()}
        row |= {f"fscore@{share:g}*diagonal": value for share, value in self.fscore_diagonal.items()}
        return row | {"samples": self.samples, "failed": self.failed}


class GroundTruth:
    """A true mesh with all that comparing predictions with it needs, worked out once.

    Args:
        mesh: the true mesh, in any units.
        samples: points sampled on each surface.
        seed: of the samples; the same seed gives the same score.
        thresholds: F-score distances, in units of the longest side.
        watertight: the mesh is closed, so it has an inside: volume and surface IoU are measured too.

    Raises:
        ValueError: the mesh has no area, coordinates that aren't finite, or an argument is out of range.
    """

    def __init__(
        self,
        mesh: trimesh.Trimesh,
        *,
        samples: int = 100_000,
        seed: int = 0,
        thresholds: Sequence[float] = THRESHOLDS,
        watertight: bool = False,
    ) -> None:
        if samples < 1:
            raise ValueError(f"samples must be at least 1; got {samples}")
        if not thresholds or min(thresholds) <= 0:
            raise ValueError(f"thresholds must be one or more positive distances; got {tuple(thresholds)}")
        self.samples, self.seed, self.watertight = samples, seed, watertight
        self.thresholds = tuple(float(t) for t in thresholds)
        if not len(mesh.faces):
            raise ValueError(_NO_AREA)
        self.center, self.scale = unit_transform(mesh)
        self._surface = _Surface.of(mesh, self.center, self.scale)
        if not len(self._surface.faces):
            raise ValueError(_NO_AREA)
        # Even and odd seeds keep the two sets of samples independent.
        self._points, self._normals = self._surface.sample(samples, 2 * seed + 1)
        ends = self._surface.ends
        self.diagonal = float(np.linalg.norm(np.ptp(ends, axis=0)))
        self._voxels = surface_voxels(self._surface.vertices, self._surface.faces)
        if watertight:
            self._grid = Grid.round(ends)
            self._near = points_near(
                self._surface.vertices, self._surface.faces, self._points, self._surface.area, seed
            )
            self._solid, self._near_inside = inside_grid_and_points(self._grid, self._near, *self._surface.whole)

    def score(self, prediction: trimesh.Trimesh | None) -> ReconstructionScore:
        """Score a prediction in the ground truth's own units and place.

        None, or a mesh without area, scores the worst case.

        Raises:
            ValueError: the prediction has coordinates that aren't finite.
        """
        surface = None if prediction is None else _Surface.of(prediction, self.center, self.scale)
        if surface is None or not len(surface.faces):
            return self.worst()
        truth = self._surface
        points, normals = surface.sample(self.samples, 2 * self.seed)
        to_truth, true_face = distance_to_surface(points, truth.vertices, truth.faces)
        to_prediction, face = distance_to_surface(self._points, surface.vertices, surface.faces)
        parts = {t: fscore(to_truth, to_prediction, t) for t in self.thresholds}
        volume_iou, surface_iou = self._solid_ious(surface) if self.watertight else (None, None)
        return ReconstructionScore(
            chamfer_l1=chamfer_l1(to_truth, to_prediction),
            chamfer_l2=chamfer_l2(to_truth, to_prediction),
            hausdorff=float(max(to_truth.max(), to_prediction.max())),
            hausdorff_95=float(max(np.percentile(to_truth, 95), np.percentile(to_prediction, 95))),
            fscore={t: part[0] for t, part in parts.items()},
            precision={t: part[1] for t, part in parts.items()},
            recall={t: part[2] for t, part in parts.items()},
            normal_consistency=normal_consistency(
                normals, truth.normals(true_face), self._normals, surface.normals(face)
            ),
            voxel_iou=iou(surface_voxels(surface.vertices, surface.faces), self._voxels),
            fscore_diagonal={s: fscore(to_truth, to_prediction, s * self.diagonal)[0] for s in DIAGONAL_SHARES},
            volume_iou=volume_iou,
            surface_iou=surface_iou,
            samples=self.samples,
        )

    def worst(self) -> ReconstructionScore:
        """Return what a missing prediction scores."""
        return ReconstructionScore.worst(samples=self.samples, thresholds=self.thresholds, watertight=self.watertight)

    def _solid_ious(self, surface: _Surface) -> tuple[float, float]:
        """Return volume and surface IoU.

        What sticks out of the grid counts too: then the grid holds both meshes, the prediction up to `_FARTHEST`.
        """
        grid, solid = self._grid, self._solid
        ends = surface.ends
        if not grid.holds(ends):
            own = self._surface.ends
            reach = np.clip(ends, own[0] - _FARTHEST, own[1] + _FARTHEST)
            grid = Grid.round(np.concatenate([reach, own]))
            solid, _ = inside_grid_and_points(grid, self._near[:0], *self._surface.whole)
        inside, near = inside_grid_and_points(grid, self._near, *surface.whole)
        return iou(inside, solid), iou(near, self._near_inside)


def compare_meshes(
    prediction: trimesh.Trimesh | None,
    ground_truth: trimesh.Trimesh,
    *,
    samples: int = 100_000,
    seed: int = 0,
    thresholds: Sequence[float] = THRESHOLDS,
    watertight: bool = False,
) -> ReconstructionScore:
    """Score a prediction against the ground truth, both in the same units and place.

    Arguments and errors are those of `GroundTruth` and of its `score`, which compares several predictions faster.
    """
    truth = GroundTruth(ground_truth, samples=samples, seed=seed, thresholds=thresholds, watertight=watertight)
    return truth.score(prediction)


def chamfer_l1(to_truth: Array, to_prediction: Array) -> float:
    """Return the mean of the two mean distances: (mean_P d(p, T) + mean_G d(g, S)) / 2."""
    return float((to_truth.mean() + to_prediction.mean()) / 2)


def chamfer_l2(to_truth: Array, to_prediction: Array) -> float:
    """Return the sum of the two mean squared distances: mean_P d(p, T)^2 + mean_G d(g, S)^2."""
    return float(np.square(to_truth).mean() + np.square(to_prediction).mean())


def fscore(to_truth: Array, to_prediction: Array, threshold: float) -> tuple[float, float, float]:
    """Return (F-score, precision, recall) at a distance: F = 2 p r / (p + r), 0 where p + r = 0.

    Precision p is the share of P with d(p, T) < threshold, recall r the share of G with d(g, S) < threshold.
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
    """Return (mean_P |n(p) . n(nearest of T)| + mean_G |n(g) . n(nearest of S)|) / 2, blind to the winding."""
    forward = np.abs((normals * nearest_true_normals).sum(axis=1)).mean()
    backward = np.abs((true_normals * nearest_normals).sum(axis=1)).mean()
    return float((forward + backward) / 2)


def unit_transform(mesh: trimesh.Trimesh) -> tuple[Array, float]:
    """Return (center [3], scale) with which `(points - center) * scale` has its longest side 1."""
    low, high = _ends(*_arrays(mesh))
    return (low + high) / 2, float(1 / (high - low).max())


def sample_surface(mesh: trimesh.Trimesh, count: int, seed: int) -> tuple[Array, Array]:
    """Return `count` points [count, 3] drawn evenly by area, and their unit normals [count, 3].

    The same mesh, count and seed give the same points.

    Raises:
        ValueError: The mesh has no area, or a coordinate isn't finite.
    """
    vertices, faces = _arrays(mesh)
    return _sample(vertices, faces, twice_areas(vertices, faces), count, seed)


def _sample(vertices: Array, faces: Indices, twice_area: Array, count: int, seed: int) -> tuple[Array, Array]:
    total = np.cumsum(twice_area)
    if not len(total) or not total[-1] > 0:
        raise ValueError(f"the mesh has {len(faces)} triangles and no area; nothing to sample")
    rng = np.random.default_rng(seed)
    # Searching from the right, strictly below the total, never lands on a triangle without area.
    face = np.searchsorted(total, rng.random(count) * total[-1], side="right")
    face = np.minimum(face, np.flatnonzero(twice_area)[-1])
    # The square root spreads points evenly over a triangle.
    root, share = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    corners = vertices[faces[face]]
    a, b, c = (corners[:, i] for i in range(3))
    points = (1 - root) * a + root * (1 - share) * b + root * share * c
    return points, cross_products(corners) / twice_area[face, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Surface:
    """A mesh on the ground truth's transform."""

    vertices: Array
    """`[V, 3]`."""
    all_faces: Indices
    """`[G, 3]`. Without those that have no area a closed mesh would be open."""
    faces: Indices
    """`[F, 3]`: those that have an area."""
    twice_area: Array
    """`[F]`."""

    @classmethod
    def of(cls, mesh: trimesh.Trimesh, center: Array, scale: float) -> _Surface:
        vertices, faces = _arrays(mesh, center, scale)
        twice_area = twice_areas(vertices, faces)
        real = with_area(twice_area, 1.0)
        if len(real) == len(faces):
            return cls(vertices=vertices, all_faces=faces, faces=faces, twice_area=twice_area)
        return cls(vertices=vertices, all_faces=faces, faces=faces[real], twice_area=twice_area[real])

    @property
    def whole(self) -> tuple[Array, Indices]:
        return self.vertices, self.all_faces

    @property
    def area(self) -> float:
        return float(self.twice_area.sum() / 2)

    @functools.cached_property
    def ends(self) -> Array:
        return _ends(self.vertices, self.faces)

    def sample(self, count: int, seed: int) -> tuple[Array, Array]:
        return _sample(self.vertices, self.faces, self.twice_area, count, seed)

    def normals(self, face: Indices) -> Array:
        """Return the unit normals of faces `[P, 3]`."""
        return cross_products(self.vertices[self.faces[face]]) / self.twice_area[face, None]


def _arrays(mesh: trimesh.Trimesh, center: Array | float = 0.0, scale: float = 1.0) -> tuple[Array, Indices]:
    """Return vertices [V, 3] in double precision and faces [F, 3] of a mesh."""
    vertices = (np.asarray(mesh.vertices, dtype=np.float64) - center) * scale
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int64).reshape(-1, 3)
    if not np.isfinite(vertices).all() and not np.isfinite(vertices[faces]).all():
        raise ValueError("the mesh has coordinates that are NaN or infinite; repair it first")
    return vertices, faces


def _ends(vertices: Array, faces: Indices) -> Array:
    """Return the two ends of the bounding box of triangles `[2, 3]`."""
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    return np.stack([vertices[used].min(axis=0), vertices[used].max(axis=0)])
