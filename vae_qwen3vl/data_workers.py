"""Processes that read data: how they start, and how those that live through a run hear of its epochs."""

from __future__ import annotations

import multiprocessing
from typing import Any

import torch

_READ_ONCE = ["vae_qwen3vl.align_data"]


class SharedEpoch:
    """An epoch's number in shared memory, so that worker processes that live through a run hear of the next one."""

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.long).share_memory_()

    def __int__(self) -> int:
        return int(self._number)

    def set(self, epoch: int) -> None:
        """Begin an epoch."""
        self._number.fill_(epoch)


def worker_options(count: int) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` with so many worker processes that live as long as it does.

    They are forked from a server without CUDA or threads, which imports PyTorch once for all of them and for later
    loaders of the same program: spawned one by one, each took seconds.
    """
    if not count:
        return {"num_workers": 0}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_READ_ONCE)
    return {"num_workers": count, "multiprocessing_context": context, "persistent_workers": True}
