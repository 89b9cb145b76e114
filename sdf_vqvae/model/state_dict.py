"""Tensors of a checkpoint file, read without ever unpickling objects, under the names and in the layouts used here.

Three layouts exist of the same architecture: ours, which is spconv's; torchsparse's, with other names and another
order of the kernels; and either of them with a prefix that a wrapper left on every name. Knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.utils.archives import read_safetensors, read_torch_file

_WRAPPERS = ("state_dict", "vae")
_PREFIXES = ("module.", "_orig_mod.", "vqvae.", "vae.", "model.")
_KERNEL = ".kernel"
_SIDE = 3
_SCALE = ".int8_scale"
_LARGEST = 127


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A tensor that stands under another name, or in another layout, than in its file."""

    file_name: str
    file_shape: tuple[int, ...]
    name: str
    shape: tuple[int, ...]
    how: str


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, unwrapped from `state_dict` or `vae`, under the names of the file.

    Raises:
        ValueError: the file is missing, damaged, or holds anything but tensors.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return from_int8(read_safetensors(path, "checkpoint")[0])
    content: Any = read_torch_file(path, "checkpoint")
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} holds no state dict (a mapping from names to tensors)")
    return {str(name): tensor for name, tensor in content.items()}


def to_int8(state: Mapping[str, Tensor], keep: Sequence[str] = ()) -> dict[str, Tensor]:
    """Return weights with at least two axes as int8 with one float16 scale a row, everything else as float16.

    The row of output channel c is `scale[c] * int8[c]`, scaled so that its largest value is 127; `X.int8_scale` holds
    the scales of `X`.

    Args:
        state: tensors under our names.
        keep: names that stay float16 whatever their shape.
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or name in keep:
            packed[name] = tensor.half() if tensor.is_floating_point() else tensor
            continue
        rows = tensor.float().flatten(1)
        scale = (rows.abs().amax(1) / _LARGEST).clamp(min=2.0**-14).half()  # the least normal number of float16
        packed[name] = (
            (rows / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8).view_as(tensor)
        )
        packed[name + _SCALE] = scale
    return packed


def from_int8(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert `to_int8`, in float32; other tensors stay as they are.

    Raises:
        ValueError: an int8 weight without scales, or scales that don't fit.
    """
    unpacked: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_SCALE) and state.get(name.removesuffix(_SCALE), tensor).dtype == torch.int8:
            continue
        if tensor.dtype != torch.int8:
            unpacked[name] = tensor
            continue
        scale = state.get(name + _SCALE)
        if scale is None or tensor.ndim == 0 or scale.shape != tensor.shape[:1]:
            raise ValueError(f"{name} is int8, but {name + _SCALE} does not hold one scale for each of its rows")
        unpacked[name] = tensor.float() * scale.float().view(-1, *[1] * (tensor.ndim - 1))
    return unpacked


def to_canonical(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[Renamed]]:
    """Return the tensors under our names and in our layouts, and what had to change.

    torchsparse keeps a kernel of side 3 as `X.kernel [27, Cin, Cout]` with x fastest (number i is the offset
    `(i % 3 - 1, i // 3 % 3 - 1, i // 9 - 1)`), a kernel of side 1 as `[Cin, Cout]`, and here they are `X.weight
    [Cout, 3, 3, 3, Cin]` with axes (x, y, z), and `[Cout, 1, 1, 1, Cin]` whose memory is read as `[Cin, Cout]`.

    Raises:
        ValueError: a kernel of another shape, or two tensors for one name.
    """
    prefix = next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), "")
    canonical: dict[str, Tensor] = {}
    renamed = []
    for file_name, tensor in state.items():
        name, value, how = file_name.removeprefix(prefix), tensor, "prefix" if prefix else ""
        if name.endswith(_KERNEL):
            name, value, how = (
                name.removesuffix(_KERNEL) + ".weight",
                _from_torchsparse(file_name, tensor),
                "torchsparse",
            )
        if name in canonical:
            raise ValueError(f"the checkpoint holds {name} twice, once as {file_name}")
        canonical[name] = value
        if how:
            renamed.append(
                Renamed(
                    file_name=file_name,
                    file_shape=tuple(tensor.shape),
                    name=name,
                    shape=tuple(value.shape),
                    how=how,
                )
            )
    return canonical, renamed


def to_torchsparse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our tensors as torchsparse names and lays them out (the inverse of `to_canonical`)."""
    renamed = {}
    for name, tensor in state.items():
        if tensor.ndim != 5:
            renamed[name] = tensor
            continue
        out_channels, side, *_, in_channels = tensor.shape
        if side == 1:
            kernel = tensor.contiguous().view(in_channels, out_channels)
        else:
            kernel = tensor.permute(3, 2, 1, 4, 0).reshape(side**3, in_channels, out_channels)
        renamed[name.removesuffix(".weight") + _KERNEL] = kernel.contiguous()
    return renamed


def _from_torchsparse(name: str, kernel: Tensor) -> Tensor:
    """Return `[Cout, k, k, k, Cin]` for torchsparse's `[k^3, Cin, Cout]` or `[Cin, Cout]`."""
    if kernel.ndim == 3 and kernel.shape[0] == 1:
        kernel = kernel[0]
    if kernel.ndim == 2:
        in_channels, out_channels = kernel.shape
        return kernel.contiguous().view(out_channels, 1, 1, 1, in_channels)
    if kernel.ndim != 3 or kernel.shape[0] != _SIDE**3:
        raise ValueError(f"{name} has the shape {list(kernel.shape)}; a kernel has [27, Cin, Cout] or [Cin, Cout]")
    _, in_channels, out_channels = kernel.shape
    by_axis = kernel.view(_SIDE, _SIDE, _SIDE, in_channels, out_channels)  # [z, y, x, Cin, Cout]
    return by_axis.permute(4, 2, 1, 0, 3).contiguous()
