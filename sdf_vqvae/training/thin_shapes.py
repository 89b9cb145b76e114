"""Thin shapes made by rule, to train on: rods, tubes, plates, frames and lattices in random pose.

Their walls are a few voxels thick or less, which is where a tokenizer loses most, and their distances are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sdf_vqvae.geometry.mesh import LONGEST_SIDE
from sdf_vqvae.geometry.solids import BOX, Solids

THINNEST, THICKEST = 0.7, 6.0
"""Voxels, the range of what is thin in them."""
_DRAWS = 100

Rule = Callable[[np.random.Generator, float], Solids]
"""A shape of a generator and the thickness of its walls."""


def thin_shape(rng: np.random.Generator, resolution: int, *, band: float = 3.0, most: int | None = None) -> Solids:
    """Return a shape that fills the world cube as a normalized mesh does, thin for a grid of this side.

    Args:
        rng: what it is drawn by; without `most`, or where the first shape fits, as many numbers are used.
        resolution: grid side R.
        band: half width of its field in voxels.
        most: a shape whose field may have more voxels loses its last parts until it may not; one of a single part is
            drawn anew.

    Raises:
        ValueError: no shape of a hundred has so few voxels.
    """
    for _ in range(_DRAWS):
        rule = _RULES[int(rng.integers(len(_RULES)))]
        thickness = float(np.exp(rng.uniform(np.log(THINNEST), np.log(THICKEST)))) / resolution
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        pose = (
            torch.from_numpy(turn * np.linalg.det(turn)) if rng.random() < 0.7 else torch.eye(3, dtype=torch.float64)
        )
        seed = int(rng.integers(2**62))
        shape = _fitted(rule, seed, thickness, pose, None)
        while most is not None and shape.most_voxels(resolution, band=band) > most and len(shape.ring) > 1:
            shape = _fitted(rule, seed, thickness, pose, len(shape.ring) - 1)
        if most is None or shape.most_voxels(resolution, band=band) <= most:
            return shape
    raise ValueError(f"no thin shape at {resolution}^3 has at most {most} voxels (max_points): it is too small")


def _fitted(rule: Rule, seed: int, thickness: float, pose: Tensor, count: int | None) -> Solids:
    """Return the first parts of a shape, in the world cube, with walls of this thickness there."""

    def posed(wall: float) -> Solids:
        return rule(np.random.default_rng(seed), wall).turned(pose).first(count)

    # Fitting scales the walls too, so it is done twice: the second time they come out as thick as they should.
    _, factor = posed(thickness).fitted(LONGEST_SIDE)
    return posed(thickness / factor).fitted(LONGEST_SIDE)[0]


def part(
    center: Sequence[float] | np.ndarray,
    half: Sequence[float],
    *,
    axis: np.ndarray | None = None,
    ring: float = BOX,
    round: float = 0.0,
) -> Solids:
    """Return one part (see `Solids`), its z along `axis`, its x and y along the world's where that is possible."""
    axes = np.eye(3)
    if axis is not None:
        z = axis / np.linalg.norm(axis)
        x = np.eye(3)[int(np.abs(z).argmin())]
        x = x - (x @ z) * z
        x /= np.linalg.norm(x)
        axes = np.stack([x, np.cross(z, x), z])
    return Solids(
        center=torch.tensor(np.asarray(center, dtype=np.float64))[None],
        axes=torch.tensor(axes)[None],
        half=torch.tensor([half], dtype=torch.float64),
        ring=torch.tensor([ring], dtype=torch.float64),
        round=torch.tensor([round], dtype=torch.float64),
    )


def bar(a: np.ndarray, b: np.ndarray, thickness: float, kind: str) -> Solids:
    """Return a bar from a to b: `round` (with round ends), `square` or `cylinder`."""
    radius, length = thickness / 2, float(np.linalg.norm(b - a))
    place, axis = (a + b) / 2, b - a
    if kind == "round":
        return part(place, (0, 0, length / 2), axis=axis, round=radius)
    if kind == "square":
        return part(place, (radius, radius, length / 2 + radius), axis=axis)
    return part(place, (radius, np.inf, length / 2), axis=axis, ring=0.0)


