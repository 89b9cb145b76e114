"""Keys and values of many chats, each in a slot as long as it is, and those of chats that ended, by their beginning.

Transformers' caches pad a batch to its longest row and copy all of it at every step. Here a chat's keys lie in its
own slot of one buffer a layer; what is appended is written in place, and a slot is free again when its chat ends.
Knows tensors; knows nothing of text or shapes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

Identity = npt.NDArray[np.int64]
"""What stands at each place of a sequence, `[S]`: equal beginnings have equal keys and values."""
_STEP = 256
"""Buffers grow by multiples of so many places."""


@dataclass
class _Aim:
    """The slots and places that the next forward pass writes and reads."""

    first: int = 0
    last: int = 0
    places: Tensor | None = None
    """int64 `[rows, Q]`: where each row's new keys go."""
    longest: int = 0
    """How many places of a slot are read."""


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer: `[slots, heads, places, width]`."""

    is_sliding = False

    def __init__(self, aim: _Aim) -> None:
        super().__init__()
        self.aim = aim

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take over dtype, device and widths."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((0, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_empty((0, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values `[rows, heads, Q, width]` at their places; return all of those rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        aim = self.aim
        assert aim.places is not None
        self.keys = _room(self.keys, aim.last, aim.longest)
        self.values = _room(self.values, aim.last, aim.longest)
        rows = torch.arange(aim.first, aim.last, device=self.keys.device)[:, None]
        self.keys[rows, :, aim.places] = key_states.transpose(1, 2)
        self.values[rows, :, aim.places] = value_states.transpose(1, 2)
        part = slice(aim.first, aim.last), slice(None), slice(aim.longest)
        return self.keys[part], self.values[part]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many places are read, and where they begin."""
        return self.aim.longest, 0

    def get_seq_length(self) -> int:
        """Return how many places are read; rows have lengths of their own."""
        return self.aim.longest

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


def _room(buffer: Tensor, slots: int, places: int) -> Tensor:
    """Return a buffer that has so many slots and places, with what was in it."""
    have_slots, heads, have_places, width = buffer.shape
    if slots <= have_slots and places <= have_places:
        return buffer
    wider = max(have_places, -(-places // _STEP) * _STEP)
    more = max(slots, 2 * have_slots) if slots > have_slots else have_slots
    # Zeros: what a mask hides is multiplied by 0, and memory as it comes may hold NaN.
    grown = buffer.new_zeros((more, heads, wider, width))
    grown[:have_slots, :, :have_places] = buffer
    return grown


class SlotCache(Cache):
    """A cache whose rows are slots of different lengths.

    Args:
        layers: number of layers of the text model.
    """

    def __init__(self, layers: int) -> None:
        self.aim = _Aim()
        super().__init__(layers=[_SlotLayer(self.aim) for _ in range(layers)])

    def aim_at(self, first: int, starts: Tensor, count: int) -> Tensor:
        """Say where the next forward pass writes, and return its attention mask.

        Args:
            first: first of the consecutive slots.
            starts: int64 `[rows]`, places that each of them has filled already.
            count: new places Q of each row; what a shorter row gets behind its end is overwritten later.

        Returns:
            bool `[rows, 1, Q, longest]`, True where a new place may look.
        """
        aim = self.aim
        aim.first, aim.last = first, first + len(starts)
        aim.places = starts[:, None] + torch.arange(count, device=starts.device)
        aim.longest = int(starts.max()) + count
        return torch.arange(aim.longest, device=starts.device) <= aim.places[:, None, :, None]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of a slot into another."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[target, :, :length] = buffer[source, :, :length]

    def take(self, slot: int, length: int) -> list[Tensor]:
        """Return copies of a slot's first `length` places: keys and values of each layer, `[2, heads, S, width]`."""
        return [torch.stack([layer.keys[slot, :, :length], layer.values[slot, :, :length]]) for layer in self.layers]

    def put(self, slot: int, parts: list[Tensor], length: int) -> None:
        """Write the first `length` places of what `take` gave into a slot."""
        for layer, part in zip(self.layers, parts, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(part[:1], part[1:])
            layer.keys, layer.values = _room(layer.keys, slot + 1, length), _room(layer.values, slot + 1, length)
            layer.keys[slot, :, :length], layer.values[slot, :, :length] = part[:, :, :length]


class PrefixStore:
    """Keys and values of sequences that ended, for sequences that begin alike: a chat's next turn, another question.

    Args:
        most: places that are kept in all; the longest unused sequences go first. 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._entries: OrderedDict[int, tuple[Identity, list[Tensor]]] = OrderedDict()
        self._next = 0

    def longest_match(self, identity: Identity) -> tuple[int, list[Tensor]]:
        """Return how many of a sequence's first places are kept (never its last one), with keys and values."""
        best, at = 0, -1
        for number, (kept, _) in self._entries.items():
            width = min(len(kept), len(identity) - 1)
            unlike = np.flatnonzero(kept[:width] != identity[:width])
            same = int(unlike[0]) if len(unlike) else width
            if same > best:
                best, at = same, number
        if at < 0:
            return 0, []
        self._entries.move_to_end(at)
        return best, self._entries[at][1]

    def keep(self, identity: Identity, parts: list[Tensor]) -> None:
        """Keep a sequence; sequences that it continues go."""
        if len(identity) > self.most:
            return
        for number, (kept, _) in list(self._entries.items()):
            if len(kept) <= len(identity) and np.array_equal(kept, identity[: len(kept)]):
                self._drop(number)
        self._entries[self._next] = identity, parts
        self._next += 1
        self.held += len(identity)
        while self.held > self.most:
            self._drop(next(iter(self._entries)))

    def _drop(self, number: int) -> None:
        self.held -= len(self._entries.pop(number)[0])
