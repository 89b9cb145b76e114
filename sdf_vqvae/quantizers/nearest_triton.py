"""The nearest of many codes on CUDA: distances stay in registers; a table of them would pass memory five times."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sdf_vqvae.utils.runtime import made_current

_VECTORS, _CODES = 64, 128
"""Of a program at a time."""
_PROGRAMS = 528
"""So many fill a GPU; where there are fewer vectors, several programs share the codes."""


def nearest_codes(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return the index of the nearest code of each vector, the first of several. int64 `[M]`

    Args:
        vectors: float32 `[M, D]`, contiguous.
        codes: float32 `[K, D]`, contiguous.
    """
    count, width = vectors.shape
    blocks = triton.cdiv(count, _VECTORS)
    of_codes = triton.cdiv(len(codes), _CODES)
    shares = min(of_codes, max(1, _PROGRAMS // blocks))
    own = triton.cdiv(of_codes, shares)
    shares = triton.cdiv(of_codes, own)
    half_norm = codes.square().sum(1) / 2
    least = torch.empty((shares, count), dtype=torch.float32, device=vectors.device)
    index = torch.empty((shares, count), dtype=torch.int64, device=vectors.device)
    padded = max(16, triton.next_power_of_2(width))
    with made_current(vectors.device):
        _nearest_kernel[(blocks, shares)](
            vectors, codes, half_norm, least, index, count, len(codes), own * _CODES,
            width, padded, _VECTORS, _CODES, num_warps=8,
        )  # fmt: skip
    if shares == 1:
        return index[0]
    ties = least == least.amin(0)
    return torch.where(ties, index, len(codes)).amin(0)


@triton.jit
def _nearest_kernel(  # type: ignore[no-untyped-def]
    vectors, codes, half_norm, least, index, n, k, own,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, VECTORS: tl.constexpr, CODES: tl.constexpr,
):  # fmt: skip
    """A block of vectors and a share of the codes: half the squared distance, less that of the vector from 0."""
    row = tl.program_id(0) * VECTORS + tl.arange(0, VECTORS)
    part = tl.arange(0, PADDED)
    here = (row < n)[:, None] & (part < WIDTH)[None, :]
    vector = tl.load(vectors + row.to(tl.int64)[:, None] * WIDTH + part[None, :], mask=here, other=0.0)
    first = tl.program_id(1) * own
    best = tl.full((VECTORS, CODES), float("inf"), tl.float32)
    place = tl.zeros((VECTORS, CODES), tl.int32)
    for at in range(first, tl.minimum(first + own, k), CODES):
        code = at + tl.arange(0, CODES)
        there = (part < WIDTH)[:, None] & (code < k)[None, :]
        block = tl.load(codes + code[None, :] * WIDTH + part[:, None], mask=there, other=0.0)
        norm = tl.load(half_norm + code, mask=code < k, other=float("inf"))
        value = norm[None, :] - tl.dot(vector, block, input_precision="ieee")
        nearer = value < best
        best = tl.where(nearer, value, best)
        place = tl.where(nearer, code[None, :], place)
    smallest = tl.min(best, axis=1)
    found = tl.min(tl.where(best == smallest[:, None], place, k), axis=1)
    to = tl.program_id(1).to(tl.int64) * n + row
    tl.store(least + to, smallest, mask=row < n)
    tl.store(index + to, found.to(tl.int64), mask=row < n)
