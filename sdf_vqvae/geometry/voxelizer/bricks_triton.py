"""The distances and crossings of `bricks` as Triton kernels, for CUDA. The CPU twin is `bricks_numba`.

Works in voxel units with sample (i, j, k) at its integer coordinates. Triangles are cut into patches of 8 by 8 in
their own plane, so that each program has the same few bricks to look at, whatever the size of the triangle.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BRICK = 8
_PATCH = 8
_HALF_DIAGONAL = 3.5 * 3**0.5
# Rounding of float32 distances over grids of 1024^3.
_SLACK = 1e-3
_PATCHES = 4  # a program
_WARPS = 4
# Without it, a compiler may round the two sides of an edge differently.
_EXACT = {"enable_fp_fusion": False}


def frames(corners: Tensor) -> Tensor:
    """Return the table of `Triangles` for corners float64 `[F, 3, 3]`. float32 `[17, F]`"""
    table = torch.empty(17, len(corners), device=corners.device)
    with torch.cuda.device(corners.device):
        _frame_kernel[(triton.cdiv(len(corners), 128),)](corners.contiguous(), table, len(corners), 128)
    return table


def find_bricks(
    table: Tensor, corners: Tensor, mesh: Tensor, count: int, resolution: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `bricks_numba.find_bricks`, with the same arguments and result but for the order of triangles."""
    device = corners.device
    side = (resolution + BRICK - 1) // BRICK
    across = (table[12] / _PATCH).ceil_().clamp_(min=1).int()
    patches = across * (table[14] / _PATCH).ceil_().clamp_(min=1).int()
    ends = patches.cumsum(0, dtype=torch.int64)
    total = int(ends[-1])
    owner = torch.repeat_interleave(patches.long(), output_size=total)
    to_center = reach + _HALF_DIAGONAL + _SLACK
    # The diagonal of a patch and the reach on both sides; one brick more than fit between.
    per_axis = int((_PATCH * 2**0.5 + 2 * to_center) // BRICK) + 1
    counts = torch.zeros(count * side**3, dtype=torch.int32, device=device)
    nothing = counts[:0]
    grid = (triton.cdiv(total, _PATCHES),)
    lanes = triton.next_power_of_2(per_axis**3)
    arguments = (table, mesh, owner, ends, patches, across)
    sizes = (len(corners), total, side, to_center)
    with torch.cuda.device(device):
        _reach_kernel[grid](*arguments, counts, nothing, *sizes, False, per_axis, lanes, _PATCHES, num_warps=_WARPS)
        keys = counts.nonzero().squeeze(1)
        starts = torch.nn.functional.pad(counts[keys].cumsum(0, dtype=torch.int64), (1, 0))
        pairs = int(starts[-1])
        if pairs >= 2**31:
            raise ValueError(f"{count} meshes have {pairs} pairs of triangles and bricks: voxelize fewer at once")
        members = torch.empty(pairs, dtype=torch.int32, device=device)
        counts[keys] = starts[:-1].int()
        _reach_kernel[grid](*arguments, counts, members, *sizes, True, per_axis, lanes, _PATCHES, num_warps=_WARPS)
    return keys, starts, members


def distances(table: Tensor, origins: Tensor, starts: Tensor, members: Tensor, band: float) -> Tensor:
    """Twin of `bricks_numba.distances`, with the same arguments and result."""
    squared = torch.empty(len(origins), BRICK**3, device=origins.device)
    if len(origins):
        with torch.cuda.device(origins.device):
            _distance_kernel[(len(origins),)](
                table, origins, starts, members, squared, table.shape[1], band * band, num_warps=_WARPS
            )
    return squared


def crossings(corners: Tensor, columns: Tensor, origins: Tensor, starts: Tensor, members: Tensor) -> Tensor:
    """Twin of `bricks_numba.crossings`, with the same arguments and result."""
    within = torch.empty(len(origins), BRICK**3, dtype=torch.int32, device=origins.device)
    count = torch.empty_like(within)
    if len(origins):
        grid = (len(origins),)
        with torch.cuda.device(origins.device):
            _crossing_kernel[grid](*split(corners), origins, starts, members, within, num_warps=2, **_EXACT)
            _below_kernel[grid](columns, within, count, num_warps=2)
    return count


def split(coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers and the rest of float64 coordinates, both float32."""
    whole = coordinates.floor()
    return whole.float().contiguous(), (coordinates - whole).float().contiguous()


@triton.jit
def _frame_kernel(corners, table, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Work out each triangle's frame as `Triangles` does, in float64."""
    f = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = f < n
    c = corners + f.to(tl.int64) * 9
    x0 = tl.load(c, mask=real, other=0.0)
    y0 = tl.load(c + 1, mask=real, other=0.0)
    z0 = tl.load(c + 2, mask=real, other=0.0)
    x1 = tl.load(c + 3, mask=real, other=0.0)
    y1 = tl.load(c + 4, mask=real, other=0.0)
    z1 = tl.load(c + 5, mask=real, other=0.0)
    x2 = tl.load(c + 6, mask=real, other=0.0)
    y2 = tl.load(c + 7, mask=real, other=0.0)
    z2 = tl.load(c + 8, mask=real, other=0.0)
    l0 = (x1 - x0) * (x1 - x0) + (y1 - y0) * (y1 - y0) + (z1 - z0) * (z1 - z0)
    l1 = (x2 - x1) * (x2 - x1) + (y2 - y1) * (y2 - y1) + (z2 - z1) * (z2 - z1)
    l2 = (x0 - x2) * (x0 - x2) + (y0 - y2) * (y0 - y2) + (z0 - z2) * (z0 - z2)
    second = (l1 > l0) & (l1 >= l2)
    third = (l2 > l0) & (l2 > l1)
    # From the first corner of the longest edge (o) to its other end (p), and the corner off it (q).
    ox = tl.where(third, x2, tl.where(second, x1, x0))
    oy = tl.where(third, y2, tl.where(second, y1, y0))
    oz = tl.where(third, z2, tl.where(second, z1, z0))
    ux = tl.where(third, x0, tl.where(second, x2, x1)) - ox
    uy = tl.where(third, y0, tl.where(second, y2, y1)) - oy
    uz = tl.where(third, z0, tl.where(second, z2, z1)) - oz
    sx = tl.where(third, x1, tl.where(second, x0, x2)) - ox
    sy = tl.where(third, y1, tl.where(second, y0, y2)) - oy
    sz = tl.where(third, z1, tl.where(second, z0, z2)) - oz
    length = tl.sqrt(ux * ux + uy * uy + uz * uz)
    base = tl.maximum(length, 1e-6)
    long = length > 1e-150
    ux = tl.where(long, ux / length, 1.0)
    uy = tl.where(long, uy / length, 0.0)
    uz = tl.where(long, uz / length, 0.0)
    apex_u = sx * ux + sy * uy + sz * uz
    px, py, pz = _any_perpendicular(ux, uy, uz)
    hx = sx - apex_u * ux
    hy = sy - apex_u * uy
    hz = sz - apex_u * uz
    height = tl.sqrt(hx * hx + hy * hy + hz * hz)
    on_line = height <= 1e-12 * base  # see `Triangles`
    height = tl.maximum(height, 1e-150)
    vx = tl.where(on_line, px, hx / height)
    vy = tl.where(on_line, py, hy / height)
    vz = tl.where(on_line, pz, hz / height)
    slant = vx * ux + vy * uy + vz * uz
    vx -= slant * ux
    vy -= slant * uy
    vz -= slant * uz
    length = tl.sqrt(vx * vx + vy * vy + vz * vz)
    vx /= length
    vy /= length
    vz /= length
    apex_v = tl.where(on_line, 0.0, hx * vx + hy * vy + hz * vz)
    left = apex_u * apex_u + apex_v * apex_v
    right = (apex_u - base) * (apex_u - base) + apex_v * apex_v
    out = table + f
    tl.store(out, ux.to(tl.float32), mask=real)
    tl.store(out + n, uy.to(tl.float32), mask=real)
    tl.store(out + 2 * n, uz.to(tl.float32), mask=real)
    tl.store(out + 3 * n, vx.to(tl.float32), mask=real)
    tl.store(out + 4 * n, vy.to(tl.float32), mask=real)
    tl.store(out + 5 * n, vz.to(tl.float32), mask=real)
    tl.store(out + 6 * n, (uy * vz - uz * vy).to(tl.float32), mask=real)
    tl.store(out + 7 * n, (uz * vx - ux * vz).to(tl.float32), mask=real)
    tl.store(out + 8 * n, (ux * vy - uy * vx).to(tl.float32), mask=real)
    tl.store(out + 9 * n, ox.to(tl.float32), mask=real)
    tl.store(out + 10 * n, oy.to(tl.float32), mask=real)
    tl.store(out + 11 * n, oz.to(tl.float32), mask=real)
    tl.store(out + 12 * n, base.to(tl.float32), mask=real)
    tl.store(out + 13 * n, apex_u.to(tl.float32), mask=real)
    tl.store(out + 14 * n, apex_v.to(tl.float32), mask=real)
    tl.store(out + 15 * n, (1 / tl.maximum(left, 1e-30)).to(tl.float32), mask=real)
    tl.store(out + 16 * n, (1 / tl.maximum(right, 1e-30)).to(tl.float32), mask=real)


@triton.jit
def _any_perpendicular(x, y, z):  # type: ignore[no-untyped-def]
    """Return a unit vector perpendicular to a unit vector: its cross product with the axis that it is least along."""
    along_x = (tl.abs(x) <= tl.abs(y)) & (tl.abs(x) <= tl.abs(z))
    along_y = (along_x == 0) & (tl.abs(y) <= tl.abs(z))
    px = tl.where(along_x, 0.0, tl.where(along_y, -z, y))
    py = tl.where(along_x, z, tl.where(along_y, 0.0, -x))
    pz = tl.where(along_x, -y, tl.where(along_y, x, 0.0))
    length = tl.sqrt(px * px + py * py + pz * pz)
    return px / length, py / length, pz / length


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
    table, meshes, owners, ends, patches, across, counts, members, n_triangles, total, side, reach,
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
    key = ((tl.load(meshes + f)[:, None] * side + bx) * side + by) * side + bz
    slot = tl.atomic_add(counts + key, 1, mask=hit, sem="relaxed")
    if FILL:
        tl.store(members + slot, (f[:, None] + 0 * lane).to(tl.int32), mask=hit)


@triton.jit
def _distance_kernel(table, origins, starts, members, squared, n_triangles, limit):  # type: ignore[no-untyped-def]
    """Fill one brick's squared distances."""
    b = tl.program_id(0).to(tl.int64)  # samples of many meshes may pass 2^31
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
def side_of_edge(ax, ay, bx, by, turned):  # type: ignore[no-untyped-def]
    """Twin of `boundary_reference.side_of_edge` for points relative to samples; `turned` as `is_turned` says."""
    lx = tl.where(turned, bx, ax)
    ly = tl.where(turned, by, ay)
    hx = tl.where(turned, ax, bx)
    hy = tl.where(turned, ay, by)
    cross = lx * hy - ly * hx
    tie = tl.where(hx > lx, 1e-30, tl.where(hy > ly, -1e-30, 0.0))
    cross = tl.where(cross == 0, tie, cross)
    return tl.where(turned, -cross, cross)


@triton.jit
def is_turned(ai, af, aj, ag, bi, bf, bj, bg):  # type: ignore[no-untyped-def]
    """Return whether an edge's ends a, b, given as whole numbers and rest in x and y, are not in ascending order."""
    same_x = (ai == bi) & (af == bf)
    return (ai > bi) | ((ai == bi) & (af > bf)) | (same_x & ((aj > bj) | ((aj == bj) & (ag > bg))))


@triton.jit
def _edge_turns(ax, ay, bx, by, turned):  # type: ignore[no-untyped-def]
    """Return whether an edge passes to the right of each sample: 1 upward, -1 downward. int32"""
    side = side_of_edge(ax, ay, bx, by, turned)
    above = ay > 0
    beneath = by > 0
    up = (above == 0) & beneath & (side > 0)
    down = above & (beneath == 0) & (side < 0)
    return up.to(tl.int32) - down.to(tl.int32)


@triton.jit
def _crossing_kernel(whole, rest, origins, starts, members, within):  # type: ignore[no-untyped-def]
    """Fill one brick's count of crossings below each sample, those within the brick alone.

    Coordinates come as whole numbers and rest, so that float32 gives them relative to a sample without loss. Heights
    are worked out alike in every brick of a column, so that each crossing is one brick's.
    """
    b = tl.program_id(0).to(tl.int64)  # samples of many meshes may pass 2^31
    bx = tl.load(origins + b * 3).to(tl.float32)
    by = tl.load(origins + b * 3 + 1).to(tl.float32)
    base = tl.load(origins + b * 3 + 2).to(tl.int32)
    bz = base.to(tl.float32)
    column = tl.arange(0, 64)
    x = bx + (column // 8).to(tl.float32)
    y = by + (column % 8).to(tl.float32)
    level = tl.arange(0, 8)[None, :]
    total = tl.zeros((64, 8), dtype=tl.int32)
    for place in range(tl.load(starts + b), tl.load(starts + b + 1)):
        w = whole + tl.load(members + place) * 9
        r = rest + tl.load(members + place) * 9
        # Relative to the brick, to see whether it can matter.
        az = tl.load(w + 2) - bz + tl.load(r + 2)
        ez = tl.load(w + 5) - bz + tl.load(r + 5)
        fz = tl.load(w + 8) - bz + tl.load(r + 8)
        low = tl.minimum(tl.minimum(az, ez), fz)
        high = tl.maximum(tl.maximum(az, ez), fz)
        ai = tl.load(w)
        ei = tl.load(w + 3)
        fi = tl.load(w + 6)
        aj = tl.load(w + 1)
        ej = tl.load(w + 4)
        fj = tl.load(w + 7)
        near = (high >= -1.01) & (low < 7.01)
        near = near & (tl.minimum(tl.minimum(ai, ei), fi) <= bx + 7) & (tl.maximum(tl.maximum(ai, ei), fi) + 1 >= bx)
        near = near & (tl.minimum(tl.minimum(aj, ej), fj) <= by + 7) & (tl.maximum(tl.maximum(aj, ej), fj) + 1 >= by)
        if near:
            af = tl.load(r)
            ef = tl.load(r + 3)
            ff = tl.load(r + 6)
            ag = tl.load(r + 1)
            eg = tl.load(r + 4)
            fg = tl.load(r + 7)
            ax = (ai - x) + af
            ay = (aj - y) + ag
            ex = (ei - x) + ef
            ey = (ej - y) + eg
            fx = (fi - x) + ff
            fy = (fj - y) + fg
            turns = _edge_turns(ax, ay, ex, ey, is_turned(ai, af, aj, ag, ei, ef, ej, eg))
            turns += _edge_turns(ex, ey, fx, fy, is_turned(ei, ef, ej, eg, fi, ff, fj, fg))
            turns += _edge_turns(fx, fy, ax, ay, is_turned(fi, ff, fj, fg, ai, af, aj, ag))
            ux = (ei - ai) + (ef - af)
            uy = (ej - aj) + (eg - ag)
            vx = (fi - ai) + (ff - af)
            vy = (fj - aj) + (fg - ag)
            a_height = tl.load(w + 2).to(tl.float64) + tl.load(r + 2).to(tl.float64)
            e_height = tl.load(w + 5).to(tl.float64) + tl.load(r + 5).to(tl.float64)
            f_height = tl.load(w + 8).to(tl.float64) + tl.load(r + 8).to(tl.float64)
            uz = (e_height - a_height).to(tl.float32)
            vz = (f_height - a_height).to(tl.float32)
            nx = (uy * vz - uz * vy).to(tl.float64)
            ny = (uz * vx - ux * vz).to(tl.float64)
            nz = ux * vy - uy * vx
            slope = ax.to(tl.float64) * nx + ay.to(tl.float64) * ny
            height = a_height + slope / tl.where(nz == 0, 1.0, nz).to(tl.float64)
            lowest = tl.minimum(tl.minimum(a_height, e_height), f_height)
            highest = tl.maximum(tl.maximum(a_height, e_height), f_height)
            height = tl.where(nz == 0, lowest, tl.minimum(tl.maximum(height, lowest), highest))
            z = tl.floor(height).to(tl.int32) + 1 - base
            total -= tl.where(z[:, None] == level, turns[:, None], 0)
    total = tl.cumsum(total, axis=1)
    tl.store(within + b * 512 + column[:, None] * 8 + level, total)


@triton.jit
def _below_kernel(columns, within, count):  # type: ignore[no-untyped-def]
    """Add to one brick's counts those of the bricks below it, which stand before it."""
    b = tl.program_id(0).to(tl.int64)  # samples of many meshes may pass 2^31
    lane = tl.arange(0, 512)
    column = tl.load(columns + b)
    total = tl.load(within + b * 512 + lane)
    other = b - 1
    while (other >= 0) & (tl.load(columns + tl.maximum(other, 0)) == column):
        total += tl.load(within + other * 512 + (lane // 8) * 8 + 7)
        other -= 1
    tl.store(count + b * 512 + lane, total)
