"""Submanifold convolution on the CPU: blocks of rows that stay in a core's cache, a thread of its own for each core.

`torch_backend` with the gathers compiled by Numba, and without meeting points of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.sparse.backends import torch_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.utils.threads import CACHED, has_numba, in_threads


def unfit(device_type: str) -> str:
    """Return why it doesn't run on a kind of device; empty if it does."""
    return "" if device_type == "cpu" else "runs on the CPU only"


def lacking() -> str:
    """Return, in a sentence, what has to be installed before it runs; empty if nothing."""
    return "" if has_numba() else "Numba is not installed, using slower convolutions: pip install numba"


def convolve(feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
    """Return `out[p] = bias + sum_k weight[:, k] @ feats[p + k - 1]` over the active neighbours. [N, Cout]"""
    if feats.dtype != torch.float32:
        return torch_backend.convolve(feats, weight, bias, coordinates)
    return torch_backend.by_products(feats, weight, bias, coordinates, _gather_multiply)


def _gather_multiply(feats: Tensor, matrix: Tensor, bias: Tensor | None, neighbors: Tensor) -> Tensor:
    """See `torch_backend.Multiply`."""
    from sdf_vqvae.sparse.loops_numba import gather

    feats, matrix = feats.detach().contiguous(), matrix.detach().contiguous()
    count, width = len(feats), len(matrix)
    rows = max(64, CACHED // width)
    out = feats.new_empty(count, matrix.shape[1])
    given, table = feats.numpy(), neighbors.numpy()

    def work(start: int, stop: int) -> None:
        with torch.inference_mode():
            gathered = torch.empty(rows, width)
            buffer = gathered.numpy()
            for begin in range(start * rows, min(stop * rows, count), rows):
                end = min(begin + rows, count)
                gather(given, table, begin, end, buffer)
                if bias is None:
                    torch.mm(gathered[: end - begin], matrix, out=out[begin:end])
                else:
                    torch.addmm(bias, gathered[: end - begin], matrix, out=out[begin:end])

    in_threads(work, -(-count // rows), calls_torch=True)
    return out
