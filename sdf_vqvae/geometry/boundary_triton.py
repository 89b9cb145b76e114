"""The strips' share of `boundary` as a Triton kernel: a block of samples a program, all edges in turn."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from sdf_vqvae.geometry.boundary import Boundary
from sdf_vqvae.geometry.bricks_triton import side_of_edge

_POINTS = 256


def strips_share(index: Tensor, boundary: Boundary) -> Tensor:
    """CUDA twin of `boundary.strips_share_reference` for samples; sides in float64, angles in float32. float32 `[N]`

    Args:
        index: samples, int32 `[N, 3]`.
        boundary: the edges.
    """
    out = torch.empty(len(index), device=index.device)
    edges = torch.cat([boundary.start, boundary.end, boundary.times[:, None]], dim=1).contiguous()  # [E, 7]
    with torch.cuda.device(index.device):
        _strips_kernel[(triton.cdiv(len(index), _POINTS),)](
            index.contiguous(), edges, out, len(index), len(boundary), _POINTS, enable_fp_fusion=False
        )
    return out / (2 * math.pi)


@triton.jit
def _rise(flat, z):  # type: ignore[no-untyped-def]
    length = tl.sqrt(flat + z * z)
    return tl.where(z > 0, length + z, flat / tl.maximum(length - z, 1e-30))


@triton.jit
def _strips_kernel(index, edges, out, n_points, n_edges, P: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * P + tl.arange(0, P)
    valid = row < n_points
    x = tl.load(index + row * 3, mask=valid, other=0).to(tl.float64)
    y = tl.load(index + row * 3 + 1, mask=valid, other=0).to(tl.float64)
    z = tl.load(index + row * 3 + 2, mask=valid, other=0).to(tl.float64)
    total = tl.zeros((P,), dtype=tl.float32)
    for e in range(n_edges):
        edge = edges + e * 7
        sx = tl.load(edge)
        sy = tl.load(edge + 1)
        ex = tl.load(edge + 3)
        ey = tl.load(edge + 4)
        cross = side_of_edge(sx, sy, ex, ey, x, y).to(tl.float32)
        ax = (sx - x).to(tl.float32)
        ay = (sy - y).to(tl.float32)
        az = (tl.load(edge + 2) - z).to(tl.float32)
        bx = (ex - x).to(tl.float32)
        by = (ey - y).to(tl.float32)
        bz = (tl.load(edge + 5) - z).to(tl.float32)
        divisor = _rise(ax * ax + ay * ay, az) * _rise(bx * bx + by * by, bz) + ax * bx + ay * by
        total += libdevice.atan2(cross, divisor) * tl.load(edge + 6).to(tl.float32)
    tl.store(out + row, total, mask=valid)
