"""Submanifold 3x3x3 convolution on CUDA: neighbours gathered and multiplied block by block of rows.

No row is written down 27 times: a program holds the results of a block of rows in registers, and for each tap loads
the block's neighbours and multiplies them with that tap's weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How a kernel divides its work."""

    rows: int
    """Rows of a block."""
    out: int
    """Columns of the result that a program computes."""
    inner: int
    """Channels of a row that are multiplied at a time."""
    taps: int = 1
    """Taps that a program sums the weight's gradient of."""
    warps: int
    stages: int
    """Loads under way at a time, and the one that is multiplied; 1: none ahead."""


def convolve_rows(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    grouping: tuple[Tensor, Tensor] | None = None,
    *,
    mirrored: bool,
    precision: str,
    blocks: Blocks,
) -> Tensor:
    """Return `out[p] = bias + sum_k W_k @ feats[neighbour k of p]`. `[N, Cout]`, the dtype of `feats`

    Args:
        feats: `[N, Cin]`, contiguous.
        weight: `[Cout, 27, Cin]`; mirrored: `[Cin, 27, Cout]`, read as its transpose with the taps in reverse.
        bias: `[Cout]`.
        table: rows of the neighbours by tap and row, int32 `[27, >= N]`; by tap and place, where rows are grouped.
        grouping: of `neighbors_triton.grouped`, for blocks of so many rows: the order, and the taps of each block.
        mirrored: whether it is the gradient of the features that is computed.
        precision: of products of float32, as `tl.dot` takes it.
        blocks: how the work is divided.
    """
    rows, cin = feats.shape
    cout = weight.shape[2] if mirrored else weight.shape[0]
    out = feats.new_empty((rows, cout))
    along_in, along_out = (weight.stride(0), weight.stride(2)) if mirrored else (weight.stride(2), weight.stride(0))
    order, taps = grouping or (table, table)
    _convolve_kernel[(triton.cdiv(rows, blocks.rows) * triton.cdiv(cout, blocks.out),)](
        feats, weight, out if bias is None else bias, table, order, taps, out,
        rows, table.stride(0), along_in, weight.stride(1), along_out,
        cin, cout, blocks.rows, blocks.inner, blocks.out,
        mirrored, bias is not None, grouping is not None, max(feats.numel(), out.numel()) >= 1 << 31, precision,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return out


def weight_gradient(
    feats: Tensor,
    grad_out: Tensor,
    table: Tensor,
    dtype: torch.dtype,
    *,
    parts: int,
    precision: str,
    blocks: Blocks,
) -> Tensor:
    """Return the gradient of the weight, `[Cout, 27, Cin]`: the same numbers every time.

    Args:
        feats: `[N, Cin]`, contiguous.
        grad_out: `[N, Cout]`, contiguous.
        table: rows of the neighbours by tap and row, int32 `[27, >= N]`.
        dtype: of the result.
        parts: parts of the rows, each summed by itself.
        precision: of products of float32, as `tl.dot` takes it.
        blocks: how the work is divided.
    """
    rows, cin = feats.shape
    cout = grad_out.shape[1]
    own = triton.cdiv(triton.cdiv(rows, parts), blocks.rows) * blocks.rows
    sums = torch.empty((triton.cdiv(rows, own), 27 * cin, cout), dtype=torch.float32, device=feats.device)
    tiles = triton.cdiv(27, blocks.taps) * triton.cdiv(cin, blocks.inner) * triton.cdiv(cout, blocks.out)
    _weight_kernel[(tiles, len(sums))](
        feats, grad_out, table, sums, rows, table.stride(0), own,
        cin, cout, blocks.rows, blocks.inner, blocks.out, blocks.taps,
        max(feats.numel(), grad_out.numel()) >= 1 << 31, precision, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    total = torch.empty((cout, 27, cin), dtype=dtype, device=feats.device)
    _sum_kernel[(triton.cdiv(27 * cin, 32), triton.cdiv(cout, 32))](sums, total, len(sums), 27 * cin, cout, 32)
    return total


@triton.jit
def _convolve_kernel(  # type: ignore[no-untyped-def]
    feats, weight, bias, table, order, taps, out, n, places, w_in, w_tap, w_out,
    CIN: tl.constexpr, COUT: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, OUT: tl.constexpr,
    MIRRORED: tl.constexpr, BIAS: tl.constexpr, GROUPED: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of rows and of columns."""
    across: tl.constexpr = (COUT + OUT - 1) // OUT
    chunks: tl.constexpr = (CIN + INNER - 1) // INNER
    block = tl.program_id(0) // across
    place = block * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) % across * OUT + tl.arange(0, OUT)
    there = place < n
    total = tl.zeros((ROWS, OUT), tl.float32)
    if GROUPED:
        count = tl.load(taps + block * 32)
    else:
        count = 27
    for step in range(count * chunks):
        tap = step // chunks
        channel = step % chunks * INNER + tl.arange(0, INNER)
        if GROUPED:
            tap = tl.load(taps + block * 32 + 1 + tap)
        row = tl.load(table + tap * places.to(tl.int64) + place, mask=there, other=-1)
        start = row
        if WIDE:
            start = row.to(tl.int64)
        present = (row >= 0)[:, None]
        if CIN % INNER != 0:
            present = present & (channel < CIN)[None, :]
        gathered = tl.load(feats + (start * CIN)[:, None] + channel[None, :], mask=present, other=0.0)
        if MIRRORED:
            tap = 26 - tap
        w_at = weight + tap * w_tap + (channel * w_in)[:, None] + (column * w_out)[None, :]
        w = tl.load(w_at, mask=(channel < CIN)[:, None] & (column < COUT)[None, :], other=0.0)
        total = tl.dot(gathered, w, total, input_precision=PRECISION)
    if BIAS:
        total += tl.load(bias + column, mask=column < COUT, other=0.0).to(tl.float32)[None, :]
    to = place
    if GROUPED:
        to = tl.load(order + place, mask=there, other=0)
    if WIDE:
        to = to.to(tl.int64)
    mask = there[:, None]
    if COUT % OUT != 0:
        mask = mask & (column < COUT)[None, :]
    tl.store(out + (to * COUT)[:, None] + column[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _weight_kernel(  # type: ignore[no-untyped-def]
    feats, grad_out, table, sums, n, places, own,
    CIN: tl.constexpr, COUT: tl.constexpr, ROWS: tl.constexpr, INNER: tl.constexpr, OUT: tl.constexpr,
    TAPS: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One part of the rows, for some taps and a block of input and of output channels."""
    outs: tl.constexpr = (COUT + OUT - 1) // OUT
    ins: tl.constexpr = (CIN + INNER - 1) // INNER
    tile = tl.program_id(0)
    column = tile % outs * OUT + tl.arange(0, OUT)
    channel = tile // outs % ins * INNER + tl.arange(0, INNER)
    first_tap = tile // outs // ins * TAPS
    tap = first_tap + tl.arange(0, TAPS)
    begin = tl.program_id(1) * own
    total = tl.zeros((TAPS * INNER, OUT), tl.float32)
    for at in range(begin, tl.minimum(begin + own, n), ROWS):
        place = at + tl.arange(0, ROWS)
        there = place < n
        to = place
        if WIDE:
            to = to.to(tl.int64)
        mask = there[:, None]
        if COUT % OUT != 0:
            mask = mask & (column < COUT)[None, :]
        grad = tl.load(grad_out + (to * COUT)[:, None] + column[None, :], mask=mask, other=0.0)
        if TAPS == 1:
            row = tl.load(table + first_tap * places.to(tl.int64) + place, mask=there, other=-1)
            if WIDE:
                row = row.to(tl.int64)
            present = (row >= 0)[:, None]
            if CIN % INNER != 0:
                present = present & (channel < CIN)[None, :]
            gathered = tl.load(feats + (row * CIN)[:, None] + channel[None, :], mask=present, other=0.0)
        else:
            # The channels of all taps beside each other.
            row = tl.load(
                table + tap.to(tl.int64)[None, :] * places + place[:, None],
                mask=(tap < 27)[None, :] & there[:, None], other=-1,
            )  # fmt: skip
            if WIDE:
                row = row.to(tl.int64)
            present = (row >= 0)[:, :, None]
            if CIN % INNER != 0:
                present = present & (channel < CIN)[None, None, :]
            gathered = tl.load(feats + (row * CIN)[:, :, None] + channel[None, None, :], mask=present, other=0.0)
            gathered = tl.reshape(gathered, (ROWS, TAPS * INNER))
        total = tl.dot(tl.trans(gathered), grad, total, input_precision=PRECISION)
    k = tl.arange(0, TAPS * INNER)
    tap = first_tap + k // INNER
    channel = tile // outs % ins * INNER + k % INNER
    mask = ((tap < 27) & (channel < CIN))[:, None] & (column < COUT)[None, :]
    to = sums + tl.program_id(1).to(tl.int64) * (27 * CIN * COUT)
    tl.store(to + ((tap * CIN + channel) * COUT)[:, None] + column[None, :], total, mask=mask)


@triton.jit
def _sum_kernel(sums, total, parts, tall, columns, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum the parts in their order, `[tall, columns]` each, to `[columns, tall]`."""
    row = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    column = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    mask = (row < tall)[:, None] & (column < columns)[None, :]
    size = tl.cast(tall, tl.int64) * columns
    at = row[:, None] * columns + column[None, :]
    value = tl.zeros((SIDE, SIDE), tl.float32)
    for part in range(parts):
        value += tl.load(sums + part * size + at, mask=mask, other=0.0)
    tl.store(total + column[None, :] * tall + row[:, None], value.to(total.dtype.element_ty), mask=mask)
