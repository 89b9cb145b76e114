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
_BRICK, _DIVIDED, _COARSEST = 4, 4, 64
"""Voxels along a brick, into how many along each side bricks are divided, and voxels along the first ones."""
_SMALLEST_INSIDE = 1e-4  # an inside voxel must not read as zero, which counts as outside
# Where parts overlap, the nearest way out is looked for from starts around each voxel, the best of which go on.
_STARTS, _KEPT = 48, 8
_STEPS_OF_ALL, _STEPS = 2, 6
_ACTIVE = 3
"""Parts near the end of a way that are taken for half-spaces."""
_FLATTEST = 1e-6
"""Volume spanned by slopes that are taken for different."""
_LEFT = 1e-3
"""Voxels; a way whose end lies deeper than this is none."""
_AT_ONCE = {"cpu": 2**16, "cuda": 2**24}
"""Distances computed in one go: as a cache holds, or as keep a GPU busier than launching them."""


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

    def first(self, count: int | None) -> Solids:
        """Return the first `count` parts, or all."""
        return Solids(**{name: value[:count] for name, value in vars(self).items()})

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

    def most_voxels(self, resolution: int, *, band: float = 3.0) -> float:
        """Return an upper estimate of the voxels of `field`: as if the parts had sharp edges and did not overlap."""
        across, along, up = (2 * (self.half + self.round[:, None] + band / resolution)).unbind(1)
        inner, outer = self.ring - across / 2, self.ring + across / 2
        round = math.pi * (outer.square() - inner.clamp(min=0).square())
        volume = torch.where(self.ring >= 0, round, across * along) * up
        return float(volume.sum()) * resolution**3

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
            a thousandth of a voxel, save that inside, where parts overlap, the search for the nearest way out takes
            a longer one for a few voxels in a million.

        Raises:
            ValueError: no voxel lies within the band.
        """
        parts = self._in_voxels(resolution, torch.float32, device)
        corner, which = parts._bricks(resolution, band)
        side = math.ceil(resolution / _COARSEST) * _COARSEST
        keys, brick, parts_there = torch.unique(_key(corner, side), return_inverse=True, return_counts=True)
        cells = _key(_cells(_BRICK, keys.device), side)
        union = parts.center.new_full((len(keys), len(cells)), math.inf)
        for rows in _slices(len(which), len(cells), keys.device):
            single = parts._taken(which[rows])._in_bricks(corner[rows])
            union.scatter_reduce_(0, brick[rows, None].expand_as(single), single, "amin")
        shared = (parts_there[brick] > 1).nonzero()[:, 0]
        if len(shared):
            single = parts._taken(which[shared])._in_bricks(corner[shared])
            # The way out of the deepest part can end in another only if that other is nearer than the way is long.
            others = torch.zeros_like(union, dtype=torch.int16)
            others.index_add_(0, brick[shared], (single < -union[brick[shared]]).short())
            place, cell = ((others > 1) & (union >= -band)).nonzero().T
            if len(place):
                points = _voxels(keys[place] + cells[cell], side).double()
                depth = self._in_voxels(resolution, torch.float64, device)._ways_out(points, band)
                union[place, cell] = torch.minimum(union[place, cell], -depth.float())
        short = torch.int32 if side**3 < 2**31 else torch.int64  # which is sorted faster
        place, cell = (union.abs() <= band).nonzero().T
        key, order = (keys.to(short)[place] + cells.to(short)[cell]).sort()
        index, distance = _voxels(key, side).int(), union[place, cell][order]
        if side > resolution:
            on_grid = (index < resolution).all(1)
            index, distance = index[on_grid], distance[on_grid]
        if len(index) == 0:
            raise ValueError("no voxel lies within the band of the solids: they are outside the grid")
        return index, torch.where(distance < 0, distance.clamp(max=-_SMALLEST_INSIDE), distance) / band

    def _in_voxels(self, resolution: int, dtype: torch.dtype, device: torch.device | None) -> Solids:
        """Return the solids in voxels, where sample i stands at i."""
        return Solids(
            center=((self.center + 0.5) * resolution - 0.5).to(device, dtype),
            axes=self.axes.to(device, dtype),
            half=(self.half * resolution).to(device, dtype),
            ring=torch.where(self.ring >= 0, self.ring * resolution, self.ring).to(device, dtype),
            round=(self.round * resolution).to(device, dtype),
        )

    def _taken(self, which: Tensor) -> Solids:
        """Return some of the parts, by their numbers `[P]`."""
        return Solids(**{name: value[which] for name, value in vars(self).items()})

    def _bricks(self, resolution: int, band: float) -> tuple[Tensor, Tensor]:
        """Return bricks near each part: their first voxels int64 `[P, 3]`, and the part of each `[P]`.

        Divided from the whole grid down. A brick deep inside one part is kept, as its sign hides other parts.
        """
        side, count = _COARSEST, len(self.ring)
        whole = _cells(math.ceil(resolution / side), self.ring.device) * side
        corner, which = whole.repeat(count, 1), torch.arange(count, device=whole.device).repeat_interleave(len(whole))
        while True:
            parts, middle = self._taken(which), corner + (side - 1) / 2
            # Ways out lead at most a band away, over voxels half a brick's diagonal from its middle.
            reach = band + math.sqrt(3) * (side - 1) / 2 + 1e-3
            near = (parts._distance(parts._local(middle[:, None]))[:, 0] <= reach).nonzero()[:, 0]
            corner, which = corner[near], which[near]
            if side == _BRICK:
                return corner, which
            side //= _DIVIDED
            corner = (corner[:, None] + _cells(_DIVIDED, which.device) * side).view(-1, 3)
            which = which.repeat_interleave(_DIVIDED**3)

    def _local(self, points: Tensor) -> Tensor:
        """Return points `[K, n, 3]` in the axes of each part. `[K, 3, n]`"""
        # Not as a matrix product, which a GPU may round to ten bits.
        away = (points - self.center[:, None]).mT
        return (self.axes[..., None] * away[:, None]).sum(2)

    def _in_bricks(self, corner: Tensor) -> Tensor:
        """Return each part's signed distances in a brick of its own that begins at `corner` `[K, 3]`. `[K, n]`"""
        first = self._local(corner[:, None].to(self.center.dtype))
        x, y, z = (self.axes[..., None] * torch.arange(_BRICK, device=corner.device)).unbind(2)
        plane = (first + x)[..., None] + y[:, :, None]
        return self._distance((plane[..., None] + z[:, :, None, None]).flatten(2))

    def _distance(self, local: Tensor) -> Tensor:
        """Return signed distances `[K, n]` of points in the axes of each part `[K, 3, n]`, which are used up."""
        ring = self.ring[:, None]
        local[:, 0] = torch.where(ring >= 0, torch.hypot(local[:, 0], local[:, 1]) - ring, local[:, 0])
        beyond = local.abs_().sub_(self.half[..., None])  # of what goes round: minus infinity along y
        inside = beyond.amax(1).clamp_(max=0).sub_(self.round[:, None])
        # On a CPU a norm across rows takes ten times as long.
        return beyond.clamp_(min=0).square_().sum(1).sqrt_().add_(inside)

    def _slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return each part's signed distances `[K, n]` of points `[K, n, 3]`, and the slopes there `[K, n, 3]`."""
        local = self._local(points)
        flat, around = local[:, :2], self.ring[:, None, None] >= 0
        across = torch.hypot(local[:, :1], local[:, 1:2])
        section = torch.cat([torch.where(around, across - self.ring[:, None, None], local[:, :1]), local[:, 1:]], 1)
        beyond = section.abs() - self.half[..., None]
        deep, face = beyond.max(1, keepdim=True)
        outside = beyond.clamp(min=0)
        away = torch.linalg.vector_norm(outside, dim=1, keepdim=True)
        slope = torch.where(away > 0, outside / away, torch.zeros_like(beyond).scatter_(1, face, 1.0))
        slope = slope.copysign(section)
        slope = torch.cat([torch.where(around, slope[:, :1] * flat / across, slope[:, :2]), slope[:, 2:]], 1)
        distance = (away + deep.clamp(max=0))[:, 0] - self.round[:, None]
        return distance, (self.axes[..., None] * slope[:, :, None]).sum(1).mT

    def _ways_out(self, points: Tensor, band: float) -> Tensor:
        """Return how far points `[F, 3]` inside are from the outside, infinity beyond the band. `[F]`"""
        depth, sure = [], []
        for rows in _slices(len(points), len(self.ring), points.device):
            distance, slope = self._slopes(points[rows].expand(len(self.ring), -1, -1))
            deepest, which = distance.min(0)
            end = points[rows] - deepest[:, None] * slope[which, torch.arange(len(which), device=which.device)]
            # No way is shorter than that out of the deepest part alone, often it leads outside at once.
            sure.append(self._distance(self._local(end.expand(len(self.ring), -1, -1))).amin(0) >= -_LEFT)
            depth.append(-deepest)
        found, searched = torch.cat(depth), (~torch.cat(sure)).nonzero()[:, 0]
        for rows in _slices(len(searched), max(_STARTS * _ACTIVE, len(self.ring)), points.device):
            found[searched[rows]] = self._searched(points[searched[rows]], band)
        return found

    def _searched(self, points: Tensor, band: float) -> Tensor:
        """Return the same of points `[F, 3]` whose way out leads through several parts. `[F]`

        From starts around a point, each step takes the parts near its end for half-spaces there, and goes to the
        place outside them all that is nearest to the point.
        """
        single = self._distance(self._local(points.expand(len(self.ring), -1, -1)))
        number = int((single < band).sum(0).max())
        near = self._taken(single.topk(number, 0, largest=False)[1].T.reshape(-1))
        point = points[:, None]
        end = point + (band * _around(_STARTS)).to(points)
        for step in range(_STEPS):
            distance, slope = near._nearest(end)
            if step == _STEPS_OF_ALL:
                # As deep as an end lies, so much longer may its way become.
                length = torch.linalg.vector_norm(end - point, dim=-1) - 2 * distance[..., 0].clamp(max=0)
                best = (torch.arange(len(end), device=end.device)[:, None], length.topk(_KEPT, largest=False)[1])
                end, distance, slope = end[best], distance[best], slope[best]
            way = _shortest(slope, (slope * (end - point)[:, :, None]).sum(-1) - distance)
            length = torch.linalg.vector_norm(way, dim=-1).clamp(max=band + 1)
            end = point + torch.nn.functional.normalize(way, dim=-1) * length[..., None]
        left = near._nearest(end)[0][..., 0]
        return torch.where(left >= -_LEFT, length, math.inf).amin(1)

    def _nearest(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nearest of each point's own parts: distances `[F, n, k]` and slopes `[F, n, k, 3]`, in order.

        Args:
            points: `[F, n, 3]`, where the first K/F parts are those of the first n points, and so on.
        """
        count, number = len(points), len(self.ring) // len(points)
        distance, slope = self._slopes(points.repeat_interleave(number, 0))
        distance, which = distance.view(count, number, -1).topk(min(number, _ACTIVE), 1, largest=False)
        return distance.mT, slope.view(count, number, -1, 3).take_along_dim(which[..., None], 1).transpose(1, 2)


def _shortest(slope: Tensor, least: Tensor) -> Tensor:
    """Return the shortest vectors `[..., 3]` whose products with each of `slope` `[..., K, 3]` are at least `least`.

    It is the longest of those that one, two or three (K is 3 at most) of the slopes alone push there.
    """
    pair = (slope, slope.roll(1, -2))
    pushing = torch.stack([*pair, torch.linalg.cross(*pair)], -2)
    bound = torch.stack([least, least.roll(1, -1), torch.zeros_like(least)], -1)
    if slope.shape[-2] == _ACTIVE:
        pushing = torch.cat([pushing, slope[..., None, :, :]], -3)
        bound = torch.cat([bound, least[..., None, :]], -2)
    crossed = torch.linalg.cross(pushing.roll(-1, -2), pushing.roll(1, -2))
    volume = (pushing * crossed).sum(-1)[..., :1]
    way = (bound[..., None] * crossed).sum(-2) / volume
    push = (way[..., None, :] * crossed).sum(-1) / volume
    fits = (push >= -1e-9).all(-1, keepdim=True) & (volume.abs() > _FLATTEST)
    way = torch.cat([least[..., None].clamp(min=0) * slope, torch.where(fits, way, 0.0)], -2)
    longest = torch.linalg.vector_norm(way, dim=-1).argmax(-1)
    return way.take_along_dim(longest[..., None, None], -2)[..., 0, :]


def _cells(side: int, device: torch.device) -> Tensor:
    """Return the cells of a cube, z fastest. int64 `[side^3, 3]`"""
    return _voxels(torch.arange(side**3, device=device), side)


def _key(index: Tensor, side: int) -> Tensor:
    """Return the places of voxels `[N, 3]` in a grid, which add up, and sort as rows do. `[N]`"""
    return (index[:, 0] * side + index[:, 1]) * side + index[:, 2]


def _voxels(key: Tensor, side: int) -> Tensor:
    """Return the voxels at places of a grid. `[N, 3]`"""
    return torch.stack([key // side**2, key // side % side, key % side], 1)


def _slices(count: int, each: int, device: torch.device) -> list[slice]:
    """Return slices of rows with `each` distances, as many as are computed in one go."""
    rows = max(1, _AT_ONCE[device.type] // each)
    return [slice(start, start + rows) for start in range(0, count, rows)]


def _around(count: int) -> Tensor:
    """Return points spread evenly in the unit ball but for its middle, on a spiral. float64 `[count, 3]`"""
    number = torch.arange(count, dtype=torch.float64) + 0.5
    z = 1 - 2 * number / count
    turn = number * math.pi * (3 - math.sqrt(5))
    flat = (1 - z * z).sqrt()
    away = (0.005 + 0.995 * (number * (math.sqrt(5) - 1) / 2 % 1)) ** (1 / 3)
    return torch.stack([flat * turn.cos(), flat * turn.sin(), z], 1) * away[:, None]
