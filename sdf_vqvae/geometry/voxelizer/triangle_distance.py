"""Exact distances from triangles to points of a grid, and the refinement of cells within their reach.

Works in voxel units with sample (i, j, k) at its integer coordinates. Knows nothing of signs.
"""

from __future__ import annotations

import torch
from torch import Tensor

# (triangle, cell) pairs split at a time, each into eight; bounds the memory (about 600 bytes a pair). On a CPU the
# temporaries of a chunk fit its caches.
PAIRS = {"cpu": 1 << 13, "cuda": 1 << 20}
# Added to every test of reach, so that rounding never drops a voxel of the band.
_SLACK = 1e-3
# Height over base below which a triangle is its base.
_LINE = 1e-12


class Triangles:
    """Triangles prepared for distances: each in an orthonormal frame of its own, float32.

    The frame is worked out in float64: the first axis along the longest edge, from its first corner (the origin)
    to length `base`; the third corner at (apex_u, apex_v), apex_v >= 0; the third axis normal to the triangle. In
    this frame a point's distance splits into the height and a distance in the plane. Slivers of any thinness and
    triangles without area keep the accuracy, since the frame is orthonormal for them too.
    """

    def __init__(self, corners: Tensor) -> None:
        rows = torch.arange(len(corners), device=corners.device)
        edges = corners.roll(-1, 1) - corners  # [F, 3 edges, 3]
        first = edges.square().sum(2).argmax(1)
        origin, along = corners[rows, first], edges[rows, first]
        side = corners[rows, (first + 2) % 3] - origin
        # A base of no length at all would make the tests below compare zeros.
        base = along.norm(dim=1).clamp(min=1e-6)
        u = _unit(along, torch.eye(3, dtype=corners.dtype, device=corners.device)[0].expand_as(along))
        apex_u = (side * u).sum(1)
        across = side - apex_u[:, None] * u
        # Of corners on a line, rounding alone is left, which may well lie along the line.
        height = across.norm(dim=1)
        on_line = height <= _LINE * base
        v = torch.where(on_line[:, None], _any_perpendicular(u), across / height.clamp(min=1e-150)[:, None])
        v = torch.nn.functional.normalize(v - (v * u).sum(1, keepdim=True) * u, dim=1)
        apex_v = torch.where(on_line, 0, (across * v).sum(1))
        normal = torch.linalg.cross(u, v)
        left = apex_u.square() + apex_v.square()
        right = (apex_u - base).square() + apex_v.square()
        values = [base, apex_u, apex_v, 1 / left.clamp(min=1e-30), 1 / right.clamp(min=1e-30)]
        columns = [*u.T, *v.T, *normal.T, *origin.T, *values]
        self.table = torch.stack([column.float() for column in columns])  # [17, F]
        self.low = corners.amin(1).float()
        self.high = corners.amax(1).float()

    def __len__(self) -> int:
        return self.table.shape[1]

    def squared_distance(self, triangle: Tensor, points: Tensor, offsets: Tensor) -> Tensor:
        """Return squared distances to triangles `[P]` of points `[3, P]` moved by each offset `[K, 3]`. `[K, P]`"""
        ux, uy, uz, vx, vy, vz, nx, ny, nz, ox, oy, oz, base, apex_u, apex_v, left, right = self.table.index_select(
            1, triangle
        ).unbind(0)
        x, y, z = points[0] - ox, points[1] - oy, points[2] - oz
        dx, dy, dz = (column[:, None] for column in offsets.unbind(1))
        u = _moved(x * ux + y * uy + z * uz, (dx, ux), (dy, uy), (dz, uz))
        v = _moved(x * vx + y * vy + z * vz, (dx, vx), (dy, vy), (dz, vz))
        height = _moved(x * nx + y * ny + z * nz, (dx, nx), (dy, ny), (dz, nz))
        # Squared distance in the plane to each of the three edges.
        along = u.clamp(min=0).minimum(base)
        in_plane = (u - along).square_().addcmul_(v, v)
        inside = (along == u).logical_and_(v >= 0)
        inside.logical_and_((u * apex_v).addcmul_(v, apex_u, value=-1) >= 0)
        from_end, apex_end = u - base, apex_u - base
        inside.logical_and_((v * apex_end).addcmul_(from_end, apex_v, value=-1) >= 0)
        along = (u * apex_u).addcmul_(v, apex_v).mul_(left).clamp_(0, 1)
        first = (u - along * apex_u).square_().add_((v - along * apex_v).square_())
        along = (from_end * apex_end).addcmul_(v, apex_v).mul_(right).clamp_(0, 1)
        second = (from_end - along * apex_end).square_().add_((v - along * apex_v).square_())
        in_plane = torch.minimum(in_plane, first).minimum(second).masked_fill_(inside, 0)
        return in_plane.addcmul_(height, height)


def _moved(start: Tensor, *steps: tuple[Tensor, Tensor]) -> Tensor:
    """Return start `[P]` plus the sum of offset `[K, 1]` times direction `[P]`. `[K, P]`"""
    (d0, e0), (d1, e1), (d2, e2) = steps
    return torch.addcmul(start, d0, e0).addcmul_(d1, e1).addcmul_(d2, e2)


def _unit(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """Return the vectors `[F, 3]` with length 1, and the other ones in place of those without a length."""
    length = vectors.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-150, vectors / length.clamp(min=1e-150), otherwise)


def _any_perpendicular(unit: Tensor) -> Tensor:
    """Return unit vectors perpendicular to unit vectors `[F, 3]`."""
    axis = torch.nn.functional.one_hot(unit.abs().argmin(1), 3).to(unit.dtype)
    return torch.nn.functional.normalize(torch.linalg.cross(unit, axis), dim=1)


def corner_offsets(size: int, device: torch.device) -> Tensor:
    """Return the bases of the eight cells of that size in a cell twice as large. int32 `[8, 3]`"""
    step = torch.tensor([0, size], dtype=torch.int32, device=device)
    return torch.cartesian_prod(step, step, step)


def refine(
    triangles: Triangles, triangle: Tensor, base: Tensor, *, size: int, target: int, band: float, resolution: int
) -> tuple[Tensor, Tensor]:
    """Halve cells until they have the target size, keeping the pairs whose triangle may reach into the cell.

    Args:
        triangles: the triangles.
        triangle: int64 `[P]`.
        base: lowest voxel of each cell, int32 `[3, P]`.
        size: side of the given cells in voxels, a power of two.
        target: side of the returned cells.
        band: reach in voxels.
        resolution: cells that begin beyond the grid are dropped.

    Returns:
        The pairs of a triangle `[Q]` and a cell of the target size `[3, Q]`.
    """
    while size > target and len(triangle):
        size //= 2
        offsets = corner_offsets(size, base.device)
        reach = (band + 3**0.5 * (size - 1) / 2 + _SLACK) ** 2
        pairs = []
        for rows in torch.arange(len(triangle), device=base.device).split(PAIRS[base.device.type]):
            owner, low = triangle[rows], base[:, rows]
            near = triangles.squared_distance(owner, low + (size - 1) / 2, offsets.float()) <= reach
            child, pair = near.nonzero(as_tuple=True)
            cell = low[:, pair] + offsets.T[:, child]
            inside = (cell < resolution).all(0)
            if not bool(inside.all()):
                pair, cell = pair[inside], cell[:, inside]
            pairs.append((owner[pair], cell))
        triangle = torch.cat([owner for owner, _ in pairs])
        base = torch.cat([cell for _, cell in pairs], dim=1)
    return triangle, base
