"""The generalized winding number of a triangle mesh, and inside or outside from it.

One exact sum over all triangles (PyTorch, the reference; a Triton kernel with the same signature on CUDA), and
libigl's tree-based approximation on CPU, checked by the exact sum wherever it is near the threshold.
"""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
from torch import Tensor

# Pairs of a point and a triangle at a time in the reference; bounds its memory (about 100 bytes a pair).
_PAIRS = 1 << 21
# Beyond this many pairs the CPU takes libigl's tree.
_EXACT_PAIRS = 1 << 22
# Approximate values this close to one half are computed again exactly.
_UNSURE = 0.02


def inside_mesh(points: Tensor, corners: Tensor) -> Tensor:
    """Return whether the winding number at each point exceeds one half. bool `[P]`

    Args:
        points: float64 `[P, 3]`.
        corners: float64 `[F, 3, 3]`.
    """
    if points.is_cuda or len(points) * len(corners) <= _EXACT_PAIRS:
        return winding_number(points, corners) > 0.5
    import igl

    vertices = np.ascontiguousarray(corners.reshape(-1, 3).numpy())
    faces = np.arange(len(vertices), dtype=np.int64).reshape(-1, 3)
    winding = torch.from_numpy(igl.fast_winding_number(vertices, faces, points.numpy()))
    unsure = ((winding - 0.5).abs() < _UNSURE).nonzero().squeeze(1)
    winding[unsure] = winding_number_reference(points[unsure], corners)
    return winding > 0.5


def winding_number(points: Tensor, corners: Tensor) -> Tensor:
    """Return the exact winding number of the mesh around each point. float64 `[P]`, float32 on CUDA.

    Sum of the signed solid angles of all triangles over 4 pi (Jacobson et al., 2013), each by the formula of
    van Oosterom and Strackee (1983): tan(angle / 2) = det(a, b, c) / (abc + (a.b)c + (b.c)a + (c.a)b).

    Args:
        points: `[P, 3]`.
        corners: `[F, 3, 3]`.
    """
    if points.is_cuda and importlib.util.find_spec("triton") is not None:
        from sdf_vqvae.geometry.winding_triton import winding_number_triton

        return winding_number_triton(points, corners)
    return winding_number_reference(points, corners)


def winding_number_reference(points: Tensor, corners: Tensor) -> Tensor:
    """Plain PyTorch twin of the kernel; arguments and result are `winding_number`'s. float64 `[P]`"""
    total = points.new_zeros(len(points))
    step = max(1, _PAIRS // max(1, len(corners)))
    for start in range(0, len(points), step):
        chunk = points[start : start + step]
        for part in corners.split(_PAIRS):
            a, b, c = (part[None, :, i] - chunk[:, None] for i in range(3))  # [p, f, 3]
            la, lb, lc = a.norm(dim=2), b.norm(dim=2), c.norm(dim=2)
            determinant = (a * torch.linalg.cross(b, c)).sum(2)
            divisor = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
            total[start : start + step] += torch.atan2(determinant, divisor).sum(1)
    return total / (2 * math.pi)
