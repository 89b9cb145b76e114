"""Which voxels of a coarse grid a surface passes through: an exact test of triangles against boxes, in NumPy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sdf_vqvae.geometry.metrics.surface_distance import bounds

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LARGE = 4
"""Triangles that span more voxels than this along an axis are halved first."""
_PAIRS = 1 << 19
_AXES = np.eye(3)


def surface_voxels(corners: Array, side: int = 64) -> Mask:
    """Return which voxels of the cube [-0.5, 0.5]^3 the surface touches. bool `[side, side, side]`

    A voxel is on if a triangle meets its closed box (separating axes: Akenine-Möller, 2001). What sticks out of the
    cube is moved onto its walls, so that a prediction that exceeds the ground truth by a hair is not lost; triangles
    that lie farther out than a voxel are left out.

    Args:
        corners: `[F, 3, 3]`.
        side: voxels along an axis.
    """
    on = np.zeros((side, side, side), dtype=bool)
    lowest, highest = bounds(corners)
    near = ((highest >= -0.5 - 1 / side) & (lowest <= 0.5 + 1 / side)).all(axis=1)
    corners = (np.clip(corners[near], -0.5, 0.5) + 0.5) * side
    for part in _small_triangles(corners):
        lowest, highest = bounds(part)
        low = np.clip(np.ceil(lowest).astype(np.int64) - 1, 0, side - 1)
        high = np.clip(np.floor(highest).astype(np.int64), 0, side - 1)
        counts = high - low + 1
        pairs = counts[:, 0] * counts[:, 1] * counts[:, 2]
        alone = pairs == 1
        on[tuple(low[alone].T)] = True
        rest = np.flatnonzero(~alone)
        for rows in np.array_split(rest, max(1, -(-int(pairs[rest].sum()) // _PAIRS))):
            face = np.repeat(rows, pairs[rows])
            within = np.arange(len(face)) - np.repeat(np.cumsum(pairs[rows]) - pairs[rows], pairs[rows])
            _, ny, nz = counts[face].T
            voxel = low[face] + np.stack([within // (ny * nz), within // nz % ny, within % nz], axis=1)
            new = ~on[tuple(voxel.T)]
            face, voxel = face[new], voxel[new]
            on[tuple(voxel[_meets_box(part[face] - (voxel[:, None] + 0.5))].T)] = True
    return on


def _small_triangles(corners: Array) -> Iterator[Array]:
    """Yield triangles `[f, 3, 3]` of the same surface, none more than `_LARGE` voxels along an axis."""
    while len(corners):
        low, high = bounds(corners)
        extent = high - low
        large = np.maximum(np.maximum(extent[:, 0], extent[:, 1]), extent[:, 2]) > _LARGE
        if not large.any():
            yield corners
            return
        yield corners[~large]
        rest = corners[large]
        # Halved at the longest edge, so that long thin triangles don't become many.
        longest = np.abs(np.roll(rest, -1, axis=1) - rest).max(axis=2).argmax(axis=1)
        a, b, c = (np.take_along_axis(rest, ((longest + i) % 3)[:, None, None], axis=1)[:, 0] for i in range(3))
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])


def _meets_box(corners: Array) -> Mask:
    """Return whether triangles `[P, 3, 3]` meet the box [-0.5, 0.5]^3, given that their own boxes do. bool `[P]`"""
    sides = np.roll(corners, -1, axis=1) - corners
    normal = np.cross(sides[:, 0], sides[:, 1])
    meets = np.abs((normal * corners[:, 0]).sum(axis=1)) <= np.abs(normal).sum(axis=1) / 2
    left = np.flatnonzero(meets)
    for edge in range(3):
        for axis in range(3):
            direction = np.cross(sides[left, edge], _AXES[axis])
            # The two ends of the edge project to one value; the third corner to the other.
            one = (direction * corners[left, edge]).sum(axis=1)
            other = (direction * corners[left, (edge + 2) % 3]).sum(axis=1)
            reach = np.abs(direction).sum(axis=1) / 2
            ok = (np.minimum(one, other) <= reach) & (np.maximum(one, other) >= -reach)
            meets[left[~ok]] = False
            left = left[ok]
    return meets