def _kind(rng: np.random.Generator) -> str:
    return ("round", "square", "cylinder")[int(rng.integers(3))]


def _rods(rng: np.random.Generator, thickness: float) -> Solids:
    """A bent rod, or a few loose ones."""
    kind, chain = _kind(rng), rng.random() < 0.5
    points = rng.uniform(-0.5, 0.5, (int(rng.integers(2, 7)), 3))
    pairs = pairwise(points) if chain else zip(points, -points[::-1] * 0.9, strict=True)
    return Solids.joined([bar(a, b, thickness, kind) for a, b in pairs])


def _tubes(rng: np.random.Generator, thickness: float) -> Solids:
    """Open tubes, wide or narrow, and closed rings round them."""
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        radius, axis = max(rng.uniform(0.04, 0.4), thickness), rng.normal(size=3)
        place = rng.uniform(-0.2, 0.2, 3)
        if rng.random() < 0.3:
            parts.append(part(place, (0, np.inf, 0), axis=axis, ring=radius, round=thickness / 2))
        else:
            half = (thickness / 2, np.inf, rng.uniform(0.1, 0.5))
            parts.append(part(place, half, axis=axis, ring=radius))
    return Solids.joined(parts)


def _plates(rng: np.random.Generator, thickness: float) -> Solids:
    """Sheets and discs that may cross."""
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        place, axis = rng.uniform(-0.25, 0.25, 3), rng.normal(size=3)
        if rng.random() < 0.3:
            parts.append(part(place, (rng.uniform(0.15, 0.5), np.inf, thickness / 2), axis=axis, ring=0.0))
        else:
            parts.append(part(place, (*rng.uniform(0.1, 0.5, 2), thickness / 2), axis=axis))
    return Solids.joined(parts)


def _frames(rng: np.random.Generator, thickness: float) -> Solids:
    """The edges of a box or a rectangle, or hoops."""
    kind, sides = _kind(rng), rng.uniform(0.2, 0.5, 3)
    if rng.random() < 0.25:
        hoops = range(int(rng.integers(1, 5)))
        return Solids.joined(
            [part((0, 0, 0.2 * n), (0, np.inf, 0), ring=max(sides[0], thickness), round=thickness / 2) for n in hoops]
        )
    if rng.random() < 0.4:
        sides[2] = 0.0
    return _grid(sides, (2, 2, 1 if sides[2] == 0 else 2), thickness, kind)


def _lattices(rng: np.random.Generator, thickness: float) -> Solids:
    """Bars along two or three axes of a regular grid."""
    counts = (int(rng.integers(2, 6)), int(rng.integers(2, 6)), int(rng.integers(1, 4)))
    return _grid(rng.uniform(0.25, 0.5, 3), counts, thickness, _kind(rng))


def _grid(half: np.ndarray, counts: tuple[int, int, int], thickness: float, kind: str) -> Solids:
    """Return the bars of a grid of `counts` lines along each axis, within -half..half."""
    lines = [np.linspace(-h, h, n) if n > 1 else np.zeros(1) for h, n in zip(half, counts, strict=True)]
    bars = []
    for axis in range(3):
        if counts[axis] == 1:
            continue
        one, two = (i for i in range(3) if i != axis)
        for u in lines[one]:
            for v in lines[two]:
                a, b = np.zeros(3), np.zeros(3)
                a[[one, two]] = b[[one, two]] = u, v
                a[axis], b[axis] = lines[axis][0], lines[axis][-1]
                bars.append(bar(a, b, thickness, kind))
    return Solids.joined(bars)


_RULES: tuple[Rule, ...] = (_rods, _tubes, _plates, _frames, _lattices)
