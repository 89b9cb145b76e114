"""Solids of a few simple parts to a sparse distance field, exact and without a mesh.

A part is a rounded box, or what such a box makes when it goes round an axis: rods, bars, plates, discs, tubes and
rings. A field is that of the parts' union. Cost grows with the voxels near the surface.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

BOX = -1.0
"""`Solids.ring` of a part that is a box."""
_BRICK = 4
_SMALLEST_INSIDE = 1e-4  # an inside voxel must not read as zero, which counts as outside
# Where parts overlap, the nearest way out is looked for: first in all directions, then around the best.
# Slowly narrower: along a groove where two parts meet, the lengths form a valley that must be followed.
_DIRECTIONS, _CONES, _IN_CONE = 512, tuple(0.12 * 0.6**n for n in range(8)), 20
_STEPS = 12
_LONGEST_STEP = 10.0
_LEFT = 1e-3
"""Voxels; a way along which more is left after all steps is none of the short ones."""
_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
"""Distances computed in one go in that search: as a cache holds, or as keep a GPU busier than launching them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solids:
    """K parts in the world cube [-0.5, 0.5]^3; all tensors float64."""

    center: Tensor
    """`[K, 3]`."""
    axes: Tensor
    """`[K, 3, 3]`: the rows are the part's own x, y and z in the world."""
    half: Tensor
    """`[K, 3]`: half sides before rounding. Of a part that goes round its z: across the ring, infinity, along z."""
    ring: Tensor
    """`[K]`: distance of the middle of the wall from the axis that a part goes round (0: a full disc or cylinder), at
    least half the wall; or `BOX`."""
    round: Tensor
    """`[K]`: radius by which the part grows on all sides."""

    @classmethod
    def joined(cls, parts: Sequence[Solids]) -> Solids:
        """Return the parts of all."""
        names = ("center", "axes", "half", "ring", "round")
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def turned(self, rotation: Tensor) -> Solids:
        """Return the solids turned by a rotation `[3, 3]` about the origin."""
        return replace(self, center=self.center @ rotation.T, axes=self.axes @ rotation.T)

    def fitted(self, side: float) -> tuple[Solids, float]:
        """Return the solids centered and scaled until their longest extent is `side`, and the factor."""
        around = self.ring >= 0
        flat = torch.where(self.half.isinf(), 0.0, self.half)
        reach = (self.axes.abs() * flat[:, :, None]).sum(1)  # of boxes, [K, 3]
        turning = torch.linalg.vector_norm(self.axes[:, :2], dim=1) * (self.ring + flat[:, 0])[:, None]
        reach = (
            torch.where(around[:, None], turning + self.axes[:, 2].abs() * flat[:, 2:], reach) + self.round[:, None]
        )
        low, high = (self.center - reach).amin(0), (self.center + reach).amax(0)
        factor = side / float((high - low).max())
        moved = replace(
            self,
            center=(self.center - (low + high) / 2) * factor,
            half=self.half * factor,
            ring=torch.where(around, self.ring * factor, self.ring),
            round=self.round * factor,
        )
        return moved, factor

    def field(
        self, resolution: int, *, band: float = 3.0, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the union's signed distances on the voxels within `band` of its surface.

        Args:
            resolution: grid side R; samples sit at cell centers, (i + 0.5) / R - 0.5.
            band: half width in voxels.
            device: where to compute; the CPU by default.

        Returns:
            int32 `[N, 3]`, rows sorted, and float32 `[N]` in -1..1 in units of the band, negative inside. Exact to
            rounding, save inside where parts overlap: there the nearest way out is searched for, and found too long
            by less than 0.06 voxel in 999 of 1000.

        Raises:
            ValueError: no voxel lies within the band.
        """
        parts = self._in_voxels(resolution, device)
        corner, which = parts._bricks(resolution, band)
        keys = (corner[:, 0] * resolution + corner[:, 1]) * resolution + corner[:, 2]
        keys, brick = torch.unique(keys, return_inverse=True)
        corners = torch.stack([keys // resolution**2, keys // resolution % resolution, keys % resolution], 1)
        local = _cells(_BRICK, keys.device)
        single = parts._distance(which, (corner[:, None] + local).float())  # [pairs, voxels of a brick]
        union = single.new_full((len(keys), len(local)), math.inf)
        union.scatter_reduce_(0, brick[:, None].expand_as(single), single, "amin")
        hidden = union.new_zeros(union.shape, dtype=torch.int32)
        # The way out of the deepest part can end within another only if that other is nearer than the way is long.
        hidden.index_add_(0, brick, (single < -union[brick]).int())
        hidden_at = ((union < 0) & (union >= -band) & (hidden > 1)).nonzero()
        if len(hidden_at):
            points = (corners[hidden_at[:, 0]] + local[hidden_at[:, 1]]).float()
            depth = parts._ways_out(points, *_listed(which, brick, hidden_at[:, 0]))
            union[hidden_at.unbind(1)] = torch.minimum(union[hidden_at.unbind(1)], -depth)
        index = (corners[:, None] + local).reshape(-1, 3)
        distance = union.view(-1)
        near = ((distance.abs() <= band) & ((index >= 0) & (index < resolution)).all(1)).nonzero()[:, 0]
        if len(near) == 0:
            raise ValueError("no voxel lies within the band of the solids: they are outside the grid")
        index, distance = index[near], distance[near]
        order = ((index[:, 0] * resolution + index[:, 1]) * resolution + index[:, 2]).argsort()
        distance = torch.where(distance < 0, distance.clamp(max=-_SMALLEST_INSIDE), distance)
        return index[order].int(), distance[order] / band

    def _in_voxels(self, resolution: int, device: torch.device | None) -> Solids:
        """Return the solids in float32 and voxels, where sample i stands at i."""
        return Solids(
            center=((self.center + 0.5) * resolution - 0.5).to(device, torch.float32),
            axes=self.axes.to(device, torch.float32),
            half=(self.half * resolution).to(device, torch.float32),
            ring=torch.where(self.ring >= 0, self.ring * resolution, self.ring).to(device, torch.float32),
            round=(self.round * resolution).to(device, torch.float32),
        )

    def _bricks(self, resolution: int, band: float) -> tuple[Tensor, Tensor]:
        """Return bricks near each part: their first voxels int64 `[P, 3]`, and the part of each `[P]`.

        Halved from the whole grid down. A brick deep inside one part is kept, as its sign hides other parts.
        """
        side = _BRICK * 2 ** max(0, math.ceil(math.log2(resolution / _BRICK)))
        which = torch.arange(len(self.ring), device=self.ring.device)
        corner = which.new_zeros(len(which), 3)
        while True:
            middle = corner.float() + (side - 1) / 2
            # Ways out lead at most a band away, over voxels half a brick's diagonal from its middle.
            near = self._distance(which, middle[:, None])[:, 0] <= band + math.sqrt(3) * (side - 1) / 2 + 1e-3
            corner, which = corner[near], which[near]
            if side == _BRICK:
                return corner, which
            side //= 2
            corner = (corner[:, None] + _cells(2, which.device) * side).reshape(-1, 3)
            which = which.repeat_interleave(8)

    def _distance(self, which: Tensor, points: Tensor) -> Tensor:
        """Return signed distances `[P, n]` of points `[P, n, 3]` to one part each, `which` `[P]`."""
        local = torch.einsum("pij,pnj->pni", self.axes[which], points - self.center[which, None])
        x, y, z = local.unbind(-1)
        ring = self.ring[which, None]
        x, y = torch.where(ring >= 0, torch.hypot(x, y) - ring, x).abs(), torch.where(ring >= 0, 0.0, y.abs())
        beyond = torch.stack([x, y, z.abs()], -1) - self.half[which, None]
        outside = torch.linalg.vector_norm(beyond.clamp(min=0), dim=-1)
        return outside + beyond.amax(-1).clamp(max=0) - self.round[which, None]

    def _ways_out(self, points: Tensor, listed: Tensor, real: Tensor) -> Tensor:
        """Return how far points `[F, 3]` inside are from the outside, as far as the parts near them tell. `[F]`

        Args:
            points: in voxels.
            listed: int64 `[F, K]`: the parts near each.
            real: bool `[F, K]`: which of them don't only fill the row.
        """
        found = points.new_empty(len(points))
        first = _directions(_DIRECTIONS, points.device)
        cone = _directions(_IN_CONE, points.device)
        for rows in torch.arange(len(points), device=points.device).split(
            max(1, _AT_ONCE[points.device.type] // (_DIRECTIONS * listed.shape[1]))
        ):
            place = (points[rows], listed[rows], real[rows])
            length, way = self._shortest(*place, first.expand(len(rows), -1, -1))
            for spread in _CONES:
                tried = torch.nn.functional.normalize(way[:, None] + spread * cone, dim=-1)
                shorter, other = self._shortest(*place, tried)
                way = torch.where((shorter < length)[:, None], other, way)
                length = torch.minimum(length, shorter)
            found[rows] = length
        return found

    def _shortest(self, points: Tensor, listed: Tensor, real: Tensor, ways: Tensor) -> tuple[Tensor, Tensor]:
        """Return the length `[F]` and direction `[F, 3]` of the shortest of the ways out `[F, D, 3]`."""
        count, number = listed.shape
        gone = points.new_zeros(ways.shape[:2])
        left, moved = gone, gone
        for _ in range(_STEPS):
            at = points[:, None] + gone[..., None] * ways
            single = self._distance(listed.view(-1), at.repeat_interleave(number, 0)).view(count, number, -1)
            before, left = left, -single.masked_fill(~real[..., None], math.inf).amin(1)
            # By the secant: towards a face it passes aslant, a way's distance from it falls by less than its length.
            faster = (moved / (before - left)).nan_to_num(1.0, 1.0, 1.0).clamp(1, _LONGEST_STEP)
            moved = torch.where(left > 0, left * faster, left)
            gone = (gone + moved).clamp(min=0)
        gone = torch.where(left.abs() > _LEFT, math.inf, gone)
        length, best = gone.min(1)
        return length, ways[torch.arange(count, device=ways.device), best]


def _cells(side: int, device: torch.device) -> Tensor:
    """Return the cells of a cube, z fastest. int64 `[side^3, 3]`"""
    steps = torch.arange(side, device=device)
    return torch.cartesian_prod(steps, steps, steps)


def _directions(count: int, device: torch.device) -> Tensor:
    """Return directions spread evenly over the sphere, on a spiral. float32 `[count, 3]`"""
    number = torch.arange(count, device=device, dtype=torch.float32) + 0.5
    z = 1 - 2 * number / count
    turn = number * math.pi * (3 - math.sqrt(5))
    flat = (1 - z * z).sqrt()
    return torch.stack([flat * turn.cos(), flat * turn.sin(), z], 1)


def _listed(which: Tensor, brick: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts near each wanted brick, int64 `[F, K]`, and which of them are no filling, bool `[F, K]`."""
    order = brick.argsort()
    sizes = torch.bincount(brick)
    starts = sizes.cumsum(0) - sizes
    along = torch.arange(int(sizes[wanted].max()), device=which.device)
    real = along < sizes[wanted][:, None]
    places = torch.where(real, starts[wanted][:, None] + along, starts[wanted][:, None])
    return which[order][places], real
