"""Areas of triangles, compiled for the CPU by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def cross_lengths(vertices: Any, faces: Any, lengths: Any) -> None:
    """Fill `lengths` `[F]` with those of the cross products of two sides of each triangle."""
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        ux, uy, uz, vx, vy, vz = b[0] - a[0], b[1] - a[1], b[2] - a[2], c[0] - a[0], c[1] - a[1], c[2] - a[2]
        x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        lengths[f] = np.sqrt(x * x + y * y + z * z)
