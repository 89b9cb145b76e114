"""How the items of a dataset come to a run: in which order, by which processes, and around what can't be read.

Knows lengths, texts and any dataset of items; nothing of what is in them. A global batch is what all processes work
on in one pass; with its size unchanged, one process or many see the same objects in the same order.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, Subset

from sdf_vqvae.utils.reading import reading_processes
from vae_qwen3vl.data.texts import Text

logger = logging.getLogger(__name__)

_WINDOW = 32
"""Global batches that are sorted by length together: short enough that an epoch stays shuffled."""
_READ_ONCE = ["vae_qwen3vl.data.collate", "vae_qwen3vl.data.datasets_3d", "vae_qwen3vl.data.plain_text"]
"""Modules that every process that reads data needs."""


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


class Tolerant(Dataset[Any]):
    """The items of a dataset; in place of one that can't be read, the next one that can.

    So every process always has a whole batch, and none waits for another. What was left out is logged once, and
    is in `left_out` of the process that read it.

    Args:
        dataset: may raise a ValueError or OSError for an item.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.left_out: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Pass on to the dataset."""
        inner = self.dataset.dataset if isinstance(self.dataset, Subset) else self.dataset
        if hasattr(inner, "set_epoch"):
            inner.set_epoch(epoch)

    def __getitem__(self, number: int) -> Any:
        """Return an item. Raises a ValueError where none can be read."""
        for offset in range(len(self)):
            place = (number + offset) % len(self)
            try:
                return self.dataset[place]
            except (ValueError, OSError) as error:
                if place not in self.left_out:
                    logger.warning("item %d is left out: %s", place, error)
                self.left_out[place] = str(error)
        raise ValueError(f"none of {len(self)} objects can be read: {next(iter(self.left_out.values()))}")


class SharedEpoch:
    """An epoch's number in shared memory, so that worker processes that live through a run hear of the next one."""

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.long).share_memory_()

    def __int__(self) -> int:
        return int(self._number)

    def set(self, epoch: int) -> None:
        """Begin an epoch."""
        self._number.fill_(epoch)


class SharedTexts:
    """The texts of many objects in one block of memory that all processes share.

    As Python objects they would be copied into every worker, one worker after another: seconds each for 200,000.
    """

    def __init__(self, texts: Mapping[str, Sequence[Text]]) -> None:
        pieces = [
            json.dumps(
                [[text.answer, text.conversation, text.kind] for text in of_object], ensure_ascii=False
            ).encode()
            for of_object in texts.values()
        ]
        self._places = {name: number for number, name in enumerate(texts)}
        self._ends = torch.tensor([0, *map(len, pieces)]).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)

    def __getitem__(self, name: str) -> list[Text]:
        """Return the texts of an object."""
        place = self._places[name]
        block = self._bytes[self._ends[place] : self._ends[place + 1]].numpy().tobytes()
        return [
            Text(answer=answer, conversation=None if turns is None else tuple(turns), kind=kind)
            for answer, turns, kind in json.loads(block)
        ]


def worker_options(count: int) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` that reads items in so many processes (`reading_processes`)."""
    return reading_processes(count, _READ_ONCE)
