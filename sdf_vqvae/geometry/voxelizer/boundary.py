"""The boundary of an open surface, and what it adds to winding numbers that are counted along rays.

Close a surface with vertical strips that rise from its boundary edges for ever. A ray straight down from a point
crosses none of them, so the winding number of the closed surface there is the count of the ray's crossings; the
open surface's is that minus the strips' share, a sum over boundary edges alone (zero for a closed mesh). The idea
of closing the surface at infinity is that of Martens and Bessmeltsev (2025), "One-shot method for computing
generalized winding numbers". Works in voxel units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.batch import MeshBatch

# Rays stand so much beside their samples (x, y; voxels), so that none goes through a corner or an edge of a mesh
# whose corners stand on samples. Which samples are on the surface is found out otherwise.
RAY = (1.618e-7, 0.577e-7)
# Pairs of a point and an edge at a time in the reference.
_PAIRS = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundary:
    """The directed edges that a surface's faces run along more often in one direction than in the other."""

    start: Tensor
    """float64 `[E, 3]`."""
    end: Tensor
    """float64 `[E, 3]`."""
    times: Tensor
    """float64 `[E]`: how often more."""
    starts: Tensor
    """Where each mesh's edges begin, int64 `[B + 1]`."""

    def __len__(self) -> int:
        return len(self.times)

    def of_mesh(self, number: int) -> Boundary:
        """Return the edges of one mesh."""
        own = slice(int(self.starts[number]), int(self.starts[number + 1]))
        starts = self.starts[number : number + 2] - self.starts[number]
        return Boundary(start=self.start[own], end=self.end[own], times=self.times[own], starts=starts)


def boundary_of(batch: MeshBatch) -> Boundary:
    """Return the boundary of meshes, as seen from their rays (moved by -RAY); empty where they are closed.

    Equal vertices of a mesh are expected to be one.
    """
    vertices, faces = batch.vertices, batch.faces
    start = faces.reshape(-1)
    end = faces.roll(-1, 1).reshape(-1)
    count = len(vertices)
    key, order = torch.sort(torch.minimum(start, end) * count + torch.maximum(start, end))
    edge = torch.nn.functional.pad((key[1:] != key[:-1]).cumsum(0), (1, 0))
    surplus = torch.zeros_like(key).index_add_(0, edge, torch.sign(end - start)[order])
    open_ = surplus[edge] != 0
    # One row an edge: where a run of equal keys begins.
    open_[1:] &= key[1:] != key[:-1]
    row = open_.nonzero().squeeze(1)
    key, surplus = key[row], surplus[edge[row]]
    seen = beside_rays(vertices)
    low, high = seen[key // count], seen[key % count]
    forward = (surplus > 0)[:, None]
    start, end = torch.where(forward, low, high), torch.where(forward, high, low)
    starts = torch.searchsorted(key // count, batch.vertex_starts)
    return Boundary(start=start, end=end, times=surplus.abs().double(), starts=starts)


def beside_rays(points: Tensor) -> Tensor:
    """Return points `[..., 3]` relative to the rays of samples at integer coordinates."""
    return points - points.new_tensor([*RAY, 0.0])


def strips_share_reference(points: Tensor, boundary: Boundary) -> Tensor:
    """Return what one mesh's boundary adds to the crossings counted below points: winding = crossings + this. `[P]`

    The solid angle of a strip is that of the triangle from an edge's start a and end b to the vertical direction z
    (van Oosterom and Strackee, 1983): tan(angle / 2) = det(a, b, z) / (|a||b| + a.b + (a.z)|b| + (b.z)|a|). The
    divisor is (|a| + a.z) (|b| + b.z) plus the product of a and b in the plane, and the determinant is that of
    `side_of_edge`, as in the count of crossings.

    Args:
        points: float64 `[P, 3]`.
        boundary: the edges.
    """
    total = points.new_zeros(len(points))
    step = max(1, _PAIRS // max(1, len(boundary)))
    for first in range(0, len(points), step):
        chunk = points[first : first + step, None]
        a, b = boundary.start - chunk, boundary.end - chunk  # [p, E, 3]
        side = side_of_edge(a[..., 0], a[..., 1], b[..., 0], b[..., 1])
        divisor = _rise(a) * _rise(b) + a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1]
        total[first : first + step] = (torch.atan2(side, divisor) * boundary.times).sum(1)
    return total / (2 * math.pi)


def _rise(a: Tensor) -> Tensor:
    """Return |a| + a.z of vectors `[..., 3]`, exact also where the two nearly cancel."""
    flat = a[..., 0].square() + a[..., 1].square()
    length = (flat + a[..., 2].square()).sqrt()
    return torch.where(a[..., 2] > 0, length + a[..., 2], flat / (length - a[..., 2]).clamp(min=1e-300))


def side_of_edge(ax: Tensor, ay: Tensor, bx: Tensor, by: Tensor) -> Tensor:
    """Return the cross product of two points relative to a sample: positive where a, b turn left round it.

    The same bits with the opposite sign for (b, a). A sample on the line counts as moved by an infinitely small step
    in y and a yet smaller one in x, so that it is on one side; 0 only where the points are equal.
    """
    turned = (ax > bx) | ((ax == bx) & (ay > by))
    lx, ly, hx, hy = (torch.where(turned, p, q) for p, q in ((bx, ax), (by, ay), (ax, bx), (ay, by)))
    cross = lx * hy - ly * hx
    tie = torch.where(hx > lx, 1e-300, torch.where(hy > ly, -1e-300, 0.0))
    cross = torch.where(cross == 0, tie, cross)
    return torch.where(turned, -cross, cross)
