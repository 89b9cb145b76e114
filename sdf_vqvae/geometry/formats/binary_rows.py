"""Tables of bytes whose rows have lists in them, and so lengths of their own: binary PLY and OFF."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from sdf_vqvae.geometry.formats.text_scan import COMPILED

Column = tuple[np.dtype | None, np.dtype]
"""The type of a list's length, or None for a single value; and the type of its values."""


def column_of(
    data: bytes, place: int, name: str, rows: int, columns: list[Column], wanted: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the values of one column, row after row, and how many each row has; and the place behind the rows.

    Args:
        data: the file.
        place: where the first row begins.
        name: what a row is, for messages.
        rows: their number; the caller has compared it with what the file can hold.
        columns: types of all columns.
        wanted: which one to read; -1 only finds the end.

    Raises:
        ValueError: the file ends before the rows do, or a list's length is negative.
    """
    lengths = [length for length, _ in columns]
    found = np.empty((rows if wanted >= 0 else 0, 2), np.int64)
    row, place = _walk(
        np.frombuffer(data, np.uint8),
        place,
        rows,
        np.array([0 if t is None else t.itemsize for t in lengths]),
        np.array([t is not None and t.kind == "i" for t in lengths]),
        np.array([t is not None and t.byteorder == ">" for t in lengths]),
        np.array([values.itemsize for _, values in columns]),
        wanted,
        found,
    )
    if row < rows:
        raise ValueError(
            f"it ends in row {row + 1:,} of {rows:,} of the element {name!r}, or a list in it has no length"
        )
    if wanted < 0:
        return np.empty(0), np.empty(0, np.int64), place
    values = columns[wanted][1]
    taken = np.empty(int(found[:, 1].sum()) * values.itemsize, np.uint8)
    _copy(np.frombuffer(data, np.uint8), found, values.itemsize, taken)
    return taken.view(values), found[:, 1].copy(), place


@njit(**COMPILED)
def _walk(
    data: Any, place: int, rows: int, lengths: Any, signed: Any, big: Any, sizes: Any, wanted: int, found: Any
) -> tuple[int, int]:
    """Write where the wanted column's values begin in each row, and how many; return the rows that are there."""
    for row in range(rows):
        for column in range(len(sizes)):
            count = np.int64(1)
            width = lengths[column]
            if width > 0:
                if place + width > len(data):
                    return row, place
                count = np.int64(0)
                for i in range(width):
                    byte = np.int64(data[place + (i if big[column] else width - 1 - i)])
                    if i == 0 and signed[column] and byte > 127:
                        return row, place
                    count = count << 8 | byte
                place += width
            if count < 0 or count > len(data) or place + count * sizes[column] > len(data):
                return row, place
            if column == wanted:
                found[row, 0] = place
                found[row, 1] = count
            place += count * sizes[column]
    return rows, place


@njit(**COMPILED)
def _copy(data: Any, found: Any, size: int, taken: Any) -> None:
    filled = 0
    for row in range(len(found)):
        start = found[row, 0]
        for i in range(found[row, 1] * size):
            taken[filled + i] = data[start + i]
        filled += found[row, 1] * size
