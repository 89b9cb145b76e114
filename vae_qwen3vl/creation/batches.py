"""Objects and their words as tensors of a batch, padded. Knows how they lie in memory; computes nothing of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vae_qwen3vl.creation.networks import Conditions
from vae_qwen3vl.creation.octree import levels_of


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Values at cells of one grid, for a batch of objects."""

    side: int
    """Of the grid."""
    cells: Tensor
    """int64 `[B, L, 3]`."""
    values: Tensor
    """int64 `[B, L]`: bytes, or codes."""
    mask: Tensor
    """bool `[B, L]`: False is padding."""


@dataclass(frozen=True, kw_only=True)
class ShapeBatch:
    """B objects with words."""

    levels: tuple[Asked, ...]
    """Bytes, from coarse to fine."""
    codes: Asked
    """The codes of the occupied cells."""
    given: Conditions
    """Words and sizes."""

    def to(self, device: torch.device | str) -> ShapeBatch:
        """Return it on another device."""
        return _moved(self, torch.device(device))


def proportions_of(cells: Tensor, side: int) -> Tensor:  # [M, 3] -> [3]
    """Return the sides of the box round cells, in sides of the grid."""
    return (cells.amax(0) - cells.amin(0) + 1).float() / side


def conditions(
    words: Sequence[Tensor], proportions: Tensor, cells: Tensor, sizes_mask: Tensor, *, width: int
) -> Conditions:
    """Join what objects are to be like.

    Args:
        words: float `[S, width]` of each object; none may have rows.
        proportions: float `[B, 3]`.
        cells: float `[B]`.
        sizes_mask: bool `[B, 2]`.
        width: numbers of a word's vector.
    """
    lengths = torch.tensor([len(rows) for rows in words])
    longest = max(1, int(lengths.max()))
    filled = torch.zeros(len(words), longest, width)
    for number, rows in enumerate(words):
        filled[number, : len(rows)] = rows.float()
    mask = torch.arange(longest) < lengths[:, None]
    return Conditions(words=filled, words_mask=mask, proportions=proportions, cells=cells, sizes_mask=sizes_mask)


def batch_of(
    objects: Sequence[tuple[Tensor, Tensor]], words: Sequence[Tensor], *, side: int, text_width: int
) -> ShapeBatch:
    """Join objects, with all that is known of them.

    Args:
        objects: codes `[M]` and cells `[M, 3]` of each, integers.
        words: float `[S, text_width]` of each.
        side: of the latent grid.
        text_width: numbers of a word's vector.
    """
    trees = [levels_of(cells.long(), side) for _, cells in objects]
    levels = tuple(
        _padded(level[0].side, [part.cells for part in level], [part.bytes for part in level])
        for level in zip(*trees, strict=True)
    )
    given = conditions(
        words,
        torch.stack([proportions_of(cells, side) for _, cells in objects]),
        torch.tensor([float(len(cells)) for _, cells in objects]),
        torch.ones(len(objects), 2, dtype=torch.bool),
        width=text_width,
    )
    codes = _padded(side, [cells.long() for _, cells in objects], [codes.long() for codes, _ in objects])
    return ShapeBatch(levels=levels, codes=codes, given=given)


def _padded(side: int, cells: list[Tensor], values: list[Tensor]) -> Asked:
    lengths = torch.tensor([len(rows) for rows in values])
    return Asked(
        side=side,
        cells=pad_sequence(cells, batch_first=True),
        values=pad_sequence(values, batch_first=True),
        mask=torch.arange(int(lengths.max())) < lengths[:, None],
    )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=device.type == "cuda" and value.is_pinned())
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    if isinstance(value, int):
        return value
    return type(value)(**{name: _moved(part, device) for name, part in vars(value).items()})
