"""The generalized winding number of a triangle mesh.

One exact sum over all triangles (plain PyTorch, and its compiled twins for CPU and CUDA), and libigl's tree-based
approximation on CPU, replaced by libigl's exact sum wherever it is near the threshold.
Knows nothing of grids.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import torch
from torch import Tensor

from sdf_vqvae.utils.threads import has_numba

# Beyond this many pairs the CPU takes libigl's tree.
_EXACT_PAIRS = 1 << 22
# Approximate values this close to one half are computed again exactly. The largest error of the tree on 16 meshes
# of 500 to 20,000 faces was 0.0072.
_UNSURE = 0.02


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
    from sdf_vqvae.geometry.voxelizer.winding_reference import winding_number_reference

    return winding_number_reference(points, corners)
