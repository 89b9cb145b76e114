"""The grids on which an object is said from coarse to fine. Settings read this: no library is imported."""

from __future__ import annotations

ROOT = 4
"""Cells an axis of the coarsest grid."""


def sides_of(side: int) -> list[int]:
    """Return the sides of the grids whose cells have bytes, for occupied cells on a grid of `side`.

    Raises:
        ValueError: the side is not 8, 16, 32 and so on.
    """
    sides = [ROOT]
    while sides[-1] * 2 < side:
        sides.append(sides[-1] * 2)
    if sides[-1] * 2 != side:
        raise ValueError(
            f"the latent grid must have 8, 16, 32, ... cells an axis to be made from coarse to fine: {side}"
        )
    return sides
