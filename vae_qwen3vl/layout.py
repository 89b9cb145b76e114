"""Where text tokens and 3D tokens stand in the sequence, and their M-RoPE positions. Integers only.

A placeholder in `input_ids` stands for one object and becomes `start marker, 3D tokens, end marker`. Every sample
is built compactly (its padding is dropped) and then padded once. Knows neither embeddings nor the language model.

All values that go into a sequence are rows of one pool, in this order: text `[B * S]`, start markers `[O]`, end
markers `[O]`, 3D tokens `[T]`, and one row of padding. The layout says which pool row stands in which slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vae_qwen3vl.sequence_3d import object_counts, rank_in_object

PLACEHOLDER_3D = -200
"""Stands in `input_ids` for one 3D object. It is no id of any vocabulary, so no text can ever produce it."""

Positions = Literal["mrope", "sequential"]


@dataclass(frozen=True, kw_only=True)
class SequenceLayout:
    """The expanded sequence, as pool rows and positions."""

    source: Tensor
    """int64 `[B, S']`: pool row of each slot."""
    attention_mask: Tensor
    """int64 `[B, S']`: 1 where a slot holds a token."""
    position_ids: Tensor
    """int64 `[3, B, S']`: M-RoPE positions (0 at padding)."""


def without_object(input_ids: Tensor) -> Tensor:  # [B, S] -> [B], bool
    """Return which rows have no placeholder."""
    return (input_ids != PLACEHOLDER_3D).all(1)


def with_placeholders(input_ids: Tensor, attention_mask: Tensor, object_count: int) -> tuple[Tensor, Tensor, bool]:
    """Check placeholders against the number of objects; put one before each sample that plain ids lack.

    Args:
        input_ids: `[B, S]`, with or without placeholders.
        attention_mask: bool `[B, S]`.
        object_count: number of 3D objects.

    Returns:
        ids and mask (one column wider if placeholders were added), and whether they were added.

    Raises:
        ValueError: the counts differ.
    """
    places = ((input_ids == PLACEHOLDER_3D) & attention_mask).nonzero()  # [P, 2]
    placeholders, batch = len(places), len(input_ids)
    if placeholders == 0 and object_count == batch:
        ids = torch.cat([input_ids.new_full((batch, 1), PLACEHOLDER_3D), input_ids], dim=1)
        return ids, torch.cat([attention_mask.new_ones((batch, 1)), attention_mask], dim=1), True
    if placeholders == 0 and object_count:
        lacking = f", and there is none for row {object_count}" if object_count < batch else ""
        raise ValueError(
            f"{object_count} 3D objects for {batch} rows of plain input_ids: each row takes one object{lacking}; "
            "write placeholders with Processor3D for any other number"
        )
    if placeholders != object_count:
        lacking = ""
        if object_count < placeholders:
            lacking = f"; there is none for number {object_count}, in row {int(places[object_count, 0])}"
        raise ValueError(
            f"input_ids hold {placeholders} 3D placeholders, but {object_count} 3D objects were given{lacking}"
        )
    return input_ids, attention_mask, False


def lay_out(
    input_ids: Tensor,  # [B, S]
    attention_mask: Tensor,  # [B, S]
    coords: Tensor,  # [T, 4]
    *,
    positions: Positions = "mrope",
    padding_side: Literal["left", "right"] = "right",
    text_positions: Tensor | None = None,  # [3, B, S]
) -> SequenceLayout:
    """Expand placeholders into 3D blocks.

    Positions of text count up, equal on the three axes. With "mrope" an object's token stands at its block's
    base + (z, y, x), and what follows continues after the largest; with "sequential" tokens count up like text.

    Args:
        input_ids: ids with one placeholder an object, in order of appearance (row by row).
        attention_mask: bool; False rows vanish.
        coords: int `[T, 4]` = (object, x, y, z) of the 3D tokens, objects ascending.
        positions: "mrope" or "sequential".
        padding_side: "right" for training, "left" for generation.
        text_positions: positions in which each placeholder counts as one token (for prompts with images); None
            counts the text.
    """
    batch, width = input_ids.shape
    device = input_ids.device
    counts = object_counts(coords) if len(coords) else torch.zeros(0, dtype=torch.long, device=device)  # [O]
    extent = _extents(coords, counts, positions)  # [O]
    is_object = (input_ids == PLACEHOLDER_3D) & attention_mask  # [B, S]
    is_text = attention_mask & ~is_object

    place = is_object.flatten().nonzero().squeeze(1)  # [O]
    length = is_text.long()
    length.view(-1)[place] = counts + 2
    total = length.sum(1)  # [B]
    padded = int(total.max()) if batch else 0
    offset = (padded - total)[:, None] if padding_side == "left" else 0
    row_start = torch.arange(batch, device=device)[:, None] * padded
    slot = row_start + offset + length.cumsum(1) - length  # [B, S], flat

    if text_positions is None:
        text_positions = (attention_mask.long().cumsum(1) - 1).expand(3, -1, -1)
    extra = torch.zeros_like(length)
    extra.view(-1)[place] = extent + 1
    position = text_positions + extra.cumsum(1) - extra  # [3, B, S]

    pool = _pool_positions(position, place, coords, counts, extent, positions)  # [3, B * S + 2 O + T + 1]
    start = slot.flatten()[place]  # [O]
    token_slot = start[coords[:, 0]] + 1 + rank_in_object(coords[:, 0], counts)  # [T]
    slots = torch.cat([slot.flatten(), start, start + counts + 1, token_slot])
    # Text that vanishes goes to a slot of its own, which is cut off.
    slots[: batch * width] = torch.where(is_text.flatten(), slots[: batch * width], batch * padded)
    source = torch.full((batch * padded + 1,), len(slots), dtype=torch.long, device=device)
    source[slots] = torch.arange(len(slots), device=device)
    source = source[:-1].view(batch, padded)
    return SequenceLayout(source=source, attention_mask=(source < len(slots)).long(), position_ids=pool[:, source])


def _extents(coords: Tensor, counts: Tensor, positions: Positions) -> Tensor:  # [O]
    """Return how many positions each object's tokens span."""
    if positions == "sequential":
        return counts
    if positions != "mrope":
        raise ValueError(f"positions must be 'mrope' or 'sequential', not {positions!r}")
    return torch.zeros_like(counts).scatter_reduce(0, coords[:, 0], coords[:, 1:].amax(1) + 1, "amax")


def _pool_positions(
    position: Tensor, place: Tensor, coords: Tensor, counts: Tensor, extent: Tensor, positions: Positions
) -> Tensor:  # [3, pool]
    start = position.flatten(1)[:, place]  # [3, O]
    base = start[:, coords[:, 0]] + 1  # [3, T]
    if positions == "mrope":
        tokens = base + coords[:, [3, 2, 1]].T  # axes carry (z, y, x)
    else:
        tokens = base + rank_in_object(coords[:, 0], counts)
    return torch.cat([position.flatten(1), start, start + 1 + extent, tokens, position.new_zeros(3, 1)], dim=1)
