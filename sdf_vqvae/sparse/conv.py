"""Convolutions on sparse tensors and the choice of their backend.

One canonical weight layout, `[Cout, k, k, k, Cin]`, whichever backend runs.
"""

from __future__ import annotations

import logging
import math
import os
from functools import cache

import torch
from torch import Tensor, nn

from sdf_vqvae.sparse.backends.registry import BACKENDS
from sdf_vqvae.sparse.tensor import SparseTensor

logger = logging.getLogger(__name__)


def active_backend(device: torch.device | str) -> str:
    """Return the name of the backend for tensors on `device`.

    `SPARSE_BACKEND` chooses: one of `BACKENDS`, or `auto`, the default, for the fastest that runs there. A backend
    that cannot run is replaced by `torch`, with one warning.

    Raises:
        ValueError: `SPARSE_BACKEND` holds an unknown name.
    """
    wanted = os.environ.get("SPARSE_BACKEND", "auto").strip().lower() or "auto"
    if wanted not in {"auto", *BACKENDS}:
        *names, last = ["auto", *BACKENDS]
        raise ValueError(f"SPARSE_BACKEND={wanted!r} is unknown; choose {', '.join(names)} or {last}")
    for name in reversed(BACKENDS) if wanted == "auto" else (wanted,):
        unfit = BACKENDS[name].unfit(torch.device(device).type)
        lacking = "" if unfit else BACKENDS[name].lacking()
        if not (unfit or lacking):
            return name
        if lacking or wanted == name:
            _warn_once(lacking or f"SPARSE_BACKEND={name} {unfit}; using torch")
    return "torch"


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


class _Kernel(nn.Module):
    """Weight and bias of a convolution, in the layout and under the names that spconv gives them."""

    def __init__(self, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, size, size, size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))
        bound = 1 / math.sqrt(in_channels * size**3)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)


class SparseConv3d(nn.Module):
    """Submanifold convolution: the active voxels stay the same. Kernel size 1 or 3.

    `out[p] = bias + sum_k W[:, k] @ in[p + k - 1]` with the kernel axes in the order x, y, z.
    A kernel of size 1 is stored as `[Cout, 1, 1, 1, Cin]` but read as a `[Cin, Cout]` matrix, as spconv does;
    checkpoints trained with spconv need that reading.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size not in (1, 3):
            raise ValueError(f"kernel_size must be 1 or 3, got {kernel_size}")
        self.kernel_size = kernel_size
        self.conv = _Kernel(in_channels, out_channels, kernel_size)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve features `[N, Cin]` to `[N, Cout]` on the same voxels."""
        feats, weight, bias = _under_autocast(x.feats, self.conv.weight, self.conv.bias)
        if self.kernel_size == 1:
            return x.replace(feats @ weight.reshape(weight.shape[-1], weight.shape[0]) + bias)
        convolve = BACKENDS[active_backend(x.device)].convolve
        return x.replace(convolve(feats, weight, bias, x.coordinates))


def _under_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast to the autocast type where autocast is on, as PyTorch's own convolutions do; else to the weight's."""
    device_type = tensors[0].device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    else:
        dtype = tensors[1].dtype
    return tuple(t.to(dtype) for t in tensors)
