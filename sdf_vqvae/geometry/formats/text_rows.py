"""Tables in text, a row a line: what ASCII PLY and OFF consist of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from sdf_vqvae.geometry.formats.text_scan import (
    COMPILED,
    ends_word,
    is_blank,
    is_end,
    larger,
    line_of,
    number,
    settle,
    skip_blanks,
    skip_line,
    skip_word,
    whole,
    word_at,
)

SKIPPED, CORNERS = -1, 3
"""What a column may be besides 0, 1 and 2, the coordinates: not read; a list of vertices, its length first."""
_DONE, _ENDED, _TOO_FEW, _TOO_MANY, _NOT_WHOLE = range(5)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What was read of rows, and the place behind them."""

    points: np.ndarray
    """float64 `[rows, 3]`; without rows if no column is a coordinate."""
    corners: np.ndarray
    """The lists of vertices, one after the other, int64 `[C]`."""
    counts: np.ndarray
    """Their lengths, int64 `[rows]`."""
    end: int


def read_rows(
    data: bytes, place: int, name: str, rows: int, columns: tuple[tuple[bool, int], ...], comments: bool = False
) -> Rows:
    """Read the rows of a table; blank lines between them don't count.

    Args:
        data: the file.
        place: where the first row begins, or white space before it.
        name: what a row is, for messages.
        rows: their number; the caller has compared it with what the file can hold.
        columns: of each value, whether it is a list (a number, and as many values), and what it is.
        comments: whether `#` begins a comment. Then more values may follow in a row, too, which are not read.

    Raises:
        ValueError: a row is not as its columns say, with its line, or rows are missing.
    """
    lists = np.array([is_list for is_list, _ in columns], np.bool_)
    roles = np.array([role for _, role in columns], np.int64)
    points = np.empty((rows if (roles == 0).any() else 0, 3))
    counts = np.zeros(rows if (roles == CORNERS).any() else 0, np.int64)
    text = np.frombuffer(data, np.uint8)
    code, row, end, corners, filled = _read(text, place, rows, lists, roles, comments, points.reshape(-1), counts)
    if code == _ENDED:
        raise ValueError(f"it ends after {row:,} of {rows:,} rows of the element {name!r}")
    if code != _DONE:
        raise ValueError(
            f"{line_of(data, end)}: "
            + {
                _TOO_FEW: f"a row of the element {name!r} has fewer values than it should",
                _TOO_MANY: f"a row of the element {name!r} has more values than it should: {word_at(data, end)}",
                _NOT_WHOLE: f"{word_at(data, end)} is not a whole number that fits here",
            }[code]
        )
    return Rows(points=settle(points, data), corners=corners[:filled], counts=counts, end=end)


def white_end(data: bytes, place: int, comments: bool = False) -> int:
    """Return the next place that is neither white space nor, if there are any, in a comment."""
    return int(_next_row(np.frombuffer(data, np.uint8), place, comments))


@njit(**COMPILED)
def _next_row(data: Any, place: int, comments: bool) -> int:
    while place < len(data):
        if is_blank(data[place]) or is_end(data[place]):
            place += 1
        elif comments and data[place] == 35:
            place = skip_line(data, place)
        else:
            break
    return place


@njit(**COMPILED)
def _read(
    data: Any, place: int, rows: int, lists: Any, roles: Any, comments: bool, points: Any, counts: Any
) -> tuple[int, int, int, Any, int]:
    """Return what was wrong, in which row, the place there or at the end, and the corners in a larger array."""
    corners = np.empty(1 << 10, np.int64)
    filled = 0
    for row in range(rows):
        place = _next_row(data, place, comments)
        if place >= len(data):
            return _ENDED, row, place, corners, filled
        for column in range(len(lists)):
            role = roles[column]
            values = 1
            if lists[column]:
                place = skip_blanks(data, place)
                if place >= len(data) or is_end(data[place]):
                    return _TOO_FEW, row, place, corners, filled
                start = place
                values, place = whole(data, place)
                if place == start or values < 0 or (place < len(data) and not ends_word(data[place])):
                    return _NOT_WHOLE, row, start, corners, filled
                if role == CORNERS:
                    counts[row] = values
            for _ in range(values):
                place = skip_blanks(data, place)
                if place >= len(data) or is_end(data[place]) or (comments and data[place] == 35):
                    return _TOO_FEW, row, place, corners, filled
                start = place
                if role == CORNERS:
                    if filled == len(corners):
                        corners = larger(corners)
                    corners[filled], place = whole(data, place)
                    filled += 1
                    if place == start or (place < len(data) and not ends_word(data[place])):
                        return _NOT_WHOLE, row, start, corners, filled
                elif role >= 0:
                    points[3 * row + role], place = number(data, place)
                else:
                    place = skip_word(data, place)
        place = skip_blanks(data, place)
        if not comments and place < len(data) and not is_end(data[place]):
            return _TOO_MANY, row, place, corners, filled
        place = skip_line(data, place)
    return _DONE, rows, place, corners, filled
