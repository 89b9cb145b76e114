"""The number of an epoch where every process that reads data sees it."""

from __future__ import annotations

import torch


class SharedEpoch:
    """An epoch's number in shared memory, so that worker processes that live through a run hear of the next one."""

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.long).share_memory_()

    def __int__(self) -> int:
        return int(self._number)

    def set(self, epoch: int) -> None:
        """Begin an epoch."""
        self._number.fill_(epoch)
