"""float32 for tensor cores that multiply float16: every number as one or two halves and a power of two.

Of a number's 24 bits, one half keeps 11, as TF32 does, and two keep 22, as the two TF32 numbers do that float32
products are commonly made of. Halves take half as many bytes, and are multiplied twice as fast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


@dataclass(frozen=True)
class Operand:
    """Rows as the kernels multiply them."""

    terms: Tensor
    """float16 or bfloat16 `[R, terms, C]`: numbers that add up to the rows."""
    unit: Tensor | None
    """float32 `[1]`: what the sum is to be multiplied with."""

    @property
    def channels(self) -> int:
        """Return how many numbers a row has."""
        return self.terms.shape[-1]


def operand(rows: Tensor, terms: int) -> Operand:
    """Return rows `[..., C]` as the kernels multiply them; float32 as so many halves, other types as they are."""
    rows = rows.reshape(-1, rows.shape[-1]).contiguous()
    if rows.dtype != torch.float32:
        return Operand(rows[:, None], None)
    largest = torch.zeros(1, dtype=torch.int32, device=rows.device)
    unit = torch.empty(1, dtype=torch.float32, device=rows.device)
    halves = torch.empty((len(rows), terms, rows.shape[1]), dtype=torch.float16, device=rows.device)
    grid = (triton.cdiv(rows.numel(), _BLOCK),)
    _largest_kernel[grid](rows, largest, rows.numel(), _BLOCK)
    _split_kernel[grid](rows, largest, halves, unit, rows.numel(), rows.shape[1], terms, _BLOCK)
    return Operand(halves, unit)


@triton.jit
def _largest_kernel(rows, largest, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Find the largest finite number, without its sign: its bits, whose order is that of the numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(rows + at, mask=at < count, other=0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    tl.atomic_max(largest, tl.max(tl.where(bits < 0x7F800000, bits, 0), axis=0), sem="relaxed")


@triton.jit
def _split_kernel(  # type: ignore[no-untyped-def]
    rows, largest, halves, unit, count, CHANNELS: tl.constexpr, TERMS: tl.constexpr, BLOCK: tl.constexpr
):
    """Scale so that the largest number lies just below the largest half, and split."""
    # With the bias of its exponents, 127: 2^14 over the power of two of the largest number, and its inverse.
    exponent = tl.minimum(268 - (tl.load(largest) >> 23), 253)
    scale = (exponent << 23).to(tl.float32, bitcast=True)
    tl.store(unit, ((254 - exponent) << 23).to(tl.float32, bitcast=True), mask=tl.program_id(0) == 0)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    value = tl.load(rows + at, mask=mask, other=0.0) * scale
    high = value.to(tl.float16)
    to = halves + at // CHANNELS * (TERMS * CHANNELS) + at % CHANNELS
    tl.store(to, high, mask=mask)
    if TERMS == 2:
        tl.store(to + CHANNELS, (value - high.to(tl.float32)).to(tl.float16), mask=mask)
