"""The distances and crossings of `bricks`, compiled for the CPU by Numba, all cores.

Works in voxel units with sample (i, j, k) at its integer coordinates. The CUDA twin is `bricks_triton`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.triangle_distance import Triangles
from sdf_vqvae.utils.threads import in_threads

BRICK = 8
_HALF_DIAGONAL = 3.5 * 3**0.5
_SUB_HALF_DIAGONAL = np.float32(1.5 * 3**0.5 + 1e-3)
# Rounding of float32 distances over grids of 1024^3.
_SLACK = 1e-3
_ZERO, _ONE = np.float32(0), np.float32(1)
_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


def frames(corners: Tensor) -> Tensor:
    """Return the table of `Triangles` for corners float64 `[F, 3, 3]`, in the layout of this module. `[F, 17]`"""
    return Triangles(corners).table.T.contiguous()


def find_bricks(
    table: Tensor, corners: Tensor, mesh: Tensor, count: int, resolution: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bricks that hold a sample within reach of a triangle, and the triangles of each.

    Args:
        table: the triangles' `frames`.
        corners: the triangles, float64 `[F, 3, 3]`.
        mesh: the mesh of each, int64 `[F]`; every mesh has a grid of its own.
        count: number of meshes.
        resolution: bricks beyond the grid are left out.
        reach: voxels.

    Returns:
        Keys of the bricks `[B]` int64 = ((mesh * side + x) * side + y) * side + z, ascending; where the triangles of
        each begin `[B + 1]` int64; and those triangles `[P]` int32.
    """
    side = (resolution + BRICK - 1) // BRICK
    rows, points, own = table.numpy(), corners.contiguous().numpy(), mesh.numpy()
    center = reach + _HALF_DIAGONAL + _SLACK
    found = in_threads(lambda a, b: _reached(rows, points, own, a, b, side, center), len(points))
    keys = np.concatenate([key for key, _ in found])
    owners = np.concatenate([owner for _, owner in found])
    bricks, starts, members = _group(keys, owners, count * side**3)
    return torch.from_numpy(bricks), torch.from_numpy(starts), torch.from_numpy(members)


def distances(table: Tensor, origins: Tensor, starts: Tensor, members: Tensor, band: float) -> Tensor:
    """Return the squared distance of every sample to the nearest triangle, inf beyond the band. float32 `[B, 512]`

    Args:
        table: the triangles' `frames`.
        origins: lowest sample of each brick, int64 `[B, 3]`.
        starts: where the triangles of each brick begin, int64 `[B + 1]`.
        members: those triangles, int32 `[P]`.
        band: voxels.
    """
    squared = np.full((len(origins), BRICK**3), np.inf, dtype=np.float32)
    rows, places, first, owned = table.numpy(), origins.numpy(), starts.numpy(), members.numpy()
    in_threads(lambda a, b: _measure(rows, places, first, owned, a, b, np.float32(band), squared), len(places))
    return torch.from_numpy(squared)


def crossings(corners: Tensor, columns: Tensor, origins: Tensor, starts: Tensor, members: Tensor) -> Tensor:
    """Return for each sample how often a ray down from it leaves the surface, less how often it enters.

    That is the winding number of a closed surface. int32 `[B, 512]`

    Args:
        corners: the triangles relative to the rays (`boundary.beside_rays`), float64 `[F, 3, 3]`.
        columns: the column of bricks that each stands in, int64 `[B]`, ascending, and from below within one.
        origins: lowest sample of each brick, int64 `[B, 3]`; all bricks within one voxel of a triangle.
        starts: where the triangles of each brick begin, int64 `[B + 1]`.
        members: those triangles, int32 `[P]`.
    """
    count = np.zeros((len(origins), BRICK**3), dtype=np.int32)
    points, places, first, owned = corners.contiguous().numpy(), origins.numpy(), starts.numpy(), members.numpy()
    in_threads(lambda a, b: _cross(points, places, first, owned, a, b, count), len(places))
    _add_below(columns.numpy(), count)
    return torch.from_numpy(count)


