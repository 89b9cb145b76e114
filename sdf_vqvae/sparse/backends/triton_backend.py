"""Submanifold convolution through this project's own Triton kernels: CUDA only, nothing to compile beforehand.

How the kernels divide their work follows rules of channels and dtype that are written down here, so that nothing is
tried while a program waits. Where the rules come from: `benchmarks/speed/sparse_convolution.py tune`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdf_vqvae.sparse.backends import torch_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet, linear_keys

if TYPE_CHECKING:
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks

_OLDEST = 3, 3
"""Release of Triton, that of PyTorch 2.7; the one before does not compile all kernels."""
_GROUPED_CHANNELS = 128
_GROUPED_ROWS = 1 << 17
"""From so many channels on, leaving out taps is worth more than near rows; from so many rows on, their sorting."""
_BLOCK = 128
_BRICK = 32
"""Side of the bricks within which rows are grouped, voxels."""
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

    if not neighbors_triton.fits(len(coordinates), coordinates.side, coordinates.batch_size):
        return neighbors_triton.rearranged(coordinates.neighbors())
    with _on(coordinates.device):
        return neighbors_triton.neighbor_table(coordinates.coords.contiguous(), coordinates.side)


def grouped(coordinates: CoordinateSet) -> tuple[Tensor, Tensor, Tensor]:
    """Return the order, the table and the taps of rows that are grouped by their neighbours (`neighbors_triton`)."""
    return coordinates.derived("triton grouped", lambda: _grouped(coordinates))


def _grouped(coordinates: CoordinateSet) -> tuple[Tensor, Tensor, Tensor]:
    from sdf_vqvae.sparse.backends import neighbors_triton

    bricks = coordinates.coords.clone()
    bricks[:, 1:] //= _BRICK
    with _on(coordinates.device):
        numbers = linear_keys(bricks, coordinates.side // _BRICK + 1)
        return neighbors_triton.grouped(neighbor_table(coordinates), numbers, _BLOCK)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
        feats, weight = feats.contiguous(), weight.contiguous()
        ctx.save_for_backward(feats, weight)
        ctx.coordinates = coordinates
        return _rows(feats, weight, bias, coordinates, mirrored=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # The neighbour relation is symmetric: row q sees p at offset k exactly if p sees q at 26 - k.
            grad_feats = _rows(grad_out, weight, None, ctx.coordinates, mirrored=True)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(feats, grad_out, weight, ctx.coordinates)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_out.sum(0)
        return grad_feats, grad_weight, grad_bias, None


def _rows(
    feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet, *, mirrored: bool
) -> Tensor:
    from sdf_vqvae.sparse.backends.convolution_triton import convolve_rows

    weight = weight.view(weight.shape[0], 27, -1)
    cin, cout = feats.shape[1], weight.shape[2] if mirrored else weight.shape[0]
    blocks = blocks_of_rows(cin, cout, feats.dtype)
    table, grouping = neighbor_table(coordinates), None
    if min(cin, cout) >= _GROUPED_CHANNELS and len(feats) >= _GROUPED_ROWS:
        order, table, taps = grouped(coordinates)
        grouping = order, taps
    precision = _precision(feats.dtype)
    with _on(feats.device):
        return convolve_rows(
            feats, weight, bias, table, grouping, mirrored=mirrored, precision=precision, blocks=blocks
        )


def _weight_gradient(feats: Tensor, grad_out: Tensor, weight: Tensor, coordinates: CoordinateSet) -> Tensor:
    from sdf_vqvae.sparse.backends.convolution_triton import weight_gradient

    cin, cout = feats.shape[1], grad_out.shape[1]
    blocks = blocks_of_weights(cin, cout, feats.dtype)
    tiles = -(-27 // blocks.taps) * -(-cin // blocks.inner) * -(-cout // blocks.out)
    parts = max(1, min(_PROGRAMS // tiles, _MOST_PARTS, len(feats) // (8 * blocks.rows)))
    with _on(feats.device):
        return weight_gradient(
            feats,
            grad_out,
            neighbor_table(coordinates),
            weight.dtype,
            parts=parts,
            precision=_precision(feats.dtype),
            blocks=blocks,
        ).view(weight.shape)


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one: Triton launches on that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _precision(dtype: torch.dtype) -> str:
    """Return how float32 is multiplied: in TF32 where PyTorch's own products are, else as three products in it."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "tf32x3"


def blocks_of_rows(cin: int, cout: int, dtype: torch.dtype) -> Blocks:
    """Return how features of `cin` channels are convolved to `cout`: the fastest on an H200."""
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks

    if dtype == torch.float32:
        return Blocks(rows=_BLOCK, out=_power(cout, 64), inner=_inner(cin, 32), warps=4, stages=1)
    out, inner = _power(cout, 128), _inner(cin, 64)
    if out == 128:
        return Blocks(rows=_BLOCK, out=out, inner=inner, warps=8, stages=2)
    return Blocks(rows=_BLOCK, out=out, inner=inner, warps=8 if out == 64 else 4, stages=3)


def blocks_of_weights(cin: int, cout: int, dtype: torch.dtype) -> Blocks:
    """Return how the gradient of a weight `[cout, 27, cin]` is computed: the fastest on an H200."""
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks

    if dtype == torch.float32:
        out, inner = _power(cout, 64), _inner(cin, 64)
        few = out <= 32
        taps = max(1, 128 // inner)
        return Blocks(rows=64 if few else 32, out=out, inner=inner, taps=taps, warps=4 if few else 8, stages=1)
    out, inner = _power(cout, 128), _inner(cin, 128)
    if inner >= 64:
        return Blocks(rows=64 if inner == 128 else 128, out=out, inner=inner, warps=4, stages=3)
    if inner == 32:
        taps = max(2, min(8, 256 // out))
        return Blocks(rows=128, out=out, inner=inner, taps=taps, warps=4, stages=1)
    return Blocks(rows=128, out=out, inner=inner, taps=4, warps=4, stages=3)


def _power(channels: int, largest: int) -> int:
    """Return the power of two that holds the channels, from 16 on (the least that a product takes)."""
    return max(16, min(largest, 1 << (channels - 1).bit_length()))


def _inner(channels: int, largest: int) -> int:
    """Return the largest power of two that divides the channels, if one from 16 on does, else as `_power`."""
    divisor = min(channels & -channels, largest)
    return divisor if divisor >= 16 else _power(channels, largest)
