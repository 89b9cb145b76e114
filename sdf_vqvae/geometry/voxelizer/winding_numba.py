"""The exact winding number, compiled for the CPU by Numba, all cores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sdf_vqvae.utils.threads import in_threads


def winding_number_numba(points: Tensor, corners: Tensor) -> Tensor:
    """CPU twin of `winding_reference.winding_number_reference`, in float64. `[P]`"""
    total = np.empty(len(points))
    at = np.ascontiguousarray(points.numpy(), dtype=np.float64)
    triangles = np.ascontiguousarray(corners.numpy(), dtype=np.float64)
    in_threads(lambda start, stop: _sum(at, triangles, start, stop, total), len(at))
    return torch.from_numpy(total).div_(2 * math.pi).to(points.dtype)


@njit(cache=True, nogil=True, error_model="numpy")
def _sum(points: Any, corners: Any, start: int, stop: int, total: Any) -> None:
    """Sum half the solid angles of all triangles from the points start..stop."""
    for p in range(start, stop):
        x, y, z = points[p]
        value = 0.0
        for f in range(len(corners)):
            t = corners[f]
            ax, ay, az = t[0, 0] - x, t[0, 1] - y, t[0, 2] - z
            bx, by, bz = t[1, 0] - x, t[1, 1] - y, t[1, 2] - z
            cx, cy, cz = t[2, 0] - x, t[2, 1] - y, t[2, 2] - z
            la = math.sqrt(ax * ax + ay * ay + az * az)
            lb = math.sqrt(bx * bx + by * by + bz * bz)
            lc = math.sqrt(cx * cx + cy * cy + cz * cz)
            determinant = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
            divisor = la * lb * lc + (ax * bx + ay * by + az * bz) * lc
            divisor += (bx * cx + by * cy + bz * cz) * la + (cx * ax + cy * ay + cz * az) * lb
            value += math.atan2(determinant, divisor)
        total[p] = value
