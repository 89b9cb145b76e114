"""Submanifold convolution through this project's own Triton kernels: CUDA only, nothing to compile beforehand.

How the kernels divide their work follows rules of channels and dtype that are written down here, so that nothing is
tried while a program waits. Where the rules come from: `benchmarks/speed/sparse_convolution.py tune`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdf_vqvae.sparse.backends import torch_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.utils.runtime import made_current

if TYPE_CHECKING:
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks
    from sdf_vqvae.sparse.backends.halves_triton import Operand

_OLDEST = 3, 3
"""Release of Triton, that of PyTorch 2.7; the one before does not compile all kernels."""
_GROUPED_ROWS = 1 << 17
"""From so many rows on, leaving out taps is worth their sorting"""
_GROUPED_CHANNELS, _GROUPED_CHANNELS_IF_SPARSE = 64, 32
"""and from so many halves a row on, which are as many channels, or half as many of float32."""
_SPARSE = 0.6
"""Where a smaller share of all neighbours is there, most taps are left out."""
_BLOCK = 128
_PROGRAMS, _MOST_PARTS = 27 * 128, 128
"""Of the gradient of a weight: enough programs to fill a GPU, and parts that its rows are summed in."""


def unfit(device_type: str) -> str:
    """Return why it doesn't run on a kind of device; empty if it does."""
    if device_type != "cuda" or torch.version.hip:
        return "runs on NVIDIA GPUs only"
    return "runs on GPUs from Ampere on only" if _before_ampere() else ""


def lacking() -> str:
    """Return, in a sentence, what has to be installed before it runs; empty if nothing."""
    found = _triton_version()
    if found and tuple(int(number) for number in found.split(".")[:2]) >= _OLDEST:
        return ""
    what = f"Triton {found} is too old" if found else "Triton is not installed"
    return f"{what}, using slower convolutions: pip install 'triton>={_OLDEST[0]}.{_OLDEST[1]}'"


@cache
def _before_ampere() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8


@cache
def _triton_version() -> str:
    return import_module("triton").__version__ if find_spec("triton") else ""


