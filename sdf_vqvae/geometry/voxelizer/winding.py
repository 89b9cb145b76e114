"""The generalized winding number of a triangle mesh, and inside or outside from it.

One exact sum over all triangles (PyTorch, the reference; compiled twins for CPU and CUDA), and
libigl's tree-based approximation on CPU, replaced by libigl's exact sum wherever it is near the threshold.
Knows nothing of grids.
"""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
from torch import Tensor

# Pairs of a point and a triangle at a time in the reference: on a CPU what its caches hold.
_PAIRS = {"cpu": 1 << 15, "cuda": 1 << 24}
# Triangles at a time, so that a chunk has several points to share the reading of them.
_TRIANGLES = 1 << 11
# Beyond this many pairs the CPU takes libigl's tree.
_EXACT_PAIRS = 1 << 22
# Approximate values this close to one half are computed again exactly. The largest error of the tree on 16 meshes
# of 500 to 20,000 faces was 0.0072.
_UNSURE = 0.02


def inside_mesh(points: Tensor, corners: Tensor) -> Tensor:
    """Return whether the winding number at each point exceeds one half. bool `[P]`

    Args:
        points: float64 `[P, 3]`.
        corners: float64 `[F, 3, 3]`.
    """
    return checked_winding_number(points, corners, levels=(0.5,)) > 0.5


def checked_winding_number(points: Tensor, corners: Tensor, *, levels: tuple[float, ...] = (0.5,)) -> Tensor:
    """Return winding numbers that lie on the right side of each level; elsewhere approximate on a CPU.

    Args:
        points: float64 `[P, 3]`.
        corners: float64 `[F, 3, 3]`.
        levels: the thresholds that the caller is going to compare with.
    """
    if points.is_cuda or len(points) * len(corners) <= _EXACT_PAIRS:
        return winding_number(points, corners)
    import igl

    vertices = np.ascontiguousarray(corners.reshape(-1, 3).numpy())
    faces = np.arange(len(vertices), dtype=np.int64).reshape(-1, 3)
    winding = torch.from_numpy(igl.fast_winding_number(vertices, faces, points.numpy()))
    near = torch.stack([(winding - level).abs() for level in levels]).amin(0) < _UNSURE
    unsure = near.nonzero().squeeze(1)
    if len(unsure):  # libigl's exact sum, several times faster than ours in float64
        winding[unsure] = torch.from_numpy(igl.winding_number(vertices, faces, points[unsure].numpy()))
    return winding


def winding_number(points: Tensor, corners: Tensor) -> Tensor:
    """Return the exact winding number of the mesh around each point. `[P]`, float32 on CUDA.

    Sum of the signed solid angles of all triangles over 4 pi (Jacobson et al., 2013), each by the formula of
    van Oosterom and Strackee (1983): tan(angle / 2) = det(a, b, c) / (abc + (a.b)c + (b.c)a + (c.a)b).

    Args:
        points: `[P, 3]`.
        corners: `[F, 3, 3]`.
    """
    if points.is_cuda and importlib.util.find_spec("triton") is not None:
        from sdf_vqvae.geometry.voxelizer.winding_triton import winding_number_triton

        return winding_number_triton(points, corners)
    if points.device.type == "cpu" and has_numba():
        from sdf_vqvae.geometry.voxelizer.winding_numba import winding_number_numba

        return winding_number_numba(points, corners)
    return winding_number_reference(points, corners)


def has_numba() -> bool:
    """Return whether Numba is installed (it follows new versions of Python after some months)."""
    return importlib.util.find_spec("numba") is not None


def winding_number_reference(points: Tensor, corners: Tensor) -> Tensor:
    """Plain PyTorch twin of the kernel; arguments and result are `winding_number`'s. `[P]` in the given precision."""
    total = points.new_zeros(len(points))
    step = max(1, _PAIRS[points.device.type] // max(1, min(len(corners), _TRIANGLES)))
    parts = [part.permute(1, 2, 0).contiguous() for part in corners.to(points.dtype).split(_TRIANGLES)]  # [3, 3, f]
    for start in range(0, len(points), step):
        chunk = points[start : start + step, :, None]  # [p, 3, 1]
        for part in parts:
            total[start : start + step] += _half_angles(chunk, part).sum(1)
    return total / (2 * math.pi)


def _half_angles(points: Tensor, corners: Tensor) -> Tensor:
    """Return half the solid angle of each triangle `[3 corners, 3, f]` from each point `[p, 3, 1]`. `[p, f]`"""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = ((corner - points).unbind(1) for corner in corners)
    la = (ax * ax).addcmul_(ay, ay).addcmul_(az, az).sqrt_()
    lb = (bx * bx).addcmul_(by, by).addcmul_(bz, bz).sqrt_()
    lc = (cx * cx).addcmul_(cy, cy).addcmul_(cz, cz).sqrt_()
    determinant = ax * (by * cz).addcmul_(bz, cy, value=-1)
    determinant.addcmul_(ay, (bz * cx).addcmul_(bx, cz, value=-1))
    determinant.addcmul_(az, (bx * cy).addcmul_(by, cx, value=-1))
    divisor = la * lb * lc
    divisor.addcmul_((ax * bx).addcmul_(ay, by).addcmul_(az, bz), lc)
    divisor.addcmul_((bx * cx).addcmul_(by, cy).addcmul_(bz, cz), la)
    divisor.addcmul_((cx * ax).addcmul_(cy, ay).addcmul_(cz, az), lb)
    return torch.atan2(determinant, divisor)
