"""Which cells of a grid, and which points, lie inside a mesh; and the overlap of two solids measured with them.

Inside is where the winding number exceeds one half. On a grid it is counted along rays: the winding number of a
closed surface is the sum of the signs of what a ray crosses, in whichever direction. Works on corners `[F, 3, 3]` and
knows nothing of fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdf_vqvae.geometry.metrics.surface_distance import bounds, distance_to_surface, spatial_order

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

GRID = 128
"""Cells a side of the grid of volume IoU."""
MARGIN = 0.05
"""What is added to the ground truth's bounding box on every side, in units of its longest side."""
NEAR = 0.02
"""Points of surface IoU lie this near the ground truth's surface."""
NEAR_POINTS = 50_000
_CELL = (0.004, 0.02)
"""Least and largest side of the cells that hold a point of surface IoU each."""
_MOST_UNDECIDED = 50_000
_PAIRS = 1 << 21
"""(triangle, column) pairs looked at together."""


def iou(one: Mask, other: Mask) -> float:
    """Return |A and B| / |A or B|; 1 where both are empty."""
    union = int((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Cell centers of a box."""

    low: Array
    """The box's lowest corner `[3]`."""
    cell: Array
    """Sides of a cell `[3]`."""
    count: int
    """Cells along each side."""

    @classmethod
    def round(cls, points: Array, *, count: int = GRID, margin: float = MARGIN) -> Grid:
        """Return the grid of the bounding box of points, widened by `margin` on every side."""
        low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
        return cls(low=low, cell=(high - low) / count, count=count)

    def holds(self, points: Array) -> bool:
        """Return whether all points `[P, 3]` lie in the box."""
        return bool((points >= self.low).all() and (points <= self.low + self.count * self.cell).all())

    def inside_by_rays(self, corners: Array) -> tuple[Mask, npt.NDArray[np.int64]]:
        """Return whether each cell center lies inside the mesh `[F, 3, 3]`, and which cells rays can't decide.

        In a column that crosses a closed surface all signs cancel, and the sum over the crossings above a center is
        its winding number. Where they don't cancel, the mesh has holes: then the winding number is the mean of that
        sum over all directions. Six are counted; where not all agree, the cell is left open (and reads False). A
        surface so torn that a great many cells are open is no solid: there the majority of the six decides.

        Returns:
            bool `[count, count, count]`, and int64 `[U, 3]`.
        """
        corners = facing_outward((corners - self.low) / self.cell - 0.5)  # cell centers at integers
        above, total = column_winding(corners, self.count)
        if not total.any():
            return above > 0.5, np.empty((0, 3), dtype=np.int64)
        votes = (above > 0.5).astype(np.int8) + (above - total[:, :, None] > 0.5)
        for turn in (1, 2):
            turned, missing = column_winding(np.roll(corners, turn, axis=2), self.count)
            agree = (turned > 0.5).astype(np.int8) + (turned - missing[:, :, None] > 0.5)
            votes += np.moveaxis(agree, (0, 1, 2), np.roll((0, 1, 2), turn).tolist())
        undecided = np.argwhere((votes > 0) & (votes < 6))
        if len(undecided) > _MOST_UNDECIDED:
            return votes > 3, undecided[:0]
        return votes == 6, undecided


def inside_grid_and_points(grid: Grid, points: Array, corners: Array) -> tuple[Mask, Mask]:
    """Return which cell centers and which points `[P, 3]` lie inside the mesh `[F, 3, 3]`.

    Cells that rays can't decide and points share one tree of libigl's.
    """
    solid, open_cells = grid.inside_by_rays(corners)
    centers = grid.low + (open_cells + 0.5) * grid.cell
    inside = inside_at(np.concatenate([centers, points]), corners)
    solid[tuple(open_cells.T)] = inside[: len(open_cells)]
    return solid, inside[len(open_cells) :]


def column_winding(corners: Array, count: int) -> tuple[Array, Array]:
    """Count what vertical rays from the points (i, j, k) of a grid cross.

    Every triangle with the ray's foot in its projection counts +1 where it faces up and -1 where it faces down. A
    foot on an edge counts for one of the two triangles that share it: the side of an edge is computed from its end
    points in one order, whichever triangle asks.

    Args:
        corners: `[F, 3, 3]` in units of the grid.
        count: points along each axis, at 0..count-1.

    Returns:
        The sum over the crossings above each point `[count, count, count]`, and over whole columns `[count, count]`.
    """
    lowest, highest = bounds(corners[:, :, :2])
    low = np.clip(np.ceil(lowest), 0, count).astype(np.int64)
    high = np.clip(np.floor(highest), -1, count - 1).astype(np.int64)
    sides = np.maximum(high - low + 1, 0)
    pairs = sides[:, 0] * sides[:, 1]
    crossed = np.flatnonzero(pairs)
    above, total = np.zeros(count**3), np.zeros(count**2)
    for start, end in _chunks(pairs[crossed]):
        chosen = crossed[start:end]
        face = np.repeat(chosen, pairs[chosen])
        within = np.arange(len(face)) - np.repeat(np.cumsum(pairs[chosen]) - pairs[chosen], pairs[chosen])
        foot = low[face] + np.stack([within // sides[face, 1], within % sides[face, 1]], axis=1)
        sign, height = _crossing(corners[face], foot.astype(np.float64))
        hit = sign != 0
        column = (foot[hit] @ (count, 1)).astype(np.int64)
        total += np.bincount(column, weights=sign[hit], minlength=count**2)
        last = np.minimum(np.ceil(height[hit]).astype(np.int64) - 1, count - 1)  # the highest point below it
        over = last >= 0
        above += np.bincount(column[over] * count + last[over], weights=sign[hit][over], minlength=count**3)
    grid = above.reshape(count, count, count)
    return np.cumsum(grid[:, :, ::-1], axis=2)[:, :, ::-1], total.reshape(count, count)


def _chunks(sizes: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return (start, end) of runs whose sizes sum up to about `_PAIRS`."""
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // _PAIRS, append=-1))
    return list(zip(np.append(0, ends[:-1] + 1).tolist(), (ends + 1).tolist(), strict=True)) if len(sizes) else []


def _crossing(corners: Array, foot: Array) -> tuple[Array, Array]:
    """Return +1, -1 or 0 for each triangle `[P, 3, 3]` over a foot `[P, 2]`, and the height of the crossing `[P]`."""
    weights, left = np.empty((len(foot), 3)), np.empty((len(foot), 3), dtype=bool)
    for edge in range(3):
        a, b = corners[:, (edge + 1) % 3], corners[:, (edge + 2) % 3]
        swapped = (b[:, 0] < a[:, 0]) | ((b[:, 0] == a[:, 0]) & (b[:, 1] < a[:, 1]))
        p, q = np.where(swapped[:, None], b, a), np.where(swapped[:, None], a, b)
        value = (q[:, 0] - p[:, 0]) * (foot[:, 1] - p[:, 1]) - (q[:, 1] - p[:, 1]) * (foot[:, 0] - p[:, 0])
        left[:, edge] = (value >= 0) != swapped
        weights[:, edge] = np.where(swapped, -value, value)
    sign = np.where(left.all(axis=1), 1.0, np.where(left.any(axis=1), 0.0, -1.0))
    area = weights.sum(axis=1)
    heights = corners[:, :, 2]
    height = (weights * heights).sum(axis=1) / np.where(area == 0, 1, area)
    return sign, np.clip(height, heights.min(axis=1), heights.max(axis=1))


def facing_outward(corners: Array) -> Array:
    """Return the triangles `[F, 3, 3]`, turned round if the volume that they enclose is negative."""
    a, b, c = (corners[:, i] - corners[:, 0].mean(axis=0) for i in range(3))
    return corners[:, ::-1] if float((a * np.cross(b, c)).sum()) < 0 else corners


def inside_at(points: Array, corners: Array) -> Mask:
    """Return whether the winding number at each point `[P, 3]` exceeds one half. bool `[P]`

    libigl's tree-based sum over the triangles `[F, 3, 3]` (Barill et al., 2018), off by less than 0.01. A mesh whose
    faces look inward as a whole is turned round first.
    """
    import igl

    inside = np.zeros(len(points), dtype=bool)
    if len(points) and len(corners):
        corners = facing_outward(corners)
        order = spatial_order(points)
        vertices = np.ascontiguousarray(corners.reshape(-1, 3))
        faces = np.arange(len(vertices), dtype=np.int64).reshape(-1, 3)
        inside[order] = igl.fast_winding_number(vertices, faces, np.ascontiguousarray(points[order])) > 0.5
    return inside


def points_near(vertices: Array, faces: npt.NDArray[np.int64], on_surface: Array, area: float, seed: int) -> Array:
    """Return about `NEAR_POINTS` points within `NEAR` of a surface, spread evenly over that volume. `[P, 3]`

    One point, drawn evenly, of every cell of a grid; those that are near enough stay. The cells are as large as makes
    the wanted number of a flat surface of this area, within bounds.

    Args:
        vertices: `[V, 3]`.
        faces: `[F, 3]`.
        on_surface: points all over the surface `[S, 3]`.
        area: of the surface.
        seed: of the points.
    """
    from scipy.ndimage import maximum_filter1d

    cell = float(np.clip((area * 2 * NEAR / NEAR_POINTS) ** (1 / 3), *_CELL))
    reach = int(np.ceil(NEAR / cell)) + 1
    low = vertices.min(axis=0) - (reach + 1) * cell
    shape = np.ceil((vertices.max(axis=0) - low) / cell).astype(int) + reach + 1
    near = np.zeros(tuple(shape), dtype=np.uint8)
    near[tuple(((on_surface - low) / cell).astype(np.int64).T)] = 1
    for axis in range(3):
        near = maximum_filter1d(near, 2 * reach + 1, axis=axis)
    cells = np.argwhere(near)
    points = low + (cells + np.random.default_rng(seed).random(cells.shape)) * cell
    distance, _ = distance_to_surface(points, vertices, faces)
    return points[distance <= NEAR]
