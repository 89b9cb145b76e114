"""The strips' share of `boundary` as Triton kernels, for CUDA.

`strips_share` sums all edges for each sample. `interpolated_strips_share` does the same as `boundary_numba`, in one
step: cells of R / 16 samples, what is far from a cell worked out on 4^3 Chebyshev nodes, what is near summed.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sdf_vqvae.geometry.voxelizer.boundary import Boundary
from sdf_vqvae.geometry.voxelizer.bricks_triton import is_turned, side_of_edge, split

_POINTS = 256
_BRICK_POINTS = 128
# A strip is far from a cell at this many half sides from its center (see `boundary_numba`).
_FAR = 3.2
# Entries of the lists of near edges, at most (1 GiB); beyond it, every edge is summed for every sample.
_MOST_NEAR = 1 << 28


def strips_share(index: Tensor, mesh: Tensor, boundary: Boundary) -> Tensor:
    """CUDA twin of `boundary_reference.strips_share_reference` for samples, in float32. float32 `[N]`

    Args:
        index: samples, int32 `[N, 3]`.
        mesh: the mesh of each, int64 `[N]`, ascending.
        boundary: the edges.
    """
    out = torch.empty(len(index), device=index.device)
    if len(index) == 0:
        return out
    whole, rest = _edges(boundary)
    with torch.cuda.device(index.device):
        _strips_kernel[(triton.cdiv(len(index), _POINTS),)](
            index.contiguous(), mesh, whole, rest, boundary.times.float(), boundary.starts, out, len(index), _POINTS,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out / (2 * math.pi)


def interpolated_strips_share(
    origins: Tensor, mesh: Tensor, places: Tensor, resolution: int, boundary: Boundary
) -> Tensor | None:
    """Return the strips' share for samples of bricks, wrong by less than 0.005. float32 `[B, 512]`

    Args:
        origins: lowest sample of each brick, int64 `[B, 3]`.
        mesh: the mesh of each brick, int64 `[B]`, ascending.
        places: the wanted samples as places in `[B * 512]`, int64 `[N]`, ascending. The rest is left undefined.
        resolution: grid side.
        boundary: the edges.

    Returns:
        None where the lists of near edges would be too large.
    """
    device = origins.device
    size = max(8, triton.next_power_of_2(resolution) // 16)
    side = (resolution + size - 1) // size
    x, y, z = (origins // size).T
    keys, cell = torch.unique(((mesh * side + x) * side + y) * side + z, return_inverse=True)
    rest_of_key = keys // side
    corner = torch.stack([rest_of_key // side % side, rest_of_key % side, keys % side], dim=1) * size
    owner = rest_of_key // side**2
    ends = boundary.starts.diff()[owner].cumsum(0)
    room = int(ends[-1])
    if room > _MOST_NEAR:
        return None
    begin = torch.nn.functional.pad(ends[:-1], (1, 0))
    near = torch.empty(room, dtype=torch.int32, device=device)
    counts = torch.empty(len(keys), dtype=torch.int32, device=device)
    values = torch.empty(len(keys), 64, device=device)
    first = torch.searchsorted(places, torch.arange(len(origins) + 1, device=device) * 512)
    share = torch.empty(len(origins), 512, device=device)
    whole, rest = _edges(boundary)
    times = boundary.times.float()
    with torch.cuda.device(device):
        _far_kernel[(len(keys),)](
            corner, owner, whole, rest, times, boundary.starts, begin, near, counts, values, size, _FAR * size / 2,
            num_warps=2, enable_fp_fusion=False,
        )  # fmt: skip
        _near_kernel[(len(origins),)](
            origins, cell, corner, places, first, whole, rest, times, begin, near, counts, values, share, size,
            _BRICK_POINTS, enable_fp_fusion=False,
        )  # fmt: skip
    return share.div_(2 * math.pi)


def _edges(boundary: Boundary) -> tuple[Tensor, Tensor]:
    """Return starts and ends of the edges as whole numbers and rest. float32 `[E, 6]` each"""
    return split(torch.cat([boundary.start, boundary.end], dim=1))


@triton.jit
def _rise(flat, z):  # type: ignore[no-untyped-def]
    """Return |a| + a.z for vectors whose part in the plane has that squared length."""
    length = tl.sqrt(flat + z * z)
    return tl.where(z > 0, length + z, flat / tl.maximum(length - z, 1e-30))


@triton.jit
def _half_angle(w, r, x, y, z):  # type: ignore[no-untyped-def]
    """Return half the solid angle, from points (x, y, z), of the strip above the edge that stands at w and r."""
    ai = tl.load(w)
    af = tl.load(r)
    aj = tl.load(w + 1)
    ag = tl.load(r + 1)
    bi = tl.load(w + 3)
    bf = tl.load(r + 3)
    bj = tl.load(w + 4)
    bg = tl.load(r + 4)
    ax = (ai - x) + af
    ay = (aj - y) + ag
    az = (tl.load(w + 2) - z) + tl.load(r + 2)
    bx = (bi - x) + bf
    by = (bj - y) + bg
    bz = (tl.load(w + 5) - z) + tl.load(r + 5)
    cross = side_of_edge(ax, ay, bx, by, is_turned(ai, af, aj, ag, bi, bf, bj, bg))
    divisor = _rise(ax * ax + ay * ay, az) * _rise(bx * bx + by * by, bz) + (ax * bx + ay * by)
    return libdevice.atan2(cross, divisor)


@triton.jit
def _strips_kernel(  # type: ignore[no-untyped-def]
    index, meshes, whole, rest, times, starts, out, n_points, P: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)  # rows of 3 may pass 2^31
    valid = row < n_points
    x = tl.load(index + row * 3, mask=valid, other=0).to(tl.float32)
    y = tl.load(index + row * 3 + 1, mask=valid, other=0).to(tl.float32)
    z = tl.load(index + row * 3 + 2, mask=valid, other=0).to(tl.float32)
    total = tl.zeros((P,), dtype=tl.float32)
    mesh = tl.load(meshes + row, mask=valid, other=-1)
    begin = tl.load(starts + tl.load(meshes + tl.program_id(0) * P))
    end = tl.load(starts + tl.max(mesh, axis=0) + 1)
    # Where a block holds samples of several meshes, each counts its own edges.
    own_begin = tl.load(starts + mesh, mask=valid, other=0)
    own_end = tl.load(starts + mesh + 1, mask=valid, other=0)
    for e in range(begin, end):
        angle = _half_angle(whole + e * 6, rest + e * 6, x, y, z) * tl.load(times + e)
        total += tl.where((e >= own_begin) & (e < own_end), angle, 0.0)
    tl.store(out + row, total, mask=valid)


@triton.jit
def _node(i):  # type: ignore[no-untyped-def]
    """Return the Chebyshev nodes of degree 4, cos((2 i + 1) pi / 8)."""
    outer = tl.where(i == 0, 0.9238795325112867, -0.9238795325112867)
    inner = tl.where(i == 1, 0.3826834323650898, -0.3826834323650898)
    return tl.where((i == 0) | (i == 3), outer, inner)


@triton.jit
def _far_kernel(  # type: ignore[no-untyped-def]
    corners, owners, whole, rest, times, starts, begins, near, counts, values, size, reach
):
    """Sum the strips far from one cell on its nodes, and list the others."""
    cell = tl.program_id(0)
    mesh = tl.load(owners + cell)
    half = (size - 1) * 0.5
    cx = tl.load(corners + cell * 3).to(tl.float32) + half
    cy = tl.load(corners + cell * 3 + 1).to(tl.float32) + half
    cz = tl.load(corners + cell * 3 + 2).to(tl.float32) + half
    lane = tl.arange(0, 64)
    x = cx + half * _node(lane // 16)
    y = cy + half * _node(lane // 4 % 4)
    z = cz + half * _node(lane % 4)
    total = tl.zeros((64,), dtype=tl.float32)
    place = near + tl.load(begins + cell)
    count = 0
    for e in range(tl.load(starts + mesh), tl.load(starts + mesh + 1)):
        w = whole + e * 6
        r = rest + e * 6
        ax = (tl.load(w) - cx) + tl.load(r)
        ay = (tl.load(w + 1) - cy) + tl.load(r + 1)
        az = (tl.load(w + 2) - cz) + tl.load(r + 2)
        ux = (tl.load(w + 3) - cx) + tl.load(r + 3) - ax
        uy = (tl.load(w + 4) - cy) + tl.load(r + 4) - ay
        bz = (tl.load(w + 5) - cz) + tl.load(r + 5)
        along = -(ax * ux + ay * uy) / tl.maximum(ux * ux + uy * uy, 1e-20)
        along = tl.minimum(tl.maximum(along, 0.0), 1.0)
        dx = ax + along * ux
        dy = ay + along * uy
        if (dx * dx + dy * dy >= reach * reach) | (tl.minimum(az, bz) >= reach):
            total += _half_angle(w, r, x, y, z) * tl.load(times + e)
        else:
            tl.store(place + count, e)
            count += 1
    tl.store(counts + cell, count)
    tl.store(values + cell * 64 + lane, total)


@triton.jit
def _basis(t, i: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return Lagrange's polynomial of node i at t."""
    product = t * 0.0 + 1.0
    for j in tl.static_range(4):
        if j != i:
            product *= (t - _node(j)) / (_node(i) - _node(j))
    return product


