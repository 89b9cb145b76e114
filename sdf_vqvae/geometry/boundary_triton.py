"""The strips' share of `boundary` as a Triton kernel: a block of samples a program, all edges in turn."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sdf_vqvae.geometry.boundary import Boundary
from sdf_vqvae.geometry.bricks_triton import is_turned, side_of_edge, split

_POINTS = 256


def strips_share(index: Tensor, mesh: Tensor, boundary: Boundary) -> Tensor:
    """CUDA twin of `boundary.strips_share_reference` for samples, in float32. float32 `[N]`

    Args:
        index: samples, int32 `[N, 3]`.
        mesh: the mesh of each, int64 `[N]`, ascending.
        boundary: the edges.
    """
    out = torch.empty(len(index), device=index.device)
    whole, rest = split(torch.cat([boundary.start, boundary.end], dim=1))  # [E, 6] each
    with torch.cuda.device(index.device):
        _strips_kernel[(triton.cdiv(len(index), _POINTS),)](
            index.contiguous(), mesh, whole, rest, boundary.times.float(), boundary.starts, out, len(index), _POINTS,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out / (2 * math.pi)


@triton.jit
def _rise(flat, z):  # type: ignore[no-untyped-def]
    """Return |a| + a.z for vectors whose part in the plane has that squared length."""
    length = tl.sqrt(flat + z * z)
    return tl.where(z > 0, length + z, flat / tl.maximum(length - z, 1e-30))


@triton.jit
def _strips_kernel(  # type: ignore[no-untyped-def]
    index, meshes, whole, rest, times, starts, out, n_points, P: tl.constexpr
):
    row = tl.program_id(0) * P + tl.arange(0, P)
    valid = row < n_points
    x = tl.load(index + row * 3, mask=valid, other=0).to(tl.float32)
    y = tl.load(index + row * 3 + 1, mask=valid, other=0).to(tl.float32)
    z = tl.load(index + row * 3 + 2, mask=valid, other=0).to(tl.float32)
    total = tl.zeros((P,), dtype=tl.float32)
    mesh = tl.load(meshes + row, mask=valid, other=-1)
    first = tl.load(meshes + tl.program_id(0) * P)
    last = tl.max(mesh, axis=0)
    begin = tl.load(starts + first)
    end = tl.load(starts + last + 1)
    # Where a block holds samples of several meshes, each counts its own edges.
    own_begin = tl.load(starts + mesh, mask=valid, other=0)
    own_end = tl.load(starts + mesh + 1, mask=valid, other=0)
    for e in range(begin, end):
        w = whole + e * 6
        r = rest + e * 6
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
        angle = libdevice.atan2(cross, divisor) * tl.load(times + e)
        total += tl.where((e >= own_begin) & (e < own_end), angle, 0.0)
    tl.store(out + row, total, mask=valid)
