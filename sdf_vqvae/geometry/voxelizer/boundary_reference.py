"""The share of a boundary's strips in plain PyTorch, the twin of the compiled ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.boundary import Boundary

# Pairs of a point and an edge at a time.
_PAIRS = 1 << 20


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
