"""Which objects are trained on, which are kept apart, and what is known of them afterwards. Knows ids alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

TRAIN, VAL = "train", "val"
"""What a table's column `split` calls them."""
_MOST_HELD_OUT = 10
"""At most one object in so many is kept for validation."""


def held_out(names: Sequence[str], val_samples: int) -> list[int]:
    """Return which objects training keeps for validation: the same ones whatever the order of the table."""
    order = sorted(range(len(names)), key=lambda i: hashlib.blake2b(names[i].encode(), digest_size=8).digest())
    return sorted(order[: min(val_samples, len(names) // _MOST_HELD_OUT)])


def divided(names: Sequence[str], val_samples: int) -> tuple[list[int], list[int]]:
    """Return which objects are trained on, and which are kept for validation (`held_out`)."""
    held = held_out(names, val_samples)
    return sorted(set(range(len(names))) - set(held)), held


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