@triton.jit
def _near_kernel(  # type: ignore[no-untyped-def]
    origins, cells, corners, places, firsts, whole, rest, times, begins, near, counts, values, share, size,
    P: tl.constexpr,
):  # fmt: skip
    """Fill one brick's wanted samples: what is far by interpolation, what is near by sums."""
    b = tl.program_id(0)
    cell = tl.load(cells + b)
    count = tl.load(counts + cell)
    listed = near + tl.load(begins + cell)
    value = values + cell * 64
    half = (size - 1) * 0.5
    ox = tl.load(origins + b * 3).to(tl.float32)
    oy = tl.load(origins + b * 3 + 1).to(tl.float32)
    oz = tl.load(origins + b * 3 + 2).to(tl.float32)
    cx = tl.load(corners + cell * 3).to(tl.float32) + half
    cy = tl.load(corners + cell * 3 + 1).to(tl.float32) + half
    cz = tl.load(corners + cell * 3 + 2).to(tl.float32) + half
    last = tl.load(firsts + b + 1)
    for start in range(tl.load(firsts + b), last, P):
        row = start + tl.arange(0, P)
        valid = row < last
        place = tl.load(places + row, mask=valid, other=0)
        inner = (place % 512).to(tl.int32)
        x = ox + (inner // 64).to(tl.float32)
        y = oy + (inner // 8 % 8).to(tl.float32)
        z = oz + (inner % 8).to(tl.float32)
        total = tl.zeros((P,), dtype=tl.float32)
        for i in tl.static_range(4):
            of_x = _basis((x - cx) / half, i)
            for j in tl.static_range(4):
                of_xy = of_x * _basis((y - cy) / half, j)
                for k in tl.static_range(4):
                    total += of_xy * _basis((z - cz) / half, k) * tl.load(value + (i * 4 + j) * 4 + k)
        for n in range(count):
            e = tl.load(listed + n)
            total += _half_angle(whole + e * 6, rest + e * 6, x, y, z) * tl.load(times + e)
        tl.store(share + place, total, mask=valid)
