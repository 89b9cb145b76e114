"""Which cells are occupied, said from coarse to fine: a byte for each occupied cell, a bit for each of its children.

The coarsest grid has `ROOT` cells an axis, and each of them has a byte, 0 where nothing is in it. On finer grids only
occupied cells have one, and it is never 0. The bit of the child at (2x + i, 2y + j, 2z + k) is number 4i + 2j + k.
Knows grids; nothing of codes, words or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_qwen3vl.creation.grids import ROOT, sides_of

BYTES = 256
UNKNOWN = -1
"""State of a cell of which nothing is known; else it is 0 (empty) or 1 (occupied)."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """One step of an object from coarse to fine."""

    side: int
    """Cells an axis of the grid whose cells have the bytes; their children's has twice as many."""
    cells: Tensor
    """int64 `[L, 3]`, rows sorted."""
    bytes: Tensor
    """int64 `[L]`."""


def dense(cells: Tensor, side: int) -> Tensor:  # [M, 3] -> [side, side, side], bool
    """Return the grid in which these cells are occupied."""
    grid = torch.zeros(side, side, side, dtype=torch.bool, device=cells.device)
    grid[tuple(cells.long().T)] = True
    return grid


def by_parent(grid: Tensor) -> Tensor:  # [2s, 2s, 2s] -> [s, s, s, 8]
    """Return the values of each coarser cell's children, in the order of their bits."""
    half = len(grid) // 2
    return grid.view(half, 2, half, 2, half, 2).permute(0, 2, 4, 1, 3, 5).reshape(half, half, half, 8)


def levels_of(cells: Tensor, side: int) -> list[Level]:
    """Return the bytes of an object from coarse to fine.

    Args:
        cells: integer `[M, 3]`, M > 0, the occupied cells in any order.
        side: of their grid.

    Raises:
        ValueError: see `sides_of`.
    """
    sides, grid = sides_of(side), dense(cells, side)
    bits = 1 << torch.arange(8, device=cells.device)
    levels = []
    for coarse in reversed(sides):
        children = by_parent(grid)  # [s, s, s, 8]
        grid = children.any(-1)
        asked = torch.ones_like(grid) if coarse == ROOT else grid
        places = asked.nonzero()
        levels.append(Level(side=coarse, cells=places, bytes=(children[asked].long() * bits).sum(-1)))
    return levels[::-1]


def children_of(cells: Tensor, values: Tensor) -> Tensor:  # [L, 3], [L] -> [n, 3]
    """Return the occupied cells of the next finer grid, rows sorted, that bytes name."""
    slots = torch.arange(8, device=cells.device)
    offsets = torch.stack([slots >> 2 & 1, slots >> 1 & 1, slots & 1], dim=1)
    occupied = (values[:, None] >> slots & 1).bool()  # [L, 8]
    children = (2 * cells[:, None].long() + offsets)[occupied]  # [n, 3]
    if not len(children):
        return children
    x, y, z = children.T
    side = int(children.max()) + 1
    return children[((x * side + y) * side + z).argsort()]


def coarser_states(states: Tensor) -> Tensor:  # [2s, 2s, 2s] -> [s, s, s]
    """Return what is known of the cells one grid coarser: occupied if a child is, empty if all children are."""
    children = by_parent(states)
    return torch.where((children == 1).any(-1), 1, torch.where((children == 0).all(-1), 0, UNKNOWN)).to(states.dtype)


def allowed_bytes(states: Tensor, *, root: bool) -> Tensor:  # [L, 8] -> [L, 256], bool
    """Return which bytes agree with what is known of the children of occupied cells.

    Args:
        states: of each cell's children.
        root: whether it is the coarsest grid, where a byte may be 0.
    """
    bits = torch.arange(BYTES, device=states.device)[:, None] >> torch.arange(8, device=states.device) & 1  # [256, 8]
    agree = ((states[:, None] == bits) | (states[:, None] == UNKNOWN)).all(-1)
    if not root:
        agree[:, 0] = False
    return agree
