"""Group normalization of the voxels of one sample on CUDA: two passes over the rows, forwards and backwards.

In PyTorch's own operations half precision is widened to float32 in memory, read and written five times.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdf_vqvae.utils.runtime import made_current

_TILE, _PARTS = 4096, 1024
"""Numbers that a program holds at a time, and parts that the rows are summed in."""


def group_norm(feats: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """Normalize rows `[N, C]` with the mean and variance of each group of channels over all of them, in float32.

    Args:
        feats: `[N, C]`, float32, float16 or bfloat16, contiguous; the result is of its dtype.
        weight: float32 `[C]`.
        bias: float32 `[C]`.
        groups: divides C; channels of a group are adjacent.
        eps: added to the variance.
    """
    return _GroupNorm.apply(feats, weight, bias, groups, eps)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        with made_current(feats.device):
            # Differences from a value that is near the mean keep the digits that squares of large numbers lose.
            pivot = feats[:_PARTS].float().mean(0)
            total, squares = _sums(feats, feats, pivot)
            offset = total / len(feats)
            mean = _of_groups(pivot + offset, groups)  # [C], as all from here on
            variance = _of_groups(squares / len(feats) - offset**2 + (pivot + offset - mean) ** 2, groups)
            scale = torch.rsqrt(variance + eps)
            out = _combined(feats, None, scale * weight, bias - mean * scale * weight)
        ctx.save_for_backward(feats, weight, mean, scale)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, mean, scale = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        with made_current(feats.device):
            grad_bias, products = _sums(grad_out, feats, mean)
            grad_weight = products * scale
            through_mean = _of_groups(weight * grad_bias, ctx.groups) / len(feats)
            through_scale = _of_groups(weight * grad_weight, ctx.groups) / len(feats) * scale**2
            shift = mean * through_scale - through_mean * scale
            grad_feats = _combined(feats, grad_out, -through_scale, shift, scale * weight)
        return grad_feats, grad_weight, grad_bias, None, None


def _of_groups(values: Tensor, groups: int) -> Tensor:
    """Return each channel's mean over its group. `[C]`"""
    return values.view(groups, -1).mean(1, keepdim=True).expand(-1, len(values) // groups).reshape(-1)


def _sums(factor: Tensor, feats: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Return the column sums of `factor` and of `factor * (feats - center)`; both of differences if they are one."""
    count, channels = feats.shape
    columns = min(triton.next_power_of_2(channels), 128)
    rows = _TILE // columns
    own = triton.cdiv(triton.cdiv(count, _PARTS), rows) * rows
    sums = torch.empty((triton.cdiv(count, own), 2, channels), dtype=torch.float32, device=feats.device)
    grid = len(sums), triton.cdiv(channels, columns)
    _sums_kernel[grid](factor, feats, center, sums, count, own, channels, rows, columns, factor is feats)
    total, products = sums.sum(0, dtype=torch.float64).float()
    return total, products


def _combined(
    feats: Tensor, other: Tensor | None, scale: Tensor, shift: Tensor, times: Tensor | None = None
) -> Tensor:
    """Return `feats * scale + shift + other * times`, in the dtype of the features."""
    out = torch.empty_like(feats)
    grid = (triton.cdiv(feats.numel(), _TILE),)
    _combine_kernel[grid](feats, other, scale, shift, times, out, feats.numel(), feats.shape[1], _TILE)
    return out


@triton.jit
def _sums_kernel(  # type: ignore[no-untyped-def]
    factor, feats, center, sums, n, own,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SQUARES: tl.constexpr,
):  # fmt: skip
    """One part of the rows."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    middle = tl.load(center + column, mask=column < CHANNELS, other=0.0)
    begin = tl.program_id(0) * own
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(begin, tl.minimum(begin + own, n), ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < n)[:, None] & (column < CHANNELS)[None, :]
        place = row.to(tl.int64)[:, None] * CHANNELS + column[None, :]
        value = tl.load(feats + place, mask=mask, other=0.0).to(tl.float32) - middle[None, :]
        if SQUARES:
            value = tl.where(mask, value, 0.0)
            times = value
        else:
            times = tl.load(factor + place, mask=mask, other=0.0).to(tl.float32)
        total += times
        products += times * value
    to = sums + tl.program_id(0) * 2 * CHANNELS + column
    tl.store(to, tl.sum(total, axis=0), mask=column < CHANNELS)
    tl.store(to + CHANNELS, tl.sum(products, axis=0), mask=column < CHANNELS)


@triton.jit
def _combine_kernel(  # type: ignore[no-untyped-def]
    feats, other, scale, shift, times, out, count, CHANNELS: tl.constexpr, TILE: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = at < count
    column = (at % CHANNELS).to(tl.int32)
    value = tl.load(feats + at, mask=mask, other=0.0).to(tl.float32) * tl.load(scale + column)
    value += tl.load(shift + column)
    if other is not None:
        value += tl.load(other + at, mask=mask, other=0.0).to(tl.float32) * tl.load(times + column)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=mask)
