"""Submanifold convolution in plain PyTorch: gather the 27 neighbours of a block of rows, one matrix product.

The reference that the other backends are compared with, and what runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdf_vqvae.sparse.coordinates import CoordinateSet

# Elements of the gathered block [rows, 27 * Cin]: small enough for a CPU cache, large enough to feed a GPU.
_CPU_BLOCK = 1 << 20
_CUDA_BLOCK = 1 << 27

Multiply = Callable[[Tensor, Tensor, "Tensor | None", Tensor], Tensor]
"""Rows `[N, C]`, a matrix `[27 C, C']`, a bias `[C']` and neighbours `[N, 27]` to the product of each row's 27
neighbours, side by side, with the matrix, and the bias: `[N, C']`."""


def unfit(device_type: str) -> str:
    """Return why it doesn't run on a kind of device: it runs on all."""
    return ""


def lacking() -> str:
    """Return what has to be installed before it runs: nothing."""
    return ""


def convolve(feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
    """Return `out[p] = bias + sum_k weight[:, k] @ feats[p + k - 1]` over the active neighbours. [N, Cout]"""
    return by_products(feats, weight, bias, coordinates, _gather_multiply)


def by_products(
    feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet, multiply: Multiply
) -> Tensor:
    """Return `convolve`, whose forward pass and gradient of the features are each one call of `multiply`."""
    return _Convolve.apply(feats, weight, bias, coordinates.neighbors(), multiply)


class _Convolve(torch.autograd.Function):
    """Recomputes the gathered blocks in the backward pass instead of keeping them (27 times the input)."""

    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor | None, neighbors: Tensor, multiply: Multiply
    ) -> Tensor:
        ctx.save_for_backward(feats, weight, neighbors)
        ctx.multiply = multiply
        return multiply(feats, _as_matrix(weight), bias, neighbors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, neighbors = ctx.saved_tensors
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # The neighbour relation is symmetric: row q sees p at offset k exactly if p sees q at 26 - k.
            mirrored = weight.flip(1, 2, 3).permute(4, 1, 2, 3, 0)  # [Cin, 3, 3, 3, Cout]
            grad_feats = ctx.multiply(grad_out, _as_matrix(mirrored), None, neighbors)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(feats, grad_out, weight, neighbors)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_out.sum(0)
        return grad_feats, grad_weight, grad_bias, None, None


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], -1).T  # [27 * Cin, Cout]


def _weight_gradient(feats: Tensor, grad_out: Tensor, weight: Tensor, neighbors: Tensor) -> Tensor:
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


def _gather_multiply(feats: Tensor, matrix: Tensor, bias: Tensor | None, neighbors: Tensor) -> Tensor:
    padded = _with_zero_row(feats)
    out = feats.new_empty((neighbors.shape[0], matrix.shape[1]))
    for rows in _blocks(neighbors, feats.shape[1]):
        torch.mm(_gather(padded, neighbors[rows]), matrix, out=out[rows])
    return out if bias is None else out + bias
