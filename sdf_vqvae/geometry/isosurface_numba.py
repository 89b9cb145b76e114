"""The search for cut cells of marching cubes, compiled for the CPU by Numba; it holds no lock."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy")
def mark_cut(keys: Any, positive: Any, stride_x: int, stride_y: int, start: int, stop: int, cut: Any) -> None:
    """Mark which of the points start..stop are the lowest corner of a known cell whose corners differ in sign.

    The other three columns of the cells stand further along in the keys, and go along them as the points do.

    Args:
        keys: int64 `[N]`, ascending; a step along x, y, z adds stride_x, stride_y, 1.
        positive: bool `[N]`.
        stride_x: see `keys`.
        stride_y: see `keys`.
        start: first point.
        stop: point after the last.
        cut: bool `[N]`, False; filled from start to stop.
    """
    last = len(keys) - 1
    offsets = (stride_y, stride_x, stride_x + stride_y)
    places = np.empty(3, np.int64)
    for column in range(3):
        places[column] = np.searchsorted(keys, keys[start] + offsets[column])
    for point in range(start, min(stop, last)):
        key = keys[point]
        if keys[point + 1] != key + 1:
            continue
        count = int(positive[point]) + int(positive[point + 1])
        whole = True
        for column in range(3):
            wanted, at = key + offsets[column], places[column]
            while at < last and keys[at] < wanted:
                at += 1
            places[column] = at
            if at >= last or keys[at] != wanted or keys[at + 1] != wanted + 1:
                whole = False
                break
            count += int(positive[at]) + int(positive[at + 1])
        cut[point] = whole and 0 < count < 8
