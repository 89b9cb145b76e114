"""What rays cross, compiled for the CPU by Numba: winding numbers on grids and at points; and is a mesh closed?

A ray goes up. A triangle with the ray's foot in its projection counts +1 where it faces up and -1 where it faces
down. A foot on an edge counts for one of the two triangles that share it: the side of an edge is computed from its
end points in one order, whichever triangle asks.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_MOST_TILES = 1024


def winding_at(points: Array, vertices: Array, faces: Indices) -> npt.NDArray[np.int32]:
    """Return the winding number of a closed mesh `[F, 3]` at each point `[P, 3]`. int32 `[P]`"""
    winding = np.zeros(len(points), dtype=np.int32)
    if len(points):
        # Tiles of the ground, of about two points each.
        low, high = points[:, :2].min(axis=0), points[:, :2].max(axis=0)
        count = min(_MOST_TILES, math.ceil(math.sqrt(len(points) / 2)))
        size = np.maximum(high - low, 1e-300) / count
        tile = np.minimum(((points[:, :2] - low) / size).astype(np.int64), count - 1) @ (count, 1)
        order = np.argsort(tile, kind="stable")
        starts = np.searchsorted(tile[order], np.arange(count**2 + 1))
        _count_at(points[order], starts, low, size, count, vertices, faces, found := np.zeros_like(winding))
        winding[order] = found
    return winding


@njit(**_COMPILED)
def _crossing(x: float, y: float, a: Any, b: Any, c: Any) -> tuple[int, float]:
    """Return +1, -1 or 0 for a triangle over a foot, and the height of the crossing."""
    if a[0] == b[0] == c[0] and a[1] == b[1] == c[1]:
        return 0, 0.0  # no side of a point is the left one
    of_a, left_a = _side(x, y, b, c)
    of_b, left_b = _side(x, y, c, a)
    of_c, left_c = _side(x, y, a, b)
    if left_a != left_b or left_b != left_c:
        return 0, 0.0
    area = of_a + of_b + of_c
    height = (of_a * a[2] + of_b * b[2] + of_c * c[2]) / (1.0 if area == 0 else area)
    lowest, highest = min(a[2], b[2], c[2]), max(a[2], b[2], c[2])
    return (1 if left_a else -1), min(max(height, lowest), highest)


@njit(**_COMPILED)
def _side(x: float, y: float, a: Any, b: Any) -> tuple[float, bool]:
    """Return the area between an edge and a foot, and whether the foot is to the left of the edge."""
    swapped = b[0] < a[0] or (b[0] == a[0] and b[1] < a[1])
    p, q = (b, a) if swapped else (a, b)
    value = (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
    return (-value if swapped else value), (value >= 0) != swapped


@njit(**_COMPILED)
def count_columns(vertices: Any, faces: Any, above: Any, total: Any) -> None:
    """Add up what vertical rays from the points (i, j, k) of a grid cross.

    Args:
        vertices: `[V, 3]` in units of the grid.
        faces: `[F, 3]`.
        above: int32 `[count, count, count]`, zeros; the sum over the crossings above each point, in the end.
        total: int32 `[count, count]`, zeros; the same over whole columns.
    """
    count = len(total)
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        first_x = int(min(max(math.ceil(min(a[0], b[0], c[0])), 0.0), float(count)))
        last_x = int(max(min(math.floor(max(a[0], b[0], c[0])), count - 1.0), -1.0))
        if first_x > last_x:
            continue
        first_y = int(min(max(math.ceil(min(a[1], b[1], c[1])), 0.0), float(count)))
        last_y = int(max(min(math.floor(max(a[1], b[1], c[1])), count - 1.0), -1.0))
        for i in range(first_x, last_x + 1):
            for j in range(first_y, last_y + 1):
                sign, height = _crossing(float(i), float(j), a, b, c)
                if sign != 0:
                    total[i, j] += sign
                    below = min(math.ceil(height) - 1.0, count - 1.0)  # the highest point below it
                    if below >= 0:
                        above[i, j, int(below)] += sign
    for i in range(count):
        for j in range(count):
            for k in range(count - 2, -1, -1):
                above[i, j, k] += above[i, j, k + 1]


@njit(**_COMPILED)
def _count_at(
    points: Any, starts: Any, low: Any, size: Any, count: int, vertices: Any, faces: Any, winding: Any
) -> None:
    """Add up what vertical rays from points `[P, 3]` cross; `starts` are the first points of the tiles."""
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        low_x, high_x = min(a[0], b[0], c[0]), max(a[0], b[0], c[0])
        low_y, high_y, high_z = min(a[1], b[1], c[1]), max(a[1], b[1], c[1]), max(a[2], b[2], c[2])
        # Rounding must not part a triangle from the tile of a point on its edge.
        first_x = int(min(max((low_x - low[0]) / size[0] - 1e-6, 0.0), count - 1.0))
        last_x = int(min(max((high_x - low[0]) / size[0] + 1e-6, 0.0), count - 1.0))
        first_y = int(min(max((low_y - low[1]) / size[1] - 1e-6, 0.0), count - 1.0))
        last_y = int(min(max((high_y - low[1]) / size[1] + 1e-6, 0.0), count - 1.0))
        for i in range(first_x, last_x + 1):
            for p in range(starts[i * count + first_y], starts[i * count + last_y + 1]):
                x, y, z = points[p, 0], points[p, 1], points[p, 2]
                if z < high_z and low_x <= x <= high_x and low_y <= y <= high_y:
                    sign, height = _crossing(x, y, a, b, c)
                    if sign != 0 and height > z:
                        winding[p] += sign


@njit(**_COMPILED)
def enclosed_volume(vertices: Any, faces: Any) -> float:
    """Return six times the volume that a mesh encloses: negative where its faces look inward."""
    x, y, z = 0.0, 0.0, 0.0
    for f in range(len(faces)):
        x, y, z = x + vertices[faces[f, 0], 0], y + vertices[faces[f, 0], 1], z + vertices[faces[f, 0], 2]
    x, y, z = x / len(faces), y / len(faces), z / len(faces)
    volume = 0.0
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        bx, by, bz, cx, cy, cz = b[0] - x, b[1] - y, b[2] - z, c[0] - x, c[1] - y, c[2] - z
        volume += (
            (a[0] - x) * (by * cz - bz * cy) + (a[1] - y) * (bz * cx - bx * cz) + (a[2] - z) * (bx * cy - by * cx)
        )
    return volume


@njit(**_COMPILED)
def is_closed(faces: Any) -> bool:
    """Return whether every edge is run along as often in one direction as in the other.

    The sum of a hash of the edges, signed by the direction, is zero then, and else by a chance of one in 2^64.
    """
    total = np.uint64(0)
    for f in range(len(faces)):
        for n in range(3):
            a, b = faces[f, n], faces[f, (n + 1) % 3]
            if a == b:
                continue
            value = np.uint64(min(a, b)) << np.uint64(32) | np.uint64(max(a, b))
            value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            value ^= value >> np.uint64(31)
            total += value if a < b else np.uint64(0) - value
    return total == np.uint64(0)
