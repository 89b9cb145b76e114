"""The distances and crossings of `bricks` as Triton kernels, for CUDA. The CPU twin is `bricks_numba`.

Works in voxel units with sample (i, j, k) at its integer coordinates. Triangles are cut into patches of 8 by 8 in
their own plane, so that each program has the same few bricks to look at, whatever the size of the triangle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdf_vqvae.geometry.triangle_distance import Triangles

BRICK = 8
_PATCH = 8
_HALF_DIAGONAL = 3.5 * 3**0.5
# Rounding of float32 distances over grids of 1024^3.
_SLACK = 1e-3
_PATCHES = 4  # a program
_WARPS = 4
# Without it, a compiler may round the two sides of an edge differently.
_EXACT = {"enable_fp_fusion": False}


def find_bricks(
    triangles: Triangles, corners: Tensor, resolution: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `bricks_numba.find_bricks`, with the same arguments and result but for the order of triangles."""
    device = corners.device
    side = (resolution + BRICK - 1) // BRICK
    table = triangles.table  # [17, F]
    across = (table[12] / _PATCH).ceil_().clamp_(min=1).int()
    patches = across * (table[14] / _PATCH).ceil_().clamp_(min=1).int()
    ends = patches.cumsum(0, dtype=torch.int64)
    total = int(ends[-1])
    owner = torch.repeat_interleave(patches.long(), output_size=total)
    to_center = reach + _HALF_DIAGONAL + _SLACK
    # The diagonal of a patch and the reach on both sides; one brick more than fit between.
    per_axis = int((_PATCH * 2**0.5 + 2 * to_center) // BRICK) + 1
    counts = torch.zeros(side**3, dtype=torch.int32, device=device)
    nothing = counts[:0]
    grid = (triton.cdiv(total, _PATCHES),)
    lanes = triton.next_power_of_2(per_axis**3)
    arguments = (table, owner, ends, patches, across)
    sizes = (len(triangles), total, side, to_center)
    with torch.cuda.device(device):
        _reach_kernel[grid](*arguments, counts, nothing, *sizes, False, per_axis, lanes, _PATCHES, num_warps=_WARPS)
        keys = counts.nonzero().squeeze(1)
        starts = torch.nn.functional.pad(counts[keys].cumsum(0, dtype=torch.int64), (1, 0))
        members = torch.empty(int(starts[-1]), dtype=torch.int32, device=device)
        counts[keys] = starts[:-1].int()
        _reach_kernel[grid](*arguments, counts, members, *sizes, True, per_axis, lanes, _PATCHES, num_warps=_WARPS)
    return keys, starts, members


def measure(
    triangles: Triangles,
    corners: Tensor,
    origins: Tensor,
    starts: Tensor,
    members: Tensor,
    band: float,
    *,
    crossings: bool,
) -> tuple[Tensor, Tensor]:
    """Twin of `bricks_numba.measure`, with the same arguments and results."""
    count = len(origins)
    squared = torch.empty(count, BRICK**3, device=origins.device)
    steps = torch.empty(count if crossings else 0, BRICK**3, dtype=torch.int16, device=origins.device)
    if count == 0:
        return squared, steps
    lowest = origins.int().contiguous()
    with torch.cuda.device(origins.device):
        _distance_kernel[(count,)](
            triangles.table, lowest, starts, members, squared, len(triangles), band * band, num_warps=_WARPS
        )
        if crossings:
            _crossing_kernel[(count,)](corners.contiguous(), lowest, starts, members, steps, num_warps=2, **_EXACT)
    return squared, steps


@triton.jit
def _in_plane(u, v, base, apex_u, apex_v, left, right):  # type: ignore[no-untyped-def]
    """Return the squared distance in the plane to a triangle in its frame (see `Triangles`)."""
    along = tl.minimum(tl.maximum(u, 0.0), base)
    plane = (u - along) * (u - along) + v * v
    inside = (along == u) & (v >= 0) & (u * apex_v - v * apex_u >= 0)
    from_end = u - base
    apex_end = apex_u - base
    inside = inside & (v * apex_end - from_end * apex_v >= 0)
    along = tl.minimum(tl.maximum((u * apex_u + v * apex_v) * left, 0.0), 1.0)
    du = u - along * apex_u
    dv = v - along * apex_v
    plane = tl.minimum(plane, du * du + dv * dv)
    along = tl.minimum(tl.maximum((from_end * apex_end + v * apex_v) * right, 0.0), 1.0)
    du = from_end - along * apex_end
    dv = v - along * apex_v
    plane = tl.minimum(plane, du * du + dv * dv)
    return tl.where(inside, 0.0, plane)


@triton.jit
def _closest(u, v, base, apex_u, apex_v, left, right):  # type: ignore[no-untyped-def]
    """Return the point of a triangle nearest to (u, v) in its frame."""
    from_end = u - base
    apex_end = apex_u - base
    inside = (u >= 0) & (u <= base) & (v >= 0) & (u * apex_v - v * apex_u >= 0)
    inside = inside & (v * apex_end - from_end * apex_v >= 0)
    along = tl.minimum(tl.maximum(u, 0.0), base)
    best = (u - along) * (u - along) + v * v
    cu = along
    cv = v * 0.0
    along = tl.minimum(tl.maximum((u * apex_u + v * apex_v) * left, 0.0), 1.0)
    du = u - along * apex_u
    dv = v - along * apex_v
    nearer = du * du + dv * dv < best
    best = tl.where(nearer, du * du + dv * dv, best)
    cu = tl.where(nearer, along * apex_u, cu)
    cv = tl.where(nearer, along * apex_v, cv)
    along = tl.minimum(tl.maximum((from_end * apex_end + v * apex_v) * right, 0.0), 1.0)
    du = from_end - along * apex_end
    dv = v - along * apex_v
    nearer = du * du + dv * dv < best
    best = tl.where(nearer, du * du + dv * dv, best)
    cu = tl.where(nearer, base + along * apex_end, cu)
    cv = tl.where(nearer, along * apex_v, cv)
    return tl.where(inside, u, cu), tl.where(inside, v, cv), tl.where(inside, 0.0, best)


@triton.jit
def _reach_kernel(  # type: ignore[no-untyped-def]
    table, owners, ends, patches, across, counts, members, n_triangles, total, side, reach,
    FILL: tl.constexpr, PER_AXIS: tl.constexpr, LANES: tl.constexpr, PATCHES: tl.constexpr,
):  # fmt: skip
    """Count the triangles that reach each brick, or write them down from where `counts` says.

    A brick belongs to the patch that holds the triangle's point nearest to the brick's center, so each pair of a
    triangle and a brick is found once.
    """
    patch = tl.program_id(0) * PATCHES + tl.arange(0, PATCHES)
    real = patch < total
    f = tl.load(owners + patch, mask=real, other=0)
    number = patch - (tl.load(ends + f, mask=real, other=0) - tl.load(patches + f, mask=real, other=1))
    wide = tl.load(across + f, mask=real, other=1)
    pu = (number % wide).to(tl.float32)[:, None]
    pv = (number // wide).to(tl.float32)[:, None]
    t = table + f
    ux = tl.load(t)[:, None]
    uy = tl.load(t + n_triangles)[:, None]
    uz = tl.load(t + 2 * n_triangles)[:, None]
    vx = tl.load(t + 3 * n_triangles)[:, None]
    vy = tl.load(t + 4 * n_triangles)[:, None]
    vz = tl.load(t + 5 * n_triangles)[:, None]
    nx = tl.load(t + 6 * n_triangles)[:, None]
    ny = tl.load(t + 7 * n_triangles)[:, None]
    nz = tl.load(t + 8 * n_triangles)[:, None]
    ox = tl.load(t + 9 * n_triangles)[:, None]
    oy = tl.load(t + 10 * n_triangles)[:, None]
    oz = tl.load(t + 11 * n_triangles)[:, None]
    base = tl.load(t + 12 * n_triangles)[:, None]
    apex_u = tl.load(t + 13 * n_triangles)[:, None]
    apex_v = tl.load(t + 14 * n_triangles)[:, None]
    left = tl.load(t + 15 * n_triangles)[:, None]
    right = tl.load(t + 16 * n_triangles)[:, None]
    # Middle and half extent of the patch, cut off where the triangle ends.
    half_u = tl.minimum(base - pu * 8, 8.0) * 0.5
    half_v = tl.minimum(apex_v - pv * 8, 8.0) * 0.5
    mu = pu * 8 + half_u
    mv = pv * 8 + half_v
    low_x = ox + mu * ux + mv * vx - half_u * tl.abs(ux) - half_v * tl.abs(vx) - reach
    low_y = oy + mu * uy + mv * vy - half_u * tl.abs(uy) - half_v * tl.abs(vy) - reach
    low_z = oz + mu * uz + mv * vz - half_u * tl.abs(uz) - half_v * tl.abs(vz) - reach
    lane = tl.arange(0, LANES)[None, :]
    bx = tl.ceil((low_x - 3.5) / 8).to(tl.int32) + lane // (PER_AXIS * PER_AXIS)
    by = tl.ceil((low_y - 3.5) / 8).to(tl.int32) + lane // PER_AXIS % PER_AXIS
    bz = tl.ceil((low_z - 3.5) / 8).to(tl.int32) + lane % PER_AXIS
    x = bx * 8 + 3.5 - ox
    y = by * 8 + 3.5 - oy
    z = bz * 8 + 3.5 - oz
    u = x * ux + y * uy + z * uz
    v = x * vx + y * vy + z * vz
    height = x * nx + y * ny + z * nz
    cu, cv, plane = _closest(u, v, base, apex_u, apex_v, left, right)
    # The last patch of a row also takes what rounding carries beyond the end.
    rows = (tl.load(patches + f, mask=real, other=1) // wide)[:, None].to(tl.float32)
    mine_u = tl.minimum(tl.maximum(tl.floor(cu / 8), 0.0), wide[:, None].to(tl.float32) - 1) == pu
    mine_v = tl.minimum(tl.maximum(tl.floor(cv / 8), 0.0), rows - 1) == pv
    hit = (plane + height * height <= reach * reach) & mine_u & mine_v & real[:, None]
    hit = hit & (lane < PER_AXIS * PER_AXIS * PER_AXIS)
    hit = hit & (bx >= 0) & (by >= 0) & (bz >= 0) & (bx < side) & (by < side) & (bz < side)
    key = (bx * side + by) * side + bz
    slot = tl.atomic_add(counts + key, 1, mask=hit, sem="relaxed")
    if FILL:
        tl.store(members + slot, (f[:, None] + 0 * lane).to(tl.int32), mask=hit)


@triton.jit
def _distance_kernel(table, origins, starts, members, squared, n_triangles, limit):  # type: ignore[no-untyped-def]
    """Fill one brick's squared distances."""
    b = tl.program_id(0)
    lane = tl.arange(0, 512)
    px = (tl.load(origins + b * 3) + lane // 64).to(tl.float32)
    py = (tl.load(origins + b * 3 + 1) + lane // 8 % 8).to(tl.float32)
    pz = (tl.load(origins + b * 3 + 2) + lane % 8).to(tl.float32)
    best = tl.full((512,), float("inf"), tl.float32)
    for place in range(tl.load(starts + b), tl.load(starts + b + 1)):
        t = table + tl.load(members + place)
        x = px - tl.load(t + 9 * n_triangles)
        y = py - tl.load(t + 10 * n_triangles)
        z = pz - tl.load(t + 11 * n_triangles)
        u = x * tl.load(t) + y * tl.load(t + n_triangles) + z * tl.load(t + 2 * n_triangles)
        v = x * tl.load(t + 3 * n_triangles) + y * tl.load(t + 4 * n_triangles) + z * tl.load(t + 5 * n_triangles)
        height = x * tl.load(t + 6 * n_triangles) + y * tl.load(t + 7 * n_triangles)
        height += z * tl.load(t + 8 * n_triangles)
        plane = _in_plane(
            u, v, tl.load(t + 12 * n_triangles), tl.load(t + 13 * n_triangles), tl.load(t + 14 * n_triangles),
            tl.load(t + 15 * n_triangles), tl.load(t + 16 * n_triangles),
        )  # fmt: skip
        best = tl.minimum(best, plane + height * height)
    tl.store(squared + b * 512 + lane, tl.where(best <= limit, best, float("inf")))


@triton.jit
def side_of_edge(ax, ay, bx, by, x, y):  # type: ignore[no-untyped-def]
    """Twin of `boundary.side_of_edge` for an edge given by scalars and samples (x, y). float64"""
    turned = (ax > bx) | ((ax == bx) & (ay > by))
    lx = tl.where(turned, bx, ax)
    ly = tl.where(turned, by, ay)
    hx = tl.where(turned, ax, bx)
    hy = tl.where(turned, ay, by)
    cross = (lx - x) * (hy - y) - (ly - y) * (hx - x)
    tie = tl.where(hx > lx, 1e-300, tl.where(hy > ly, -1e-300, 0.0))
    cross = tl.where(cross == 0, tie, cross)
    return tl.where(turned, -cross, cross)


@triton.jit
def _edge_turns(ax, ay, bx, by, x, y):  # type: ignore[no-untyped-def]
    """Return whether an edge passes to the right of each sample: 1 upward, -1 downward. int32"""
    side = side_of_edge(ax, ay, bx, by, x, y)
    above = ay > y
    beneath = by > y
    up = (above == 0) & (beneath != 0) & (side > 0)
    down = (above != 0) & (beneath == 0) & (side < 0)
    return up.to(tl.int32) - down.to(tl.int32)


@triton.jit
def _crossing_kernel(corners, origins, starts, members, steps):  # type: ignore[no-untyped-def]
    """Fill one brick's steps of the winding number along its columns."""
    b = tl.program_id(0)
    bx = tl.load(origins + b * 3)
    by = tl.load(origins + b * 3 + 1)
    bz = tl.load(origins + b * 3 + 2)
    column = tl.arange(0, 64)
    x = (bx + column // 8).to(tl.float64)
    y = (by + column % 8).to(tl.float64)
    level = tl.arange(0, 8)[None, :] + bz
    total = tl.zeros((64, 8), dtype=tl.int32)
    for place in range(tl.load(starts + b), tl.load(starts + b + 1)):
        c = corners + tl.load(members + place) * 9
        ax = tl.load(c)
        ay = tl.load(c + 1)
        az = tl.load(c + 2)
        ex = tl.load(c + 3)
        ey = tl.load(c + 4)
        ez = tl.load(c + 5)
        fx = tl.load(c + 6)
        fy = tl.load(c + 7)
        fz = tl.load(c + 8)
        low = tl.minimum(tl.minimum(az, ez), fz)
        high = tl.maximum(tl.maximum(az, ez), fz)
        near = (high >= bz - 1) & (low < bz + 7)
        near = near & (tl.minimum(tl.minimum(ax, ex), fx) <= bx + 7) & (tl.maximum(tl.maximum(ax, ex), fx) >= bx)
        near = near & (tl.minimum(tl.minimum(ay, ey), fy) <= by + 7) & (tl.maximum(tl.maximum(ay, ey), fy) >= by)
        if near:
            turns = _edge_turns(ax, ay, ex, ey, x, y) + _edge_turns(ex, ey, fx, fy, x, y)
            turns += _edge_turns(fx, fy, ax, ay, x, y)
            nx = (ey - ay) * (fz - az) - (ez - az) * (fy - ay)
            ny = (ez - az) * (fx - ax) - (ex - ax) * (fz - az)
            nz = (ex - ax) * (fy - ay) - (ey - ay) * (fx - ax)
            height = az - ((x - ax) * nx + (y - ay) * ny) / tl.where(nz == 0, 1.0, nz)
            height = tl.where(nz == 0, low, tl.minimum(tl.maximum(height, low), high))
            z = tl.floor(height).to(tl.int32) + 1
            total -= tl.where(z[:, None] == level, turns[:, None], 0)
    tl.store(steps + b * 512 + column[:, None] * 8 + tl.arange(0, 8)[None, :], total.to(tl.int16))
