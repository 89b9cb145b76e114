"""Submanifold convolution in plain PyTorch: gather the 27 neighbours of a block of rows, one matrix product.

The reference that the other backends are compared with, and what runs everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdf_vqvae.sparse.coordinates import CoordinateSet

# Elements of the gathered block [rows, 27 * Cin]: small enough for a CPU cache, large enough to feed a GPU.
_CPU_BLOCK = 1 << 20
_CUDA_BLOCK = 1 << 27


def unfit(device_type: str) -> str:
    """Return why it doesn't run on a kind of device: it runs on all."""
    return ""


def lacking() -> str:
    """Return what has to be installed before it runs: nothing."""
    return ""


def convolve(feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
    """Return `out[p] = bias + sum_k weight[:, k] @ feats[p + k - 1]` over the active neighbours. [N, Cout]"""
    out = _Convolve.apply(feats, weight, coordinates.neighbors())
    return out if bias is None else out + bias


class _Convolve(torch.autograd.Function):
    """Recomputes the gathered blocks in the backward pass instead of keeping them (27 times the input)."""

    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, neighbors: Tensor) -> Tensor:
        ctx.save_for_backward(feats, weight, neighbors)
        return _gather_multiply(feats, as_matrix(weight), neighbors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight, neighbors = ctx.saved_tensors
        grad_feats = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_feats = _gather_multiply(grad_out, mirrored_matrix(weight), neighbors)
        if ctx.needs_input_grad[1]:
            grad_weight = weight_gradient(feats, grad_out, weight, neighbors)
        return grad_feats, grad_weight, None


def as_matrix(weight: Tensor) -> Tensor:
    """Return what the 27 neighbours of a row, side by side, are multiplied with. `[27 * Cin, Cout]`"""
    return weight.reshape(weight.shape[0], -1).T


def mirrored_matrix(weight: Tensor) -> Tensor:
    """Return what 27 gradients are multiplied with: the neighbour relation is symmetric. `[27 * Cout, Cin]`

    Row q sees p at offset k exactly if p sees q at 26 - k.
    """
    return as_matrix(weight.flip(1, 2, 3).permute(4, 1, 2, 3, 0))


def weight_gradient(feats: Tensor, grad_out: Tensor, weight: Tensor, neighbors: Tensor) -> Tensor:
    """Return the gradient of `weight`, summed in float32 at least."""
    cout, cin = weight.shape[0], weight.shape[-1]
    total = feats.new_zeros((27 * cin, cout), dtype=torch.promote_types(feats.dtype, torch.float32))
    padded = _with_zero_row(feats)
    for rows in _blocks(neighbors, cin):
        gathered = _gather(padded, neighbors[rows])
        total += (gathered.T @ grad_out[rows]).to(total.dtype)
    return total.T.reshape(weight.shape).to(weight.dtype)


def _with_zero_row(feats: Tensor) -> Tensor:
    """Append a row of zeros; index -1 then reads it."""
    return torch.cat([feats, feats.new_zeros(1, feats.shape[1])])


def _gather(padded: Tensor, neighbors: Tensor) -> Tensor:
    rows = neighbors.reshape(-1)
    last = padded.shape[0] - 1
    rows = torch.where(rows < 0, last, rows)
    return padded.index_select(0, rows).view(neighbors.shape[0], -1)  # [n, 27 * Cin]


def _blocks(neighbors: Tensor, channels: int) -> list[slice]:
    budget = _CUDA_BLOCK if neighbors.is_cuda else _CPU_BLOCK
    step = max(1, budget // (27 * channels))
    return [slice(start, start + step) for start in range(0, neighbors.shape[0], step)]


def _gather_multiply(feats: Tensor, matrix: Tensor, neighbors: Tensor) -> Tensor:
    padded = _with_zero_row(feats)
    out = feats.new_empty((neighbors.shape[0], matrix.shape[1]))
    for rows in _blocks(neighbors, feats.shape[1]):
        torch.mm(_gather(padded, neighbors[rows]), matrix, out=out[rows])
    return out
