"""The exact sum of winding numbers in plain PyTorch, the twin of the compiled ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Pairs of a point and a triangle at a time: on a CPU what its caches hold.
_PAIRS = {"cpu": 1 << 15, "cuda": 1 << 24}
# Triangles at a time, so that a chunk has several points to share the reading of them.
_TRIANGLES = 1 << 11


def winding_number_reference(points: Tensor, corners: Tensor) -> Tensor:
    """Return what `winding.winding_number` does, `[P]` in the precision of the points."""
    total = points.new_zeros(len(points))
    step = max(1, _PAIRS[points.device.type] // max(1, min(len(corners), _TRIANGLES)))
    parts = [part.permute(1, 2, 0).contiguous() for part in corners.to(points.dtype).split(_TRIANGLES)]  # [3, 3, f]
    for start in range(0, len(points), step):
        chunk = points[start : start + step, :, None]  # [p, 3, 1]
        for part in parts:
            total[start : start + step] += _half_angles(chunk, part).sum(1)
    return total / (2 * math.pi)


def _half_angles(points: Tensor, corners: Tensor) -> Tensor:
    """Return half the solid angle of each triangle `[3 corners, 3, f]` from each point `[p, 3, 1]`. `[p, f]`"""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz) = ((corner - points).unbind(1) for corner in corners)
    la = (ax * ax).addcmul_(ay, ay).addcmul_(az, az).sqrt_()
    lb = (bx * bx).addcmul_(by, by).addcmul_(bz, bz).sqrt_()
    lc = (cx * cx).addcmul_(cy, cy).addcmul_(cz, cz).sqrt_()
    determinant = ax * (by * cz).addcmul_(bz, cy, value=-1)
    determinant.addcmul_(ay, (bz * cx).addcmul_(bx, cz, value=-1))
    determinant.addcmul_(az, (bx * cy).addcmul_(by, cx, value=-1))
    divisor = la * lb * lc
    divisor.addcmul_((ax * bx).addcmul_(ay, by).addcmul_(az, bz), lc)
    divisor.addcmul_((bx * cx).addcmul_(by, cy).addcmul_(bz, cz), la)
    divisor.addcmul_((cx * ax).addcmul_(cy, ay).addcmul_(cz, az), lb)
    return torch.atan2(determinant, divisor)
