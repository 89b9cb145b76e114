"""Texts about no object among the objects of a training run, so that adapters leave other skills as they are.

Knows texts and any dataset of objects; nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Dataset

from vae_qwen3vl.data.loading import SharedEpoch
from vae_qwen3vl.data.texts import Text, pick

_CHARACTERS_A_TOKEN = 4
"""About; batches of similar length need no more."""


class WithPlainText(Dataset[Any]):
    """A dataset of objects, and behind its items places for texts: so many that they are a share of all items.

    Each epoch (`set_epoch`) draws anew which texts stand there, the same ones for the same seed and epoch: none twice
    before every one of them stood there once. The places hold the drawn texts by length, so that the length of a
    place is known beforehand. A text's item has `caption` (the answer) and `conversation` (the turns before it).

    Args:
        objects: the objects; its `set_epoch`, if there is one, is called too.
        lengths: of the objects, in 3D tokens, or in voxels, next to which texts are short as well.
        texts: each with a conversation.
        share: of texts among all items, 0 to 1. At 1 the items are all the texts, and no objects.
        seed: of the draws.
        beside: objects of an epoch, where it does not take all.

    Raises:
        ValueError: there are no texts, or one lacks its conversation.
    """

    def __init__(
        self,
        objects: Dataset[Any],
        lengths: Sequence[float],
        texts: Sequence[Text],
        share: float,
        *,
        seed: int = 0,
        beside: int | None = None,
    ) -> None:
        if not texts or any(text.conversation is None for text in texts):
            raise ValueError("plain text needs at least one text, each with a conversation before the answer")
        self.objects = objects
        self.texts = sorted(texts, key=_length)
        self.seed = seed
        self.count = 0 if share >= 1 else len(lengths)
        """Items that are objects; they come first."""
        taken = self.count if beside is None else beside
        self.places = len(texts) if share >= 1 else round(taken * share / (1 - share))
        """Items that are texts."""
        self.lengths = [*lengths[: self.count], *(_length(self.texts[i]) for i in self._spread())]
        """Expected length of every item."""
        self._epoch = SharedEpoch()

    def __len__(self) -> int:
        return self.count + self.places

    def set_epoch(self, epoch: int) -> None:
        """Draw texts anew, and pass on to the objects."""
        self._epoch.set(epoch)
        if hasattr(self.objects, "set_epoch"):
            self.objects.set_epoch(epoch)

    def __getitem__(self, number: int) -> Any:
        """Return an item."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number < self.count:
            return self.objects[number]
        drawn = draw(len(self.texts), self.places, self.seed, int(self._epoch))
        text = self.texts[drawn[number - self.count]]
        assert text.conversation is not None
        return {"caption": text.answer, "conversation": [dict(turn) for turn in text.conversation]}

    def _spread(self) -> list[int]:
        """Return a text of typical length for each place."""
        return [int((place + 0.5) * len(self.texts) / self.places) for place in range(self.places)]


@lru_cache(maxsize=2)
def draw(texts: int, places: int, seed: int, epoch: int) -> list[int]:
    """Return which of the texts stand in the places, ascending; none occurs twice more often than another."""
    generator = torch.Generator().manual_seed(pick(seed, epoch, "plain text") % 2**63)
    orders = [torch.randperm(texts, generator=generator) for _ in range(-(-places // texts))]
    return sorted(torch.cat(orders)[:places].tolist()) if orders else []


def _length(text: Text) -> float:
    turns = [turn["content"] for turn in text.conversation or ()]
    return sum(map(len, [*turns, text.answer])) / _CHARACTERS_A_TOKEN
