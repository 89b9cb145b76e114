"""Layer normalization of narrow rows on CUDA: many rows a program, each number read once.

PyTorch gives every row a program of its own, which takes ten times the memory's time where a row has 64 numbers.
From 128 on it is the faster one.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdf_vqvae.utils.runtime import made_current

WIDEST = 64
"""Most channels for which this is worth it, as measured on an H200."""
_TILE, _PARTS = 2048, 1024
"""Numbers that a program holds at a time, and parts that the rows are summed in."""


def voxel_norm(feats: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalize every row of `[N, C]` by its own mean and variance, in float32.

    Args:
        feats: `[N, C]`, float32, float16 or bfloat16, contiguous; the result is of its dtype.
        weight: float32 `[C]`.
        bias: float32 `[C]`.
        eps: added to the variance.
    """
    return _VoxelNorm.apply(feats, weight, bias, eps)


class _VoxelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        count, channels = feats.shape
        columns, rows = _tile(channels)
        out = torch.empty_like(feats)
        with made_current(feats.device):
            _forward_kernel[(triton.cdiv(count, rows),)](
                feats, weight, bias, out, count, eps, channels, rows, columns
            )
        ctx.save_for_backward(feats, weight)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight = ctx.saved_tensors
        count, channels = feats.shape
        columns, rows = _tile(channels)
        own = triton.cdiv(triton.cdiv(count, _PARTS), rows) * rows
        grad_feats = torch.empty_like(feats)
        sums = torch.empty((triton.cdiv(count, own), 2, channels), dtype=torch.float32, device=feats.device)
        with made_current(feats.device):
            _backward_kernel[(len(sums),)](
                feats, grad_out.contiguous(), weight, grad_feats, sums, count, own, ctx.eps, channels, rows, columns
            )
        grad_weight, grad_bias = sums.sum(0)
        return grad_feats, grad_weight, grad_bias, None


def _tile(channels: int) -> tuple[int, int]:
    """Return how many columns and rows a program holds at a time."""
    columns = triton.next_power_of_2(channels)
    return columns, max(1, _TILE // columns)


@triton.jit
def _normalized(feats, place, mask, eps, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return rows `[ROWS, COLUMNS]` without mean and scale, and that scale `[ROWS]`."""
    value = tl.load(feats + place, mask=mask, other=0.0).to(tl.float32)
    centered = tl.where(mask, value - (tl.sum(value, axis=1) / CHANNELS)[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centered * centered, axis=1) / CHANNELS + eps)
    return centered * scale[:, None], scale


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    feats, weight, bias, out, n, eps, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    mask = (row < n)[:, None] & (column < CHANNELS)[None, :]
    place = row.to(tl.int64)[:, None] * CHANNELS + column[None, :]
    normal, _ = _normalized(feats, place, mask, eps, CHANNELS)
    times = tl.load(weight + column, mask=column < CHANNELS, other=0.0)
    plus = tl.load(bias + column, mask=column < CHANNELS, other=0.0)
    tl.store(out + place, (normal * times[None, :] + plus[None, :]).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    feats, grad_out, weight, grad_feats, sums, n, own, eps,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One part of the rows, and its share of the sums for weight and bias."""
    column = tl.arange(0, COLUMNS)
    times = tl.load(weight + column, mask=column < CHANNELS, other=0.0)
    begin = tl.program_id(0) * own
    of_weight = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_bias = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(begin, tl.minimum(begin + own, n), ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < n)[:, None] & (column < CHANNELS)[None, :]
        place = row.to(tl.int64)[:, None] * CHANNELS + column[None, :]
        normal, scale = _normalized(feats, place, mask, eps, CHANNELS)
        grad = tl.load(grad_out + place, mask=mask, other=0.0).to(tl.float32)
        of_weight += grad * normal
        of_bias += grad
        through = grad * times[None, :]
        mean = tl.sum(through, axis=1) / CHANNELS
        along = tl.sum(through * normal, axis=1) / CHANNELS
        result = (through - mean[:, None] - normal * along[:, None]) * scale[:, None]
        tl.store(grad_feats + place, result.to(grad_feats.dtype.element_ty), mask=mask)
    to = sums + tl.program_id(0) * 2 * CHANNELS + column
    tl.store(to, tl.sum(of_weight, axis=0), mask=column < CHANNELS)
    tl.store(to + CHANNELS, tl.sum(of_bias, axis=0), mask=column < CHANNELS)
