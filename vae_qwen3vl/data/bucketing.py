"""Which objects make which batch: shuffled, of similar length, the same for every number of processes.

Knows lengths only. A global batch is what all processes work on in one pass; with its size unchanged, one process
or many see the same objects in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

_WINDOW = 32
"""Global batches that are sorted by length together: short enough that an epoch stays shuffled."""


class BucketSampler(Sampler[list[int]]):
    """Batches of one process: item numbers, `batch_size` a batch.

    Every item occurs once an epoch, of a limited group so many, in turn; the last global batch is filled up from the
    epoch's beginning, so that no process runs out before the others.

    Args:
        lengths: length of every item, in any unit.
        batch_size: items a batch and process.
        seed: of the order.
        rank: this process.
        world_size: number of processes.
        limited: groups of item numbers, each with how many of them an epoch takes at most.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        limited: Sequence[tuple[Sequence[int], int]] = (),
    ) -> None:
        if not lengths:
            raise ValueError("there is nothing to make batches of")
        if not 0 <= rank < world_size or batch_size < 1:
            raise ValueError(f"process {rank} of {world_size} with batches of {batch_size} items")
        self.lengths = torch.as_tensor(lengths, dtype=torch.float64)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.limited = [(torch.as_tensor(group), most) for group, most in limited if most < len(group)]
        self.items = items_of_an_epoch(len(self.lengths), limited)
        """Items of an epoch."""
        if not self.items:
            raise ValueError("the limits leave nothing to make batches of")
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-self.items // (self.batch_size * self.world_size))

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch's order, and how many of its batches are left out because they are done."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[int]]:
        """Yield what is left of the epoch."""
        size = self.batch_size * self.world_size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = self._chosen()[torch.randperm(self.items, generator=generator)]
        missing = len(self) * size - len(order)
        order = torch.cat([order, order.repeat(-(-missing // len(order)))[:missing]])
        batches = []
        for window in order.split(size * _WINDOW):
            batches += list(window[self.lengths[window].argsort(stable=True)].split(size))
        for number in torch.randperm(len(batches), generator=generator).tolist()[self.start :]:
            yield batches[number][self.rank :: self.world_size].tolist()

    def _chosen(self) -> Tensor:  # [items]
        """Return the items of the epoch: limited groups walk through an order of their own."""
        left = torch.ones(len(self.lengths), dtype=torch.bool)
        for group, most in self.limited:
            order = group[torch.randperm(len(group), generator=torch.Generator().manual_seed(self.seed))]
            left[group] = False
            left[order[(self.epoch * most + torch.arange(most)) % len(group)]] = True
        return left.nonzero().flatten()


def items_of_an_epoch(count: int, limited: Sequence[tuple[Sequence[int], int]]) -> int:
    """Return how many of `count` items an epoch takes where groups of them are limited (see `BucketSampler`)."""
    return count - sum(max(0, len(group) - most) for group, most in limited)