@njit(**_COMPILED)
def _squared_distance(t: Any, x: Any, y: Any, z: Any) -> Any:
    """Return the squared distance of a point to a triangle in its frame (see `Triangles`). float32"""
    x, y, z = x - t[9], y - t[10], z - t[11]
    u = x * t[0] + y * t[1] + z * t[2]
    v = x * t[3] + y * t[4] + z * t[5]
    height = x * t[6] + y * t[7] + z * t[8]
    base, apex_u, apex_v = t[12], t[13], t[14]
    along = min(max(u, _ZERO), base)
    plane = (u - along) * (u - along) + v * v
    inside = along == u and v >= _ZERO and u * apex_v - v * apex_u >= _ZERO
    from_end, apex_end = u - base, apex_u - base
    inside = inside and v * apex_end - from_end * apex_v >= _ZERO
    along = min(max((u * apex_u + v * apex_v) * t[15], _ZERO), _ONE)
    first = (u - along * apex_u) * (u - along * apex_u) + (v - along * apex_v) * (v - along * apex_v)
    along = min(max((from_end * apex_end + v * apex_v) * t[16], _ZERO), _ONE)
    second = (from_end - along * apex_end) * (from_end - along * apex_end)
    second += (v - along * apex_v) * (v - along * apex_v)
    plane = _ZERO if inside else min(plane, min(first, second))
    return plane + height * height


@njit(**_COMPILED)
def _span_in_slab(a: Any, u: int, v: int, low: float, high: float) -> tuple[float, float]:
    """Return the least and the largest u of the part of a triangle `[3, 3]` with v in low..high."""
    least, most = np.inf, -np.inf
    for i in range(3):
        j = (i + 1) % 3
        if low <= a[i, v] <= high:
            least, most = min(least, a[i, u]), max(most, a[i, u])
        for level in (low, high):
            if (a[i, v] < level) != (a[j, v] < level):
                at = a[i, u] + (level - a[i, v]) / (a[j, v] - a[i, v]) * (a[j, u] - a[i, u])
                least, most = min(least, at), max(most, at)
    return least, most


