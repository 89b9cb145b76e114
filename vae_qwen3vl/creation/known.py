"""What of an object is given before it is made: nothing, the part inside a box, or all but some of its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_qwen3vl.creation.networks import MASKED
from vae_qwen3vl.creation.octree import UNKNOWN, dense

BLOCK = 4
"""Cells an axis of the blocks that `all_but_blocks` takes away."""
_HALVES = {
    "left": (0, 0.5),
    "right": (0.5, 1),
    "bottom": (0, 0.5),
    "top": (0.5, 1),
    "back": (0, 0.5),
    "front": (0.5, 1),
}
"""Half -> where it lies along its axis; two of each axis x, y, z in turn."""


@dataclass(frozen=True, kw_only=True)
class KnownShape:
    """What is known of every cell of the latent grid."""

    states: Tensor
    """int64 `[S, S, S]`: 1 occupied, 0 empty, -1 unknown."""
    codes: Tensor
    """int64 `[S, S, S]`: the code of a cell that is known to be occupied, -1 elsewhere."""

    @classmethod
    def nothing(cls, side: int) -> KnownShape:
        """Return that nothing is known."""
        unknown = torch.full((side, side, side), UNKNOWN)
        return cls(states=unknown, codes=unknown)

    @classmethod
    def inside(cls, region: Tensor, codes: Tensor, cells: Tensor) -> KnownShape:
        """Return what an object is inside a region.

        Args:
            region: bool `[S, S, S]`.
            codes: integer `[M]`.
            cells: integer `[M, 3]`.
        """
        occupied = dense(cells, len(region))
        of_cells = torch.full(region.shape, MASKED)
        of_cells[tuple(cells.long().T)] = codes.long()
        return cls(
            states=torch.where(region, occupied.long(), UNKNOWN),
            codes=torch.where(region & occupied, of_cells, MASKED),
        )


def read_box(text: str) -> tuple[float, ...]:
    """Return a box as `x0, y0, z0, x1, y1, z1` in shares of an object's bounding box.

    Args:
        text: six numbers with commas, or a half: left, right (along x), bottom, top (y), back, front (z).

    Raises:
        ValueError: it is neither, or the box is empty.
    """
    if text in _HALVES:
        axis = list(_HALVES).index(text) // 2
        low, high = [0.0] * 3, [1.0] * 3
        low[axis], high[axis] = _HALVES[text]
        return (*low, *high)
    try:
        box = tuple(float(part) for part in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 6 or not all(low < high for low, high in zip(box[:3], box[3:], strict=True)):
        raise ValueError(
            f"a box is one of {', '.join(_HALVES)}, or x0,y0,z0,x1,y1,z1 in shares of the object's bounding box with "
            f"each first number below its second, such as 0,0,0,1,0.5,1; not {text!r}"
        )
    return box


def box_region(box: tuple[float, ...], cells: Tensor, side: int) -> Tensor:
    """Return which cells of the grid have their center in a box, bool `[side, side, side]`.

    Args:
        box: see `read_box`. What reaches the object's own side reaches the grid's side too.
        cells: integer `[M, 3]`, the object's.
        side: of the grid.
    """
    first, last = cells.amin(0).tolist(), (cells.amax(0) + 1).tolist()
    region = torch.ones(side, side, side, dtype=torch.bool)
    for axis in range(3):
        low, high = (first[axis] + share * (last[axis] - first[axis]) for share in (box[axis], box[axis + 3]))
        centers = torch.arange(side) + 0.5
        inside = ((centers >= low) | (box[axis] <= 0)) & ((centers < high) | (box[axis + 3] >= 1))
        region &= inside.view([-1 if other == axis else 1 for other in range(3)])
    return region


def all_but_blocks(cells: Tensor, share: float, side: int, seed: int) -> Tensor:
    """Return all of the grid without a share of the blocks that an object has parts in, drawn by a seed.

    Args:
        cells: integer `[M, 3]`, the object's.
        share: of its blocks of `BLOCK` cells an axis, rounded up.
        side: of the grid.
        seed: of the draw.
    """
    blocks = (cells // BLOCK).long().unique(dim=0)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed))
    gone = blocks[order[: -int(-share * len(blocks) // 1)]]
    coarse = torch.ones([-(-side // BLOCK)] * 3, dtype=torch.bool)
    coarse[tuple(gone.T)] = False
    for axis in range(3):
        coarse = coarse.repeat_interleave(BLOCK, axis)
    return coarse[:side, :side, :side]
