"""The exact winding number as a Triton kernel: a block of points a program, all triangles in turn."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

_POINTS = 128
_TRIANGLES = 16


@triton.jit
def _kernel(points, corners, out, n_points, n_triangles, P: tl.constexpr, T: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * P + tl.arange(0, P)
    valid = row < n_points
    px = tl.load(points + row * 3, mask=valid, other=0.0)[:, None]
    py = tl.load(points + row * 3 + 1, mask=valid, other=0.0)[:, None]
    pz = tl.load(points + row * 3 + 2, mask=valid, other=0.0)[:, None]
    total = tl.zeros((P,), dtype=tl.float32)
    for start in range(0, n_triangles, T):
        face = start + tl.arange(0, T)
        real = face < n_triangles
        base = corners + face * 9
        ax = tl.load(base, mask=real, other=0.0)[None, :] - px
        ay = tl.load(base + 1, mask=real, other=0.0)[None, :] - py
        az = tl.load(base + 2, mask=real, other=0.0)[None, :] - pz
        bx = tl.load(base + 3, mask=real, other=0.0)[None, :] - px
        by = tl.load(base + 4, mask=real, other=0.0)[None, :] - py
        bz = tl.load(base + 5, mask=real, other=0.0)[None, :] - pz
        cx = tl.load(base + 6, mask=real, other=0.0)[None, :] - px
        cy = tl.load(base + 7, mask=real, other=0.0)[None, :] - py
        cz = tl.load(base + 8, mask=real, other=0.0)[None, :] - pz
        la = tl.sqrt(ax * ax + ay * ay + az * az)
        lb = tl.sqrt(bx * bx + by * by + bz * bz)
        lc = tl.sqrt(cx * cx + cy * cy + cz * cz)
        det = ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
        divisor = (
            la * lb * lc
            + (ax * bx + ay * by + az * bz) * lc
            + (bx * cx + by * cy + bz * cz) * la
            + (cx * ax + cy * ay + cz * az) * lb
        )
        angle = libdevice.atan2(det, divisor)
        # Padded triangles have three equal corners: the determinant is rounding alone and must not count.
        total += tl.sum(tl.where(real[None, :], angle, 0.0), axis=1)
    tl.store(out + row, total, mask=valid)


def winding_number_triton(points: Tensor, corners: Tensor) -> Tensor:
    """CUDA twin of `winding.winding_number_reference`, in float32. float32 `[P]`"""
    out = torch.empty(len(points), device=points.device)
    grid = (triton.cdiv(len(points), _POINTS),)
    with torch.cuda.device(points.device):
        _kernel[grid](
            points.float().contiguous(),
            corners.float().contiguous(),
            out,
            len(points),
            len(corners),
            _POINTS,
            _TRIANGLES,
        )
    return out / (2 * math.pi)