@njit(**_COMPILED)
def _reached(table: Any, corners: Any, mesh: Any, start: int, stop: int, side: int, reach: float) -> tuple[Any, Any]:
    """Return pairs of a brick's key and a triangle whose distance to the brick's center is within reach.

    Goes through the rows of bricks that the triangle's projection along its normal's largest axis touches, so the
    work is that of its area.
    """
    keys = np.empty(1024, dtype=np.int64)
    owners = np.empty(1024, dtype=np.int32)
    count = 0
    key = np.empty(3, dtype=np.int64)
    middle = 3.5
    for f in range(start, stop):
        t, a = table[f], corners[f]
        w = 0
        for axis in (1, 2):
            if abs(t[6 + axis]) > abs(t[6 + w]):
                w = axis
        u, v = (w + 1) % 3, (w + 2) % 3
        low_w, high_w = min(a[0, w], a[1, w], a[2, w]) - reach, max(a[0, w], a[1, w], a[2, w]) + reach
        low_v, high_v = min(a[0, v], a[1, v], a[2, v]) - reach, max(a[0, v], a[1, v], a[2, v]) + reach
        slope_u, slope_v = -t[6 + u] / t[6 + w], -t[6 + v] / t[6 + w]
        spread = reach * (1 + slope_u * slope_u + slope_v * slope_v) ** 0.5
        for jv in range(max(0, int(np.ceil((low_v - middle) / 8))), min(side - 1, int((high_v - middle) // 8)) + 1):
            cv = 8 * jv + middle
            least, most = _span_in_slab(a, u, v, cv - reach, cv + reach)
            if least > most:
                continue
            least, most = least - reach, most + reach
            for ju in range(max(0, int(np.ceil((least - middle) / 8))), min(side - 1, int((most - middle) // 8)) + 1):
                cu = 8 * ju + middle
                cw = a[0, w] + slope_u * (cu - a[0, u]) + slope_v * (cv - a[0, v])
                bottom, top = max(cw - spread, low_w), min(cw + spread, high_w)
                first, last = max(0, int(np.ceil((bottom - middle) / 8))), min(side - 1, int((top - middle) // 8))
                for jw in range(first, last + 1):
                    key[u], key[v], key[w] = ju, jv, jw
                    distance = _squared_distance(
                        t, np.float32(8 * key[0] + middle), np.float32(8 * key[1] + middle),
                        np.float32(8 * key[2] + middle),
                    )  # fmt: skip
                    if distance > reach * reach:
                        continue
                    if count == len(keys):
                        keys = np.concatenate((keys, np.empty_like(keys)))
                        owners = np.concatenate((owners, np.empty_like(owners)))
                    keys[count] = ((mesh[f] * side + key[0]) * side + key[1]) * side + key[2]
                    owners[count] = f
                    count += 1
    return keys[:count].copy(), owners[:count].copy()


@njit(**_COMPILED)
def _group(keys: Any, owners: Any, cells: int) -> tuple[Any, Any, Any]:
    """Return the different keys, where the owners of each begin, and the owners in that order."""
    counts = np.zeros(cells, dtype=np.int32)
    for key in keys:
        counts[key] += 1
    different = np.nonzero(counts)[0]
    starts = np.zeros(len(different) + 1, dtype=np.int64)
    for i, key in enumerate(different):
        starts[i + 1] = starts[i] + counts[key]
        counts[key] = i
    members = np.empty(len(keys), dtype=np.int32)
    cursor = starts[:-1].copy()
    for key, owner in zip(keys, owners):  # noqa: B905 (Numba's zip has no `strict`)
        i = counts[key]
        members[cursor[i]] = owner
        cursor[i] += 1
    return different.astype(np.int64), starts, members


@njit(**_COMPILED)
def _measure(
    table: Any, origins: Any, starts: Any, members: Any, start: int, stop: int, band: Any, squared: Any
) -> None:
    """Fill `squared` for the bricks start..stop.

    A brick is eight blocks of 4^3 samples. A triangle farther from a block's center than its worst distance so far
    plus the block's half diagonal can't improve it.
    """
    ox, oy, oz = np.empty(64, np.float32), np.empty(64, np.float32), np.empty(64, np.float32)
    for i in range(64):
        ox[i], oy[i], oz[i] = i // 16, i // 4 % 4, i % 4
    best = np.empty((8, 64), np.float32)
    limit = np.empty(8, np.float32)
    furthest = band * band
    half = np.float32(1.5)
    for b in range(start, stop):
        best[:] = np.inf
        limit[:] = (band + _SUB_HALF_DIAGONAL) ** 2
        bx, by, bz = origins[b, 0], origins[b, 1], origins[b, 2]
        for member in range(starts[b], starts[b + 1]):
            t = table[members[member]]
            for s in range(8):
                x, y, z = (
                    np.float32(bx + (s >> 2) * 4),
                    np.float32(by + (s >> 1 & 1) * 4),
                    np.float32(bz + (s & 1) * 4),
                )
                if _squared_distance(t, x + half, y + half, z + half) > limit[s]:
                    continue
                row = best[s]
                worst = _ZERO
                for i in range(64):
                    value = min(row[i], _squared_distance(t, x + ox[i], y + oy[i], z + oz[i]))
                    row[i] = value
                    worst = max(worst, value)
                limit[s] = (np.sqrt(min(worst, furthest)) + _SUB_HALF_DIAGONAL) ** 2
        for s in range(8):
            for i in range(64):
                if best[s, i] <= furthest:
                    x, y, z = (s >> 2) * 4 + i // 16, (s >> 1 & 1) * 4 + i // 4 % 4, (s & 1) * 4 + i % 4
                    squared[b, (x * 8 + y) * 8 + z] = best[s, i]


@njit(**_COMPILED)
def side_of_edge(ax: float, ay: float, bx: float, by: float) -> float:
    """Return the cross product of two points relative to a sample: positive where a, b turn left round it.

    The same bits with the opposite sign for (b, a). A sample on the line counts as moved by an infinitely small step
    in y and a yet smaller one in x, so that it is on one side; 0 only where the points are equal.
    """
    turned = ax > bx or (ax == bx and ay > by)
    if turned:
        ax, ay, bx, by = bx, by, ax, ay
    cross = ax * by - ay * bx
    if cross == 0:
        cross = 1e-300 if bx > ax else (-1e-300 if by > ay else 0.0)
    return -cross if turned else cross


@njit(**_COMPILED)
def _turns(a: Any, x: float, y: float) -> int:
    """Return how often the projected triangle `[3, 3]` goes round (x, y): -1, 0 or 1.

    Counts its edges to the right of the point. Each edge counts the opposite for the triangle on its other side,
    whatever the rounding, so a closed surface adds up to zero exactly.
    """
    turns = 0
    for i in range(3):
        j = (i + 1) % 3
        above = a[i, 1] > y
        if above != (a[j, 1] > y):
            side = side_of_edge(a[i, 0] - x, a[i, 1] - y, a[j, 0] - x, a[j, 1] - y)
            if above and side < 0:
                turns -= 1
            elif not above and side > 0:
                turns += 1
    return turns


@njit(**_COMPILED)
def _cross(corners: Any, origins: Any, starts: Any, members: Any, start: int, stop: int, steps: Any) -> None:
    """Fill `steps`, how the count changes from the sample below, for the bricks start..stop."""
    for b in range(start, stop):
        bx, by, bz = origins[b, 0], origins[b, 1], origins[b, 2]
        for member in range(starts[b], starts[b + 1]):
            a = corners[members[member]]
            low_z, high_z = min(a[0, 2], a[1, 2], a[2, 2]), max(a[0, 2], a[1, 2], a[2, 2])
            if high_z < bz - 1 or low_z >= bz + 7:
                continue
            x0 = max(bx, int(np.ceil(min(a[0, 0], a[1, 0], a[2, 0]))))
            x1 = min(bx + 7, int(np.floor(max(a[0, 0], a[1, 0], a[2, 0]))))
            y0 = max(by, int(np.ceil(min(a[0, 1], a[1, 1], a[2, 1]))))
            y1 = min(by + 7, int(np.floor(max(a[0, 1], a[1, 1], a[2, 1]))))
            if x0 > x1 or y0 > y1:
                continue
            ex, ey, ez = a[1, 0] - a[0, 0], a[1, 1] - a[0, 1], a[1, 2] - a[0, 2]
            fx, fy, fz = a[2, 0] - a[0, 0], a[2, 1] - a[0, 1], a[2, 2] - a[0, 2]
            nx, ny, nz = ey * fz - ez * fy, ez * fx - ex * fz, ex * fy - ey * fx
            for x in range(x0, x1 + 1):
                for y in range(y0, y1 + 1):
                    turns = _turns(a, x, y)
                    if turns == 0:
                        continue
                    height = a[0, 2] - ((x - a[0, 0]) * nx + (y - a[0, 1]) * ny) / nz if nz != 0 else low_z
                    z = int(np.floor(min(max(height, low_z), high_z))) + 1
                    if bz <= z < bz + 8:
                        steps[b, ((x - bx) * 8 + y - by) * 8 + z - bz] -= turns


@njit(**_COMPILED)
def _add_below(columns: Any, count: Any) -> None:
    """Turn steps between samples into sums along the columns."""
    carry = np.zeros(64, dtype=np.int32)
    for b in range(len(columns)):
        if b == 0 or columns[b] != columns[b - 1]:
            carry[:] = 0
        for column in range(64):
            total = carry[column]
            for z in range(8):
                total += count[b, column * 8 + z]
                count[b, column * 8 + z] = total
            carry[column] = total
