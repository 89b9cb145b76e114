"""Loops of sparse convolution and of its neighbour map, compiled for the CPU by Numba; they hold no lock."""

from __future__ import annotations

from typing import Any

from numba import njit

_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(**_COMPILED)
def gather(feats: Any, neighbors: Any, start: int, stop: int, gathered: Any) -> None:
    """Put the features of 27 neighbours side by side, absent ones as zeros, for the rows start..stop.

    Args:
        feats: float32 `[N, C]`.
        neighbors: int32 `[N, 27]`, -1 where there is none.
        start: first row.
        stop: row after the last.
        gathered: float32 `[rows, 27 C]`, filled from its first row on.
    """
    channels = feats.shape[1]
    for row in range(start, stop):
        for tap in range(27):
            neighbor = neighbors[row, tap]
            to = tap * channels
            if neighbor < 0:
                for c in range(channels):
                    gathered[row - start, to + c] = 0
            else:
                for c in range(channels):
                    gathered[row - start, to + c] = feats[neighbor, c]


@njit(**_COMPILED)
def look_up(
    parent: Any, slot: Any, cell_neighbors: Any, rows_in_cell: Any, cell_offset: Any, child_slot: Any, start: int,
    stop: int, table: Any,
) -> None:  # fmt: skip
    """Fill the rows start..stop of a neighbour table through the table of the coarser set.

    Args:
        parent: cell of each row, int64 `[N]`.
        slot: which child of it the row is, int64 `[N]`.
        cell_neighbors: int32 `[P, 27]`.
        rows_in_cell: row of each child of each cell or -1, int32 `[P, 8]`.
        cell_offset: for a child and an offset, in which of the 27 cells the neighbour lies, int64 `[8, 27]`.
        child_slot: and which child of that it is, int64 `[8, 27]`.
        start: first row.
        stop: row after the last.
        table: int32 `[N, 27]`.
    """
    for row in range(start, stop):
        cell, own = parent[row], slot[row]
        for tap in range(27):
            other = cell_neighbors[cell, cell_offset[own, tap]]
            table[row, tap] = -1 if other < 0 else rows_in_cell[other, child_slot[own, tap]]
