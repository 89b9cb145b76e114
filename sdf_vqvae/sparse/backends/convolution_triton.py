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

from sdf_vqvae.sparse.backends.halves_triton import Operand

_COLUMN_PARTS, _COLUMN_TILE = 1024, 4096
"""Parts that the rows are summed in, and numbers of a part that are added at a time."""


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
    feats: Operand,
    weight: Operand,
    bias: Tensor | None,
    table: Tensor,
    grouping: tuple[Tensor, Tensor] | None = None,
    *,
    mirrored: bool,
    dtype: torch.dtype,
    blocks: Blocks,
) -> Tensor:
    """Return `out[p] = bias + sum_k W_k @ feats[neighbour k of p]`. `[N, Cout]`

    Args:
        feats: N rows of Cin.
        weight: rows of `[Cout, 27, Cin]`; mirrored: of `[Cin, 27, Cout]`, read as its transpose with the taps in
            reverse. As many terms as the features.
        bias: `[Cout]`.
        table: rows of the neighbours by tap and row, int32 `[27, >= N]`; by tap and place, where rows are grouped.
        grouping: of `neighbors_triton.grouped`, for blocks of so many rows: the order, and the taps of each block.
        mirrored: whether it is the gradient of the features that is computed.
        dtype: of the result.
        blocks: how the work is divided.
    """
    rows, terms, cin = feats.terms.shape
    across = weight.terms.stride(0)
    cout = weight.channels if mirrored else len(weight.terms) // 27
    along_in, along_out = (27 * across, 1) if mirrored else (1, 27 * across)
    out = torch.empty((rows, cout), dtype=dtype, device=feats.terms.device)
    order, taps = grouping or (table, table)
    _convolve_kernel[(triton.cdiv(rows, blocks.rows) * triton.cdiv(cout, blocks.out),)](
        feats.terms, weight.terms, feats.unit, weight.unit, out if bias is None else bias, table, order, taps, out,
        rows, table.stride(0), along_in, across, along_out, weight.channels,
        cin, cout, terms, blocks.rows, blocks.inner, blocks.out,
        mirrored, bias is not None, grouping is not None, max(feats.terms.numel(), out.numel()) >= 1 << 31,
        num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    return out


def weight_gradient(
    feats: Operand, grad_out: Operand, table: Tensor, dtype: torch.dtype, *, parts: int, blocks: Blocks
) -> Tensor:
    """Return the gradient of the weight, `[Cout, 27, Cin]`: the same numbers every time.

    Args:
        feats: N rows of Cin.
        grad_out: N rows of Cout, as many terms.
        table: rows of the neighbours by tap and row, int32 `[27, >= N]`.
        dtype: of the result.
        parts: parts of the rows, each summed by itself.
        blocks: how the work is divided.
    """
    rows, terms, cin = feats.terms.shape
    cout = grad_out.channels
    own = triton.cdiv(triton.cdiv(rows, parts), blocks.rows) * blocks.rows
    sums = torch.empty((triton.cdiv(rows, own), 27 * cin, cout), dtype=torch.float32, device=table.device)
    tiles = triton.cdiv(27, blocks.taps) * triton.cdiv(cin, blocks.inner) * triton.cdiv(cout, blocks.out)
    _weight_kernel[(tiles, len(sums))](
        feats.terms, grad_out.terms, feats.unit, grad_out.unit, table, sums, rows, table.stride(0), own,
        cin, cout, terms, blocks.rows, blocks.inner, blocks.out, blocks.taps,
        max(feats.terms.numel(), grad_out.terms.numel()) >= 1 << 31, num_warps=blocks.warps, num_stages=blocks.stages,
    )  # fmt: skip
    total = torch.empty((cout, 27, cin), dtype=dtype, device=table.device)
    _sum_kernel[(triton.cdiv(27 * cin, 32), triton.cdiv(cout, 32))](sums, total, len(sums), 27 * cin, cout, 32)
    return total


def column_sums(rows: Tensor) -> Tensor:
    """Return the sums of the columns of `[N, C]`, added up in float32: the same numbers every time. `[C]`"""
    count, channels = rows.shape
    if count < _COLUMN_PARTS * 512:  # one launch is sooner done than three
        return rows.sum(0)
    columns = min(triton.next_power_of_2(channels), 128)
    at_a_time = _COLUMN_TILE // columns
    own = triton.cdiv(triton.cdiv(count, _COLUMN_PARTS), at_a_time) * at_a_time
    sums = torch.empty((triton.cdiv(count, own), channels), dtype=torch.float32, device=rows.device)
    _column_kernel[(len(sums), triton.cdiv(channels, columns))](rows, sums, count, own, channels, at_a_time, columns)
    return sums.sum(0).to(rows.dtype)


@triton.jit
def _convolve_kernel(  # type: ignore[no-untyped-def]
    feats, weight, feats_unit, weight_unit, bias, table, order, taps, out, n, places, w_in, w_tap, w_out, w_term,
    CIN: tl.constexpr, COUT: tl.constexpr, TERMS: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, OUT: tl.constexpr,
    MIRRORED: tl.constexpr, BIAS: tl.constexpr, GROUPED: tl.constexpr, WIDE: tl.constexpr,
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
        at = feats + (start * (TERMS * CIN))[:, None] + channel[None, :]
        gathered = tl.load(at, mask=present, other=0.0)
        if MIRRORED:
            tap = 26 - tap
        w_at = weight + tap * w_tap + (channel * w_in)[:, None] + (column * w_out)[None, :]
        w_there = (channel < CIN)[:, None] & (column < COUT)[None, :]
        w = tl.load(w_at, mask=w_there, other=0.0)
        if TERMS == 2:
            # Tensor cores cut off what doesn't fit when they add; few of their sums, added up here, are as good as
            # sums of float32.
            part = tl.dot(tl.load(at + CIN, mask=present, other=0.0), w)
            part = tl.dot(gathered, tl.load(w_at + w_term, mask=w_there, other=0.0), part)
            total += tl.dot(gathered, w, part)
        else:
            total = tl.dot(gathered, w, total)
    if feats_unit is not None:
        total *= tl.load(feats_unit) * tl.load(weight_unit)
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
    feats, grad_out, feats_unit, grad_unit, table, sums, n, places, own,
    CIN: tl.constexpr, COUT: tl.constexpr, TERMS: tl.constexpr,
    ROWS: tl.constexpr, INNER: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, WIDE: tl.constexpr,
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
        grad_at = grad_out + (to * (TERMS * COUT))[:, None] + column[None, :]
        grad = tl.load(grad_at, mask=mask, other=0.0)
        if TAPS == 1:
            row = tl.load(table + first_tap * places.to(tl.int64) + place, mask=there, other=-1)
            if WIDE:
                row = row.to(tl.int64)
            present = (row >= 0)[:, None]
            if CIN % INNER != 0:
                present = present & (channel < CIN)[None, :]
            at = feats + (row * (TERMS * CIN))[:, None] + channel[None, :]
            gathered = tl.load(at, mask=present, other=0.0)
            if TERMS == 2:
                low = tl.load(at + CIN, mask=present, other=0.0)
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
            at = feats + (row * (TERMS * CIN))[:, :, None] + channel[None, None, :]
            gathered = tl.reshape(tl.load(at, mask=present, other=0.0), (ROWS, TAPS * INNER))
            if TERMS == 2:
                low = tl.reshape(tl.load(at + CIN, mask=present, other=0.0), (ROWS, TAPS * INNER))
        if TERMS == 2:
            part = tl.dot(tl.trans(low), grad)
            part = tl.dot(tl.trans(gathered), tl.load(grad_at + COUT, mask=mask, other=0.0), part)
            total += tl.dot(tl.trans(gathered), grad, part)
        else:
            total = tl.dot(tl.trans(gathered), grad, total)
    if feats_unit is not None:
        total *= tl.load(feats_unit) * tl.load(grad_unit)
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


@triton.jit
def _column_kernel(  # type: ignore[no-untyped-def]
    rows, sums, n, own, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sum one part of the rows."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.program_id(0) * own
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for at in range(begin, tl.minimum(begin + own, n), ROWS):
        row = at + tl.arange(0, ROWS)
        mask = (row < n)[:, None] & (column < CHANNELS)[None, :]
        total += tl.load(rows + row.to(tl.int64)[:, None] * CHANNELS + column[None, :], mask=mask, other=0.0)
    tl.store(sums + tl.program_id(0) * CHANNELS + column, tl.sum(total, axis=0), mask=column < CHANNELS)
