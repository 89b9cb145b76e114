"""The strips' share of `boundary` for all samples of bricks, compiled for the CPU by Numba, all cores.

The share of strips far from a cell is smooth inside it. From cells of 64^3 samples down to bricks, what has become
far is worked out on a grid of 4^3 Chebyshev nodes of the cell and carried on to its children by interpolation; only
the strips near a brick are summed for each of its samples. Sums that come near a threshold are repeated exactly.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.boundary import Boundary
from sdf_vqvae.geometry.voxelizer.bricks_numba import BRICK, side_of_edge
from sdf_vqvae.utils.threads import in_threads

_SIZES = (64, 32, 16, 8)
_NODES = 4
# A strip is far from a cell at this many half sides from its center: the interpolation is wrong by less than 0.005.
_FAR = 3.2
# Sines of angles that the product of a point's angles leaves out.
_FLAT = 1e-9
_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


def strips_share(origins: Tensor, wanted: Tensor, boundary: Boundary) -> Tensor:
    """Return the strips' share for the wanted samples of bricks, wrong by less than 0.005. float64 `[B, 512]`

    Args:
        origins: lowest voxel of each brick, int64 `[B, 3]`.
        wanted: bool `[B, 512]`; the others are left zero.
        boundary: the edges.
    """
    places = origins.numpy()
    # The order of the Z curve, so that neighbors share their cells.
    order = np.argsort(_morton(places // BRICK), kind="stable")
    share = np.zeros((len(places), BRICK**3))
    asked = wanted.numpy()
    start, end, times = boundary.start.numpy(), boundary.end.numpy(), boundary.times.numpy()
    nodes = np.cos((2 * np.arange(_NODES) + 1) * np.pi / (2 * _NODES))
    to_children = np.stack([_to_children(size, nodes) for size in _SIZES])
    to_samples = _basis(np.arange(BRICK) / 3.5 - 1, nodes)

    def work(first: int, last: int) -> None:
        _descend(
            places[order[first:last]],
            order[first:last],
            start,
            end,
            times,
            nodes,
            to_children,
            to_samples,
            asked,
            share,
        )

    in_threads(work, len(places))
    return torch.from_numpy(share).div_(2 * math.pi)


def exact_strips_share(points: Tensor, boundary: Boundary) -> Tensor:
    """Compiled twin of `boundary_reference.strips_share_reference`; same arguments and result. float64 `[P]`"""
    total = np.empty(len(points))
    at = points.numpy()
    start, end, times = boundary.start.numpy(), boundary.end.numpy(), boundary.times.numpy()
    in_threads(lambda first, last: _exact(at, start, end, times, first, last, total), len(at))
    return torch.from_numpy(total).div_(2 * math.pi)


def _morton(cells: np.ndarray) -> np.ndarray:
    key = np.zeros(len(cells), dtype=np.int64)
    for bit in range(8):
        for axis in range(3):
            key |= (cells[:, axis] >> bit & 1) << (3 * bit + 2 - axis)
    return key


def _basis(positions: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Return Lagrange's polynomials of the nodes at positions in -1..1. `[P, nodes]`"""
    rows = [
        np.prod([(positions - m) / (node - m) for j, m in enumerate(nodes) if j != i], axis=0)
        for i, node in enumerate(nodes)
    ]
    return np.stack(rows, axis=1)


def _to_children(size: int, nodes: np.ndarray) -> np.ndarray:
    """Return the interpolation from a cell's nodes to those of its parent's lower and upper half. `[2, 4, 4]`"""
    half, parent = (size - 1) / 2, (2 * size - 1) / 2
    return np.stack([_basis((low + half + half * nodes - parent) / parent, nodes) for low in (0, size)])


@njit(**_COMPILED)
def _rise(flat: float, z: float) -> float:
    """Return |a| + a.z for a vector whose part in the plane has that squared length."""
    length = math.sqrt(flat + z * z)
    return length + z if z > 0 else flat / max(length - z, 1e-300)


@njit(**_COMPILED)
def _strips(x: float, y: float, z: float, start: Any, end: Any, times: Any, edges: Any, count: int) -> float:
    """Return half the solid angle, seen from a point, of the strips above the first `count` of `edges`.

    Half of a strip's is the angle of a complex number. Their sum is the angle of the product of these, and a full
    turn for each time that the product passes the negative real axis, so that there is one arc tangent for all.
    """
    real, imaginary, turns, rest = 1.0, 0.0, 0, 0.0
    for n in range(count):
        e = edges[n]
        ax, ay, bx, by = start[e, 0] - x, start[e, 1] - y, end[e, 0] - x, end[e, 1] - y
        across = side_of_edge(ax, ay, bx, by)
        along = (
            _rise(ax * ax + ay * ay, start[e, 2] - z) * _rise(bx * bx + by * by, end[e, 2] - z) + ax * bx + ay * by
        )
        if abs(across) < _FLAT * along:
            rest += times[e] * across / along
        elif times[e] != 1 or abs(across) < -_FLAT * along:
            # Near half a turn the product's rounding could take the other side.
            rest += times[e] * math.atan2(across, along)
        else:
            scale = 1 / math.sqrt(along * along + across * across)
            along, across = along * scale, across * scale
            upper = imaginary >= 0
            real, imaginary = real * along - imaginary * across, real * across + imaginary * along
            if upper == (across >= 0) and upper != (imaginary >= 0):
                turns += 1 if upper else -1
    return rest + math.atan2(imaginary, real) + 2 * math.pi * turns


