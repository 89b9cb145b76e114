"""Adapters at work in some rows of a batch alone: a chat without an object is the untouched model's.

Adapters that were added into the weights (`AdaptedLinear` has the weights from before beside them) and those that
peft keeps apart. Knows linear maps; knows nothing of 3D.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rows = bool | Tensor
"""All rows, none, or bool `[B]`."""


class _AtWork(threading.local):
    rows: Rows = True


_at_work = _AtWork()
"""Of each thread, for a server's engine and other callers share a model."""


class AdaptedLinear(nn.Linear):
    """A linear map with an adapter added into its weight.

    Args:
        before: the map, without the adapter. Its weight is kept as it is, but is no part of the state.
        weight: with the adapter, `[out, in]`.
    """

    untouched: Tensor

    def __init__(self, before: nn.Linear, weight: Tensor) -> None:
        super().__init__(before.in_features, before.out_features, bias=before.bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=before.weight.requires_grad)
        self.bias = before.bias
        self.register_buffer("untouched", before.weight.detach(), persistent=False)
        self.train(before.training)

    def forward(self, x: Tensor) -> Tensor:  # [B, ..., in] -> [B, ..., out]
        """Map each row with or without the adapter, as `adapters_in` says."""
        rows = _at_work.rows
        if rows is True:
            return F.linear(x, self.weight, self.bias)
        without = F.linear(x, self.untouched, self.bias)
        if rows is False:
            return without
        return torch.where(_beside(rows, x), F.linear(x, self.weight, self.bias), without)


def can_be_left_out(vl_model: nn.Module) -> bool:
    """Return whether a model has adapters that `adapters_in` can leave out."""
    return hasattr(vl_model, "peft_config") or any(isinstance(m, AdaptedLinear) for m in vl_model.modules())


@contextlib.contextmanager
def adapters_in(vl_model: nn.Module, rows: Rows) -> Iterator[None]:
    """Within this, in this thread, adapters change the given rows of a batch alone; the others are as without them.

    What peft keeps apart is left out where it is plain LoRA. Adapters that were added into the weights and whose
    weights from before were not kept (`adapters.load_merged`) stay.

    Args:
        vl_model: the language model, with adapters or without.
        rows: of the batch; each may stand for several beams or samples.
    """
    if isinstance(rows, Tensor) and rows.device.type == "cpu":  # elsewhere it would wait for the device
        alike = bool((rows == rows[0]).all())
        rows = bool(rows[0]) if alike else rows.to(next(vl_model.parameters()).device)
    before, _at_work.rows = _at_work.rows, rows
    hooks = []
    try:
        if rows is not True and hasattr(vl_model, "peft_config"):
            kept = [layer for module in vl_model.modules() for layer in _second_maps(module)]
            hooks = [layer.register_forward_hook(_leave_out) for layer in kept]
        yield
    finally:
        _at_work.rows = before
        for hook in hooks:
            hook.remove()


def _second_maps(module: Any) -> Any:
    """Return the last maps, whose outputs are added, of the adapters that peft has put around a module."""
    return module.lora_B.values() if hasattr(module, "lora_B") else ()


def _leave_out(_: nn.Module, given: tuple[Any, ...], added: Tensor) -> Tensor:
    rows = _at_work.rows
    return added * (_beside(rows, added) if isinstance(rows, Tensor) else rows)


def _beside(rows: Tensor, x: Tensor) -> Tensor:  # [B, 1, ...]
    """Return rows as they stand beside `x`, whose rows may be several beams of each."""
    rows = rows.to(x.device)
    if len(rows) != len(x):
        rows = rows.repeat_interleave(len(x) // len(rows))
    return rows.view(-1, *[1] * (x.ndim - 1))
