"""Which voxels triangles touch, compiled for the CPU by Numba: separating axes (Akenine-Möller, 2001)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_LARGE = 4.0
"""Triangles that span more voxels than this along an axis are halved first."""
_MOST_HALVED = 64


@njit(**_COMPILED)
def mark_touched(vertices: Any, faces: Any, on: Any) -> None:
    """Mark the voxels of the cube [-0.5, 0.5]^3 that triangles touch; see `surface_voxels`.

    Args:
        vertices: `[V, 3]`.
        faces: `[F, 3]`.
        on: bool `[side, side, side]`.
    """
    side = len(on)
    farthest = 0.5 + 1 / side
    waiting = np.empty((_MOST_HALVED, 3, 3))
    local, low, high = np.empty((3, 3)), np.empty(3, np.int64), np.empty(3, np.int64)
    for f in range(len(faces)):
        near = True
        for axis in range(3):
            a, b, c = vertices[faces[f, 0], axis], vertices[faces[f, 1], axis], vertices[faces[f, 2], axis]
            near &= max(a, b, c) >= -farthest and min(a, b, c) <= farthest
        if not near:
            continue
        for corner in range(3):
            for axis in range(3):
                waiting[0, corner, axis] = (min(max(vertices[faces[f, corner], axis], -0.5), 0.5) + 0.5) * side
        count = 1
        while count:
            triangle = waiting[count - 1]
            if count < _MOST_HALVED and _extent(triangle) > _LARGE:
                _halve(triangle, waiting[count])
                count += 1
            else:
                _mark(triangle, on, low, high, local)
                count -= 1


@njit(**_COMPILED)
def _extent(triangle: Any) -> float:
    largest = 0.0
    for axis in range(3):
        a, b, c = triangle[0, axis], triangle[1, axis], triangle[2, axis]
        largest = max(largest, max(a, b, c) - min(a, b, c))
    return largest


@njit(**_COMPILED)
def _halve(triangle: Any, other: Any) -> None:
    """Halve a triangle at its longest edge, so that long thin triangles don't become many; `other` gets one half."""
    longest, at = -1.0, 0
    for edge in range(3):
        for axis in range(3):
            length = abs(triangle[(edge + 1) % 3, axis] - triangle[edge, axis])
            if length > longest:
                longest, at = length, edge
    a, b = at, (at + 1) % 3
    other[:] = triangle
    for axis in range(3):
        middle = (triangle[a, axis] + triangle[b, axis]) / 2
        triangle[b, axis] = middle
        other[a, axis] = middle


@njit(**_COMPILED)
def _mark(triangle: Any, on: Any, low: Any, high: Any, local: Any) -> None:
    """Mark the voxels that a small triangle, in units of voxels, touches; the last three are for its use."""
    side = len(on)
    for axis in range(3):
        a, b, c = triangle[0, axis], triangle[1, axis], triangle[2, axis]
        low[axis] = min(max(math.ceil(min(a, b, c)) - 1, 0), side - 1)
        high[axis] = min(max(math.floor(max(a, b, c)), 0), side - 1)
    alone = low[0] == high[0] and low[1] == high[1] and low[2] == high[2]
    for x in range(low[0], high[0] + 1):
        for y in range(low[1], high[1] + 1):
            for z in range(low[2], high[2] + 1):
                if on[x, y, z]:
                    continue
                for corner in range(3):
                    local[corner, 0] = triangle[corner, 0] - (x + 0.5)
                    local[corner, 1] = triangle[corner, 1] - (y + 0.5)
                    local[corner, 2] = triangle[corner, 2] - (z + 0.5)
                on[x, y, z] = alone or _meets_box(local)


@njit(**_COMPILED)
def _meets_box(corners: Any) -> bool:
    """Return whether a triangle meets the box [-0.5, 0.5]^3, given that its own box does."""
    sx, sy, sz = corners[1, 0] - corners[0, 0], corners[1, 1] - corners[0, 1], corners[1, 2] - corners[0, 2]
    tx, ty, tz = corners[2, 0] - corners[1, 0], corners[2, 1] - corners[1, 1], corners[2, 2] - corners[1, 2]
    nx, ny, nz = sy * tz - sz * ty, sz * tx - sx * tz, sx * ty - sy * tx
    height = nx * corners[0, 0] + ny * corners[0, 1] + nz * corners[0, 2]
    if abs(height) > (abs(nx) + abs(ny) + abs(nz)) / 2:
        return False
    for edge in range(3):
        p, q, r = corners[edge], corners[(edge + 1) % 3], corners[(edge + 2) % 3]
        for axis in range(3):
            # Across the edge and the axis. The ends of the edge project to one value, the third corner to the other.
            u, v = (axis + 1) % 3, (axis + 2) % 3
            du, dv = q[v] - p[v], p[u] - q[u]
            one, other = du * p[u] + dv * p[v], du * r[u] + dv * r[v]
            reach = (abs(du) + abs(dv)) / 2
            if min(one, other) > reach or max(one, other) < -reach:
                return False
    return True