def convolve(feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
    """Return `out[p] = bias + sum_k weight[:, k] @ feats[p + k - 1]` over the active neighbours. [N, Cout]"""
    if feats.dtype == torch.float64:
        return torch_backend.convolve(feats, weight, bias, coordinates)
    return _Convolve.apply(feats, weight, bias, coordinates)


def neighbor_table(coordinates: CoordinateSet) -> Tensor:
    """Return the row at each of 27 offsets from a row's voxel, or -1, built on first use. int32 `[27, >= N]`"""
    return coordinates.derived("triton table", lambda: _table(coordinates))


def _table(coordinates: CoordinateSet) -> Tensor:
    from sdf_vqvae.sparse.backends import neighbors_triton

    coords = coordinates.coords.contiguous()
    with made_current(coordinates.device):
        if coordinates.knows_cells:
            cells, parents = coordinates.coarser()
            places = coordinates.places_in_cells()
            return neighbors_triton.children_table(coords, parents, places, neighbor_table(cells))
        if neighbors_triton.fits(len(coordinates), coordinates.side, coordinates.batch_size):
            return neighbors_triton.neighbor_table(coords, coordinates.side)
    return neighbors_triton.rearranged(coordinates.neighbors())


def grouped(coordinates: CoordinateSet) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order, the table and the taps of rows that are grouped by their neighbours (`neighbors_triton`)."""
    return coordinates.derived("triton grouped", lambda: _grouped(coordinates))


def _grouped(coordinates: CoordinateSet) -> tuple[Tensor, Tensor, Tensor]:
    from sdf_vqvae.sparse.backends import neighbors_triton

    with made_current(coordinates.device):
        table, coords = neighbor_table(coordinates), coordinates.coords.contiguous()
        return neighbors_triton.grouped(table, coords, coordinates.side, coordinates.batch_size, _BLOCK)


def _worth_grouping(coordinates: CoordinateSet, halves: int) -> bool:
    """Return whether rows of so many halves are convolved faster in groups."""
    if len(coordinates) < _GROUPED_ROWS or halves < _GROUPED_CHANNELS_IF_SPARSE:
        return False
    return halves >= _GROUPED_CHANNELS or coordinates.derived("triton share", lambda: _share(coordinates)) < _SPARSE


def _share(coordinates: CoordinateSet) -> float:
    """Return which share of the 27 neighbours of a voxel is there, from every 64th voxel: the GPU is waited for."""
    return float((neighbor_table(coordinates)[:, ::64] >= 0).float().mean())


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
        from sdf_vqvae.sparse.backends.halves_triton import operand

        terms = _terms()
        with made_current(feats.device):
            rows, kernel = operand(feats, terms), operand(weight, terms)
            out = _rows(rows, kernel, bias, coordinates, feats.dtype, mirrored=False)
        ctx.save_for_backward(rows.terms, rows.unit, kernel.terms, kernel.unit)
        ctx.coordinates, ctx.shape = coordinates, weight.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        from sdf_vqvae.sparse.backends.convolution_triton import column_sums
        from sdf_vqvae.sparse.backends.halves_triton import Operand, operand

        grad_out = grad_out.contiguous()
        rows, kernel = (Operand(*ctx.saved_tensors[i : i + 2]) for i in (0, 2))
        grad_feats = grad_weight = grad_bias = None
        with made_current(grad_out.device):
            grad = operand(grad_out, rows.terms.shape[1])
            if ctx.needs_input_grad[0]:
                # The neighbour relation is symmetric: row q sees p at offset k exactly if p sees q at 26 - k.
                grad_feats = _rows(grad, kernel, None, ctx.coordinates, grad_out.dtype, mirrored=True)
            if ctx.needs_input_grad[1]:
                grad_weight = _weight_gradient(rows, grad, ctx.coordinates, grad_out.dtype).view(ctx.shape)
            if ctx.needs_input_grad[2]:
                grad_bias = column_sums(grad_out)
        return grad_feats, grad_weight, grad_bias, None


def _rows(
    feats: Operand,
    weight: Operand,
    bias: Tensor | None,
    coordinates: CoordinateSet,
    dtype: torch.dtype,
    *,
    mirrored: bool,
) -> Tensor:
    from sdf_vqvae.sparse.backends.convolution_triton import convolve_rows

    _, terms, cin = feats.terms.shape
    cout = weight.channels if mirrored else len(weight.terms) // 27
    table, grouping = neighbor_table(coordinates), None
    if _worth_grouping(coordinates, min(cin, cout) * terms):
        order, table, taps = grouped(coordinates)
        grouping = order, taps
    blocks = blocks_of_rows(cin, cout, terms)
    return convolve_rows(feats, weight, bias, table, grouping, mirrored=mirrored, dtype=dtype, blocks=blocks)


def _weight_gradient(feats: Operand, grad_out: Operand, coordinates: CoordinateSet, dtype: torch.dtype) -> Tensor:
    from sdf_vqvae.sparse.backends.convolution_triton import weight_gradient

    rows, terms, cin = feats.terms.shape
    cout = grad_out.channels
    blocks = blocks_of_weights(cin, cout, terms)
    tiles = -(-27 // blocks.taps) * -(-cin // blocks.inner) * -(-cout // blocks.out)
    parts = max(1, min(_PROGRAMS // tiles, _MOST_PARTS, rows // (8 * blocks.rows)))
    return weight_gradient(feats, grad_out, neighbor_table(coordinates), dtype, parts=parts, blocks=blocks)


def _terms() -> int:
    """Return how many halves stand for a number of float32: one where PyTorch's own products take TF32, else two."""
    return 1 if torch.get_float32_matmul_precision() != "highest" else 2


def blocks_of_rows(cin: int, cout: int, terms: int) -> Blocks:
    """Return how features of `cin` channels are convolved to `cout`: the fastest on an H200."""
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks

    if terms == 2:
        out, inner = _power(cout, 64), _inner(cin, 64)
        return Blocks(rows=_BLOCK, out=out, inner=inner, warps=4 if out < 64 else 8, stages=3 if inner < 64 else 2)
    out, inner = _power(cout, 128), _inner(cin, 64)
    if out == 128:
        return Blocks(rows=_BLOCK, out=out, inner=inner, warps=8, stages=2)
    return Blocks(rows=_BLOCK, out=out, inner=inner, warps=8 if out == 64 else 4, stages=3)


def blocks_of_weights(cin: int, cout: int, terms: int) -> Blocks:
    """Return how the gradient of a weight `[cout, 27, cin]` is computed: the fastest on an H200."""
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks

    out, inner = _power(cout, 128), _inner(cin, 128 // terms)
    if terms == 2:
        rows = 32 if inner == 64 else 64
        return Blocks(
            rows=rows, out=out, inner=inner, taps=64 // inner if out > 32 else 128 // inner, warps=4, stages=3
        )
    if inner >= 64:
        return Blocks(rows=64 if inner == 128 else 128, out=out, inner=inner, warps=4, stages=3)
    if inner == 32:
        return Blocks(rows=128, out=out, inner=inner, taps=max(2, min(8, 256 // out)), warps=4, stages=1)
    return Blocks(rows=128, out=out, inner=inner, taps=4, warps=4, stages=3)


def _power(channels: int, largest: int) -> int:
    """Return the power of two that holds the channels, from 16 on (the least that a product takes)."""
    return max(16, min(largest, 1 << (channels - 1).bit_length()))


def _inner(channels: int, largest: int) -> int:
    """Return the largest power of two that divides the channels, if one from 16 on does, else as `_power`."""
    divisor = min(channels & -channels, largest)
    return divisor if divisor >= 16 else _power(channels, min(largest, 32))
