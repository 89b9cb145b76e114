"""Which objects are trained on and which are kept apart, and datasets that survive an object that cannot be read.

Knows datasets and ids; nothing of settings and of the loop.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
_MOST_HELD_OUT = 10
"""At most one object in so many is kept for validation."""


@dataclass(frozen=True, kw_only=True)
class AlignmentData:
    """What a run learns from and is validated on."""

    train: Dataset[Any]
    lengths: Sequence[float]
    """Length of every training item, for batches with little padding."""
    val: Dataset[Any] | None
    collate: Callable[[list[Any]], Batch]
    """Joins items to what the model's `forward` takes, or with a `codebook`, to what becomes it."""
    plain: bool = False
    """Whether texts without an object stand among the training items."""
    limited: Sequence[tuple[Sequence[int], int]] = ()
    """Groups of items of which an epoch takes at most so many each."""
    captioned: Dataset[Any] | None = None
    """The objects of `train` with captions alone, where the codes are cached: what the projector's first lesson is
    about."""
    names: Sequence[str] = ()
    """Ids of the objects of `train`, for whoever evaluates the run; of your own data, if they have any."""
    val_names: Sequence[str] = ()
    """Ids of the objects of `val`."""
    codebook: Tensor | None = None
    """`[K, D]`, where batches have `codes_3d` instead of their vectors."""


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


def held_out(names: Sequence[str], val_samples: int) -> list[int]:
    """Return which objects training keeps for validation: the same ones whatever the order of the table."""
    order = sorted(range(len(names)), key=lambda i: hashlib.blake2b(names[i].encode(), digest_size=8).digest())
    return sorted(order[: min(val_samples, len(names) // _MOST_HELD_OUT)])


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What is known of the objects that weights learned from."""

    train: frozenset[str] = frozenset()
    """Their ids."""
    val: frozenset[str] = frozenset()
    """Ids of those that were validated on: they chose which step's weights are the result."""
    source: str | None = None
    """Where that is known from; None where nothing is known."""
    val_samples: int = 256
    """See `AlignmentConfig`."""


UNKNOWN = Learned()
