"""Which cells of a grid, and which points, lie inside a mesh; and the overlap of two solids measured with them.

Inside is where the winding number exceeds one half. It is counted along rays: the winding number of a closed surface
is the sum of the signs of what a ray crosses, in whichever direction. Knows nothing of fields.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdf_vqvae.geometry.metrics.surface_distance import distance_to_surface, spatial_order

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
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

    def inside_by_rays(self, vertices: Array, faces: Indices) -> tuple[Mask, Indices]:
        """Return whether each cell center lies inside the mesh `[F, 3]`, and which cells rays can't decide.

        In a column that crosses a closed surface all signs cancel, and the sum over the crossings above a center is
        its winding number. Where they don't cancel, the mesh has holes: then the winding number is the mean of that
        sum over all directions. Six are counted; where not all agree, the cell is left open (and reads False). A
        surface so torn that a great many cells are open is no solid: there the majority of the six decides.

        Returns:
            bool `[count, count, count]`, and int64 `[U, 3]`.
        """
        faces = facing_outward(vertices, faces)
        vertices = (vertices - self.low) / self.cell - 0.5  # cell centers at integers
        above, total = column_winding(vertices, faces, self.count)
        if not total.any():
            return above > 0, np.empty((0, 3), dtype=np.int64)
        votes = (above > 0).astype(np.int8) + (above > total[:, :, None])
        for turn in (1, 2):
            turned, missing = column_winding(np.roll(vertices, turn, axis=1), faces, self.count)
            agree = (turned > 0).astype(np.int8) + (turned > missing[:, :, None])
            votes += np.moveaxis(agree, (0, 1, 2), np.roll((0, 1, 2), turn).tolist())
        undecided = np.argwhere((votes > 0) & (votes < 6))
        if len(undecided) > _MOST_UNDECIDED:
            return votes > 3, undecided[:0]
        return votes == 6, undecided


def inside_grid_and_points(grid: Grid, points: Array, vertices: Array, faces: Indices) -> tuple[Mask, Mask]:
    """Return which cell centers and which points `[P, 3]` lie inside the mesh `[F, 3]`.

    Cells that rays can't decide are asked like points.
    """
    solid, open_cells = grid.inside_by_rays(vertices, faces)
    centers = grid.low + (open_cells + 0.5) * grid.cell
    inside = inside_at(np.concatenate([centers, points]), vertices, faces)
    solid[tuple(open_cells.T)] = inside[: len(open_cells)]
    return solid, inside[len(open_cells) :]


def column_winding(
    vertices: Array, faces: Indices, count: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Count what vertical rays from the points (i, j, k) of a grid cross.

    Args:
        vertices: `[V, 3]` in units of the grid.
        faces: `[F, 3]`.
        count: points along each axis, at 0..count-1.

    Returns:
        The sum over the crossings above each point `[count, count, count]`, and over whole columns `[count, count]`:
        +1 for a triangle that faces up, -1 for one that faces down.
    """
    from sdf_vqvae.geometry.metrics.occupancy_numba import count_columns

    above, total = np.zeros((count, count, count), dtype=np.int32), np.zeros((count, count), dtype=np.int32)
    count_columns(vertices, faces, above, total)
    return above, total


def facing_outward(vertices: Array, faces: Indices) -> Indices:
    """Return the triangles `[F, 3]`, turned round if the volume that they enclose is negative."""
    from sdf_vqvae.geometry.metrics.occupancy_numba import enclosed_volume

    inward = len(faces) and enclosed_volume(vertices, faces) < 0
    return np.ascontiguousarray(faces[:, ::-1]) if inward else faces


def inside_at(points: Array, vertices: Array, faces: Indices) -> Mask:
    """Return whether the winding number of a mesh `[F, 3]` at each point `[P, 3]` exceeds one half. bool `[P]`

    That of a closed mesh is counted along a ray. One with holes is closed by fans, whose own winding number is taken
    away again: by libigl's tree-based sum (Barill et al., 2018), off by less than 0.01. A mesh whose faces look
    inward as a whole is turned round first.
    """
    from sdf_vqvae.geometry.metrics.occupancy_numba import is_closed, winding_at

    faces = facing_outward(vertices, faces)
    if is_closed(faces):
        return winding_at(points, vertices, faces) > 0
    tips, fans = fans_over_holes(vertices, faces)
    if len(fans) >= len(faces):  # parts that share no vertices, or nothing but holes
        return _winding_by_tree(points, vertices, faces) > 0.5
    vertices = np.concatenate([vertices, tips])
    closed = winding_at(points, vertices, np.concatenate([faces, fans]))
    return closed - _winding_by_tree(points, vertices, fans) > 0.5


def fans_over_holes(vertices: Array, faces: Indices) -> tuple[Array, Indices]:
    """Return triangles that close a mesh `[F, 3]`: from the middle of each of its rims to all edges of that rim.

    Returns:
        The middles `[R, 3]`, numbered on from the vertices, and the triangles `[E, 3]`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    lower, higher = np.sort(edges, axis=1).T
    keys, which = np.unique(lower * len(vertices) + higher, return_inverse=True)
    # How much more often each is run along upwards, from the lower to the higher number, than back.
    surplus = np.bincount(which, np.sign(edges[:, 1] - edges[:, 0])).astype(np.int64)
    left = np.repeat(np.arange(len(keys)), np.abs(surplus))
    rim = np.stack([keys[left] // len(vertices), keys[left] % len(vertices)], axis=1)
    rim[surplus[left] > 0] = rim[surplus[left] > 0, ::-1]
    used, rim_ends = np.unique(rim, return_inverse=True)
    pairs = rim_ends.reshape(-1, 2).T
    joined = coo_array((np.ones(len(rim)), (pairs[0], pairs[1])), shape=(len(used), len(used)))
    count, part = connected_components(joined, directed=False)
    sums = np.stack([np.bincount(part, vertices[used, axis], count) for axis in range(3)], axis=1)
    return sums / np.bincount(part)[:, None], np.column_stack([rim, len(vertices) + part[pairs[0]]])


def _winding_by_tree(points: Array, vertices: Array, faces: Indices) -> Array:
    import igl

    winding = np.zeros(len(points))
    if len(points) and len(faces):
        order = spatial_order(points)
        winding[order] = igl.fast_winding_number(
            np.ascontiguousarray(vertices), np.ascontiguousarray(faces), np.ascontiguousarray(points[order])
        )
    return winding


def points_near(vertices: Array, faces: Indices, on_surface: Array, area: float, seed: int) -> Array:
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