@njit(**_COMPILED)
def _exact(points: Any, start: Any, end: Any, times: Any, first: int, last: int, total: Any) -> None:
    edges = np.arange(len(times))
    for p in range(first, last):
        total[p] = _strips(points[p, 0], points[p, 1], points[p, 2], start, end, times, edges, len(edges))


@njit(**_COMPILED)
def _is_far(a: Any, b: Any, cx: float, cy: float, cz: float, reach: float) -> bool:
    """Return whether the strip above an edge, with the lines above its ends, keeps away from a point."""
    if min(a[2], b[2]) - cz >= reach:
        return True
    ex, ey = b[0] - a[0], b[1] - a[1]
    px, py = cx - a[0], cy - a[1]
    length = ex * ex + ey * ey
    t = min(max((px * ex + py * ey) / length, 0.0), 1.0) if length > 0 else 0.0
    dx, dy = px - t * ex, py - t * ey
    return dx * dx + dy * dy >= reach * reach


@njit(**_COMPILED)
def _interpolate(values: Any, mx: Any, my: Any, mz: Any, result: Any) -> None:
    """Fill `result` `[P, P, P]` with values `[4, 4, 4]` at other positions, given the basis there `[P, 4]`."""
    count = len(mx)
    for i in range(count):
        for j in range(count):
            for n in range(count):
                result[i, j, n] = 0.0
            for k in range(4):
                line = 0.0
                for a in range(4):
                    column = 0.0
                    for b in range(4):
                        column += my[j, b] * values[a, b, k]
                    line += mx[i, a] * column
                for n in range(count):
                    result[i, j, n] += mz[n, k] * line


@njit(**_COMPILED)
def _descend(
    origins: Any, rows: Any, start: Any, end: Any, times: Any, nodes: Any, to_children: Any, to_samples: Any,
    wanted: Any, share: Any,
) -> None:  # fmt: skip
    """Fill the rows of `share` for bricks in the order of the Z curve."""
    levels = 4
    near = np.empty((levels + 1, len(times)), dtype=np.int64)
    near[0] = np.arange(len(times))
    far = np.empty(len(times), dtype=np.int64)
    counts = np.zeros(levels + 1, dtype=np.int64)
    counts[0] = len(times)
    values = np.zeros((levels + 1, 4, 4, 4))
    smooth = np.empty((8, 8, 8))
    current = np.full((levels, 3), -1, dtype=np.int64)
    for b in range(len(origins)):
        stale = False
        for level in range(levels):
            size = 64 >> level
            cell = origins[b] // size
            if not stale and (cell == current[level]).all():
                continue
            stale = True
            current[level] = cell
            half = (size - 1) / 2
            if level:
                m = to_children[level]
                _interpolate(values[level], m[cell[0] % 2], m[cell[1] % 2], m[cell[2] % 2], values[level + 1])
            else:
                values[1] = 0.0
            cx, cy, cz = cell[0] * size + half, cell[1] * size + half, cell[2] * size + half
            kept, left = 0, 0
            for n in range(counts[level]):
                e = near[level, n]
                if _is_far(start[e], end[e], cx, cy, cz, _FAR * (half + 0.5)):
                    far[left] = e
                    left += 1
                else:
                    near[level + 1, kept] = e
                    kept += 1
            counts[level + 1] = kept
            if left == 0:
                continue
            for i in range(4):
                for j in range(4):
                    for k in range(4):
                        x, y, z = cx + half * nodes[i], cy + half * nodes[j], cz + half * nodes[k]
                        values[level + 1, i, j, k] += _strips(x, y, z, start, end, times, far, left)
        _interpolate(values[levels], to_samples, to_samples, to_samples, smooth)
        row = rows[b]
        ox, oy, oz = origins[b]
        for i in range(8):
            for j in range(8):
                for k in range(8):
                    place = (i * 8 + j) * 8 + k
                    if wanted[row, place]:
                        value = smooth[i, j, k]
                        if counts[levels]:
                            x, y, z = float(ox + i), float(oy + j), float(oz + k)
                            value += _strips(x, y, z, start, end, times, near[levels], counts[levels])
                        share[row, place] = value
