"""Changes of an object's cached codes that leave its name true: fewer codes, turned a little, moved.

Codes keep what they say of the surface in their cell; only where the cells lie changes, and which of them there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdf_vqvae.sparse.coordinates import linear_keys

Draw = Callable[[str], int]
"""Purpose -> a number of 64 bits for this object and epoch, always the same one."""


@dataclass(frozen=True, kw_only=True)
class CodeAugmentation:
    """What each epoch does anew to each object's codes; as it stands, nothing.

    Raises:
        ValueError: a value is out of range.
    """

    drop_cells: float = 0.0
    """Most of the share of codes that is left out, 0 to 1."""
    turn_degrees: float = 0.0
    """Standard deviation of the angle by which an object is turned about each axis (see `turned`)."""
    shift_cells: int = 0
    """Most whole cells by which an object is moved along every axis, which cuts it into other blocks. The coordinates
    then reach beyond the latent grid by as much."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_cells <= 1:
            raise ValueError(f"drop_cells must be 0 to 1, got {self.drop_cells}")
        if not 0 <= self.turn_degrees < math.inf:
            raise ValueError(f"turn_degrees must be 0 or more, got {self.turn_degrees}")
        if not (isinstance(self.shift_cells, int) and self.shift_cells >= 0):
            raise ValueError(f"shift_cells must be an integer, 0 or more, got {self.shift_cells}")

    def __call__(
        self, codes: Tensor, coords: Tensor, side: int, draw: Draw, *, turn: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return an object's codes `[M]` and cells `[M, 3]` as this epoch has them: at least one, if there are any.

        Args:
            codes: `[N]`.
            coords: integer `[N, 3]`, in `[0, side)`.
            side: cells of the latent grid along an axis.
            draw: where chance comes from.
            turn: whether this object may be turned.
        """
        if not len(codes):
            return codes, coords
        if self.drop_cells:
            stay = _kept(len(codes), self.drop_cells, _random(draw("drop")))
            codes, coords = codes[stay], coords[stay]
        if self.turn_degrees and turn:
            angles = torch.randn(3, generator=_random(draw("turn"))) * math.radians(self.turn_degrees)
            coords, first = turned(coords, angles, side)
            codes = codes[first]
        if self.shift_cells:
            drawn = draw("shift")
            steps = [drawn // (self.shift_cells + 1) ** axis % (self.shift_cells + 1) for axis in range(3)]
            coords = coords + torch.tensor(steps, dtype=coords.dtype)
        return codes, coords


def turned(coords: Tensor, angles: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Turn cells about the middle of their bounding box.

    Where the turned object is longer than the grid it is made smaller, and where it sticks out it is moved in.
    Several cells may come to lie in one.

    Args:
        coords: integer `[N, 3]`, in `[0, side)`, at least one row.
        angles: `[3]`, the rotation vector in radians: its direction is the axis, its length the angle.
        side: cells of the grid along an axis.

    Returns:
        The occupied cells `[M, 3]`, in `[0, side)`, x slowest; and of each the first row of `coords` that came there.
    """
    x, y, z = angles.double().unbind()
    none = torch.zeros_like(x)
    rotation = torch.matrix_exp(torch.stack([none, -z, y, z, none, -x, -y, x, none]).view(3, 3))
    points = coords.double()
    middle = (points.amin(0) + points.amax(0)) / 2
    points = (points - middle) @ rotation.T
    last = side - 1
    extent = (points.amax(0) - points.amin(0)).max()
    if extent > last:
        points = points * (last / extent)
    points = points + middle
    points = points - points.amin(0).clamp_max(0) - (points.amax(0) - last).clamp_min(0)
    cells = points.round().clamp(0, last).to(coords.dtype)  # clamped for what rounding leaves beyond
    keys, order = linear_keys(F.pad(cells, (1, 0)), side).sort(stable=True)
    first = order[torch.cat([torch.ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])]
    return cells[first], first


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed >> 1)


def _kept(count: int, most: float, random: torch.Generator) -> Tensor:  # [count], bool
    """Return which codes stay: at least one."""
    share, *drawn = torch.rand(count + 1, generator=random).split([1, count])
    stay = drawn[0] >= share * most
    stay[drawn[0].argmax()] = True
    return stay
