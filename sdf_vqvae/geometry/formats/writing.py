"""What writers of mesh files share: coordinates in the precision of the object itself, however far away it stands.

A coordinate counts in parts of the object's longest side, not of the distance to the origin: 32-bit floats know a
house at UTM coordinates to half a metre. Knows numbers and text; no format, and nothing of what the mesh is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from sdf_vqvae.utils.files import atomic_path

_DIGITS = 9
"""Significant digits, as many as 32-bit floats have, of a coordinate as large as the object."""
_ROWS = 2**16  # of text, made at once


# -- 32-bit floats -----------------------------------------------------------------------------------------------


def half_side(vertices: np.ndarray) -> float:
    """Return half the longest side of the bounding box of `[V, 3]`: the whole one may exceed the largest float."""
    if len(vertices) == 0:
        return 0.0
    return float((vertices.max(axis=0) / 2 - vertices.min(axis=0) / 2).max())


def loses_in_float32(vertices: np.ndarray, share: float) -> bool:
    """Return whether 32-bit floats are off by more than a share of the longest side."""
    half = half_side(vertices)
    if half == 0:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(vertices - vertices.astype(np.float32))
    return not float(off.max()) / 2 <= share * half


def round_center(vertices: np.ndarray) -> np.ndarray:
    """Return a place within the object's size of its center, of numbers with few digits. float64 `[3]`"""
    center = vertices.min(axis=0) / 2 + vertices.max(axis=0) / 2
    places = -math.floor(math.log10(half_side(vertices)))
    return np.array([round(float(value), places) for value in center])


# -- text --------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterable[str]) -> None:
    """Write text in ASCII, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.writelines(rows)


def row_of(vertices: np.ndarray) -> str:
    """Return the format of a vertex: with digits for the distance to the origin beside those for the object."""
    half = half_side(vertices)
    distance = float(np.abs(vertices).max()) / half if half > 0 else math.inf
    digits = 17 if distance == math.inf else min(17, _DIGITS + math.ceil(math.log10(distance)))
    return " ".join([f"%.{digits}g"] * 3)


def rows_of(row: str, values: np.ndarray) -> Iterator[str]:
    """Yield the rows of a table `[N, 3]` as text, many at once."""
    for start in range(0, len(values), _ROWS):
        part = np.asarray(values[start : start + _ROWS])
        yield row * len(part) % tuple(part.reshape(-1).tolist())
