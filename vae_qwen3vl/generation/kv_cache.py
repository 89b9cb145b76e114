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


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()


def same_beginning(sequence: Identity, other: Identity) -> int:
    """Return how many of a sequence's first places another one has too, never counting the sequence's last one."""
    width = min(len(other), len(sequence) - 1)
    unlike = np.flatnonzero(other[:width] != sequence[:width])
    return int(unlike[0]) if len(unlike) else width


@dataclass
class _Aim:
    """The slots and places that the next forward pass writes and reads, and how many there is room for."""

    rows: Tensor | None = None
    """int64 `[rows, 1]`: the slots."""
    part: slice | Tensor | None = None
    """They too, as they are read: one behind the other, or int64 `[rows]`, which a graph can be told anew."""
    places: Tensor | None = None
    """int64 `[rows, Q]`: where each row's new keys go."""
    longest: int = 0
    """How many places of a slot are read."""
    all_slots: int = 0
    all_places: int = 0


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
        self.make_room()

    def make_room(self) -> None:
        """Have as many slots and places as there is to be room for."""
        if self.is_initialized:
            self.keys, self.values = _grown(self.keys, self.aim), _grown(self.values, self.aim)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values `[rows, heads, Q, width]` at their places; return all of those rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        aim = self.aim
        self.keys[aim.rows, :, aim.places] = key_states.transpose(1, 2)
        self.values[aim.rows, :, aim.places] = value_states.transpose(1, 2)
        return self.keys[aim.part, :, : aim.longest], self.values[aim.part, :, : aim.longest]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many places are read, and where they begin."""
        return self.aim.longest, 0

    def get_seq_length(self) -> int:
        """Return how many places are read; rows have lengths of their own."""
        return self.aim.longest

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1


def _grown(buffer: Tensor, aim: _Aim) -> Tensor:
    """Return a buffer with room, and what was in it."""
    slots, heads, places, width = buffer.shape
    # Zeros: what a mask hides is multiplied by 0, and memory as it comes may hold NaN.
    grown = buffer.new_zeros((aim.all_slots, heads, aim.all_places, width))
    grown[:slots, :, :places] = buffer
    return grown


class SlotCache(Cache):
    """A cache whose rows are slots of different lengths.

    Args:
        layers: number of layers of the text model.
    """

    def __init__(self, layers: int) -> None:
        self.aim = _Aim()
        self.moved = 0
        """How often the buffers were laid anew, elsewhere in memory."""
        super().__init__(layers=[_SlotLayer(self.aim) for _ in range(layers)])

    def reserve(self, slots: int, places: int) -> None:
        """See to it that there is room for so many slots of so many places."""
        aim = self.aim
        if slots <= aim.all_slots and places <= aim.all_places:
            return
        aim.all_slots = max(aim.all_slots, power_of_two(slots))
        aim.all_places = max(aim.all_places, -(-places // _STEP) * _STEP)
        self.moved += 1
        for layer in self.layers:
            layer.make_room()

    def aim_at(self, slots: int | Tensor, starts: Tensor, count: int, longest: int) -> Tensor:
        """Say where the next forward pass writes, and return its attention mask.

        Args:
            slots: int64 `[rows]`, for which there must be room already; or the first of slots one behind the other,
                which are read where they lie.
            starts: int64 `[rows]`, places that each of them has filled already.
            count: new places Q of each row; what a shorter row gets behind its end is overwritten later.
            longest: places of a slot that are read: the largest of `starts` + `count`, or more.

        Returns:
            bool `[rows, 1, Q, longest]`, True where a new place may look.
        """
        aim, device = self.aim, starts.device
        if isinstance(slots, int):
            aim.part = slice(slots, slots + len(starts))
            self.reserve(slots + len(starts), longest)
            slots = torch.arange(slots, slots + len(starts), device=device)
        else:
            aim.part = slots
        aim.rows, aim.longest = slots[:, None], longest
        aim.places = starts[:, None] + torch.arange(count, device=device)
        return torch.arange(longest, device=device) <= aim.places[:, None, :, None]

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
        self.reserve(slot + 1, length)
        for layer, part in zip(self.layers, parts, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(part[:1], part[1:])
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
            same = same_beginning(identity, kept)
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
