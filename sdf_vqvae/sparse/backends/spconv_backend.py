"""Submanifold convolution through spconv's functional interface: `spconv-triton` or an installed `spconv`.

CUDA only: spconv's CPU convolution races with more than one thread and returns wrong numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.sparse.coordinates import CoordinateSet

_PACKAGES = ("spconv_triton", "spconv")


def installed_package() -> str | None:
    """Return the name of the first spconv package that is installed, without importing it."""
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is not None:
            return name
    return None


def unfit(device_type: str) -> str:
    """Return why it doesn't run on a kind of device; empty if it does."""
    return "" if device_type == "cuda" else "runs on CUDA only (its CPU kernels are wrong)"


def lacking() -> str:
    """Return, in a sentence, what has to be installed before it runs; empty if nothing."""
    if installed_package() is not None:
        return ""
    return "no spconv package is installed, using the slower torch backend: pip install spconv-triton"


def convolve(feats: Tensor, weight: Tensor, bias: Tensor | None, coordinates: CoordinateSet) -> Tensor:
    """Return `out[p] = bias + sum_k weight[:, k] @ feats[p + k - 1]` over the active neighbours. [N, Cout]"""
    package = installed_package()
    if package is None:
        raise ImportError("the spconv backend needs spconv-triton: pip install spconv-triton")
    functional = importlib.import_module(f"{package}.pytorch.functional")
    pairs = coordinates.derived(("spconv pairs", package), lambda: _pairs(package, coordinates))
    # Under autocast the library casts to float16 whatever the autocast type is, so it must not see it.
    with torch.autocast("cuda", enabled=False):
        out = functional.implicit_gemm(
            feats.contiguous(), weight.contiguous(), *pairs[2:8], len(coordinates), pairs[8], True, True
        )
    return out if bias is None else out + bias


def _pairs(package: str, coordinates: CoordinateSet) -> Any:
    """Build the library's neighbour pairs of a coordinate set (both directions, sorted by pattern)."""
    ops: ModuleType = importlib.import_module(f"{package}.pytorch.ops")
    algorithm = importlib.import_module(f"{package}.core").ConvAlgo.MaskImplicitGemm
    kernel, ones, zeros = [3, 3, 3], [1, 1, 1], [0, 0, 0]
    return ops.get_indice_pairs_implicit_gemm(
        coordinates.coords,
        coordinates.batch_size,
        [coordinates.side] * 3,
        algorithm,
        ksize=kernel,
        stride=ones,
        padding=ones,
        dilation=ones,
        out_padding=zeros,
        subm=True,
        transpose=False,
        is_train=True,
    )
