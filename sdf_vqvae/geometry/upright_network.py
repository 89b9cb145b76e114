"""Which way is up: a small network that looks at an object's surface from all sides and says how it stands.

It scores one way of standing, "this grid stands on its feet"; an object is turned into every candidate and the
scores are compared. The axes of the file itself say nothing: only turns of the same grid are compared.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from torch import Tensor, nn

from sdf_vqvae.geometry.mesh import LONGEST_SIDE
from sdf_vqvae.geometry.up import UP_AXES
from sdf_vqvae.utils.archives import read_safetensors

GRID = 32
"""Cells along each side of the grid that is looked at; the world cube [-0.5, 0.5]^3."""
POINTS = 2**15
"""Points drawn from the surface to fill it."""
WEIGHTS = Path(str(resources.files("sdf_vqvae") / "weights" / "upright.safetensors"))
WIDTHS = (16, 32, 64, 128)
"""Channels of the shipped network after each halving of the grid."""
USUAL = {"y": 0.25, "z": 0.75}
"""How usual the two axes are taken to be in files that don't say: CAD, robotics, printing and scanners use z."""


@dataclass(frozen=True, kw_only=True)
class UpGuess:
    """What an object's shape says about how it stands."""

    up: str
    """The axis of the source that points up, one of `UP_AXES`."""
    probability: float
    """Of that axis among the candidates, calibrated on held-out objects."""


class UprightScorer(nn.Module):
    """How well grids of occupied cells stand on their feet, y up.

    Args:
        widths: channels after each halving of the grid.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((1, *widths)):
            layers += [nn.Conv3d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        side = GRID // 2 ** len(widths)
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * side**3, 256), nn.SiLU(), nn.Dropout(0.3), nn.Linear(256, 1)
        )
        self.register_buffer("temperature", torch.ones(()))
        self.temperature: Tensor

    def forward(self, grids: Tensor) -> Tensor:
        """Return a score for each of `[B, GRID, GRID, GRID]` floats, axes x, y, z. `[B]`"""
        return self.head(self.features(grids[:, None]))[:, 0]


Turn: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""A turn of a grid: the order of its axes, and which are flipped after that."""


@functools.cache
def turns_to_upright(up: str) -> tuple[Turn, ...]:
    """Return the four turns that bring an axis up.

    Args:
        up: one of `UP_AXES`.
    """
    turns = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = signs
            if np.linalg.det(matrix) > 0 and "xyz"[order[1]] == up[-1] and (signs[1] < 0) == up.startswith("-"):
                turns.append((order, tuple(axis for axis in range(3) if signs[axis] < 0)))
    return tuple(turns)


def turned_grids(grids: Tensor, turn: Turn) -> Tensor:
    """Return grids `[B, R, R, R]` turned about their middle."""
    order, flipped = turn
    return grids.permute(0, *(1 + axis for axis in order)).flip([1 + axis for axis in flipped])


def scores_of_axes(scorer: nn.Module, grids: Tensor, axes: Sequence[str] = UP_AXES) -> Tensor:
    """Return how likely each axis is up, as logits. `[B, len(axes)]`

    Each is the mean over the four turns about the axis and their mirror images, which stand as the object does.
    """
    columns = []
    for up in axes:
        turned = [turned_grids(grids, turn) for turn in turns_to_upright(up)]
        views = turned + [grid.flip(1) for grid in turned]
        columns.append(scorer(torch.cat(views)).view(len(views), -1).mean(0))
    return torch.stack(columns, dim=1)


def surface_grid(mesh: trimesh.Trimesh, points: int = POINTS) -> Tensor:
    """Return the cells that points of a mesh's surface fall into: bool `[GRID, GRID, GRID]`, axes x, y, z.

    Raises:
        ValueError: the mesh has no area, or coordinates that are not finite.
    """
    area = float(mesh.area)
    if not 0 < area < np.inf:
        raise ValueError(f"the mesh has no usable area: {area}")
    drawn, _ = trimesh.sample.sample_surface(mesh, points, seed=0)
    low, high = mesh.bounds
    world = (np.asarray(drawn) - (low + high) / 2) * (LONGEST_SIDE / (high - low).max())
    cells = torch.from_numpy(((world + 0.5) * GRID).astype(np.int64).clip(0, GRID - 1))
    grid = torch.zeros(GRID, GRID, GRID, dtype=torch.bool)
    grid[tuple(cells.T)] = True
    return grid


@functools.cache
def load_scorer(weights: Path = WEIGHTS) -> UprightScorer:
    """Return the shipped network, on the CPU, in evaluation mode."""
    scorer = UprightScorer()
    tensors, _ = read_safetensors(weights, "weights of the upright scorer", tuple(scorer.state_dict()))
    scorer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return scorer.eval()


def guess_up(mesh: trimesh.Trimesh, axes: Sequence[str] = UP_AXES, shares: Sequence[float] | None = None) -> UpGuess:
    """Return which axis of a mesh most likely points up.

    Args:
        mesh: in any units.
        axes: the candidates.
        shares: how often each of them is up, before the shape is looked at (Bayes' rule); by default equally often.

    Raises:
        ValueError: the mesh cannot be used, see `surface_grid`; or the candidates or shares make no sense.
    """
    if not axes or not set(axes) <= set(UP_AXES):
        raise ValueError(f"axes must be some of {', '.join(UP_AXES)}, got {', '.join(axes) or 'none'}")
    weights = torch.tensor([1.0] * len(axes) if shares is None else list(shares))
    if len(weights) != len(axes) or not bool((weights > 0).all()):
        raise ValueError(f"shares must be a positive number for each of {len(axes)} axes, got {shares}")
    scorer = load_scorer()
    with torch.no_grad():
        scores = scores_of_axes(scorer, surface_grid(mesh)[None].float(), axes)[0]
    probabilities = F.softmax(scores / scorer.temperature + weights.log(), dim=0)
    best = int(probabilities.argmax())
    return UpGuess(up=axes[best], probability=float(probabilities[best]))


def usual_up(mesh: trimesh.Trimesh) -> UpGuess:
    """Return how a mesh stands whose file says nothing: along y or z, z being more usual (`USUAL`).

    Raises:
        ValueError: see `guess_up`.
    """
    return guess_up(mesh, tuple(USUAL), tuple(USUAL.values()))
