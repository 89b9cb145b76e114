"""Inside or outside for every voxel of a band, with far fewer winding numbers than voxels.

Two neighboring voxels whose distances to the surface sum to more than one step cannot have the surface between
them. Within a brick, voxels joined by such steps lie in one connected piece of space, and one of them speaks for
all where the winding number cannot pass one half inside the piece: nowhere on a closed surface, and on an open
one where the boundary is far enough (see `_steepest`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.geometry.winding import checked_winding_number

BRICK = 8
# Bricks whose pieces are found at a time (about 10 KB each).
_BRICKS = 1 << 12
# Joins no voxel to others that stands on the surface or nearly so: its own winding number is no answer for them.
_SLACK = 0.02
# A voxel this near stands on the surface. Its own winding number means nothing; its surroundings are asked.
_ON_SURFACE = 5e-4
_SURROUNDINGS = (0.05, 0.037, 0.043)
# What an approximate winding number may be wrong by (see `winding`).
_TOLERANCE = 0.02
# Pairs of a brick and a piece of the boundary at a time, and at most: beyond it, asking every voxel is cheaper.
_BOUNDARY_PAIRS = 1 << 22
_MOST_BOUNDARY_PAIRS = 1 << 29
_PIECE = 4.0


def inside_voxels(squared: Tensor, origins: Tensor, place: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    """Return whether the winding number of each wanted voxel exceeds one half. bool `[N]`

    Args:
        squared: squared distances to the surface `[B * 512]`, brick by brick; inf where beyond the band, 0 where
            unknown.
        origins: lowest voxel of each brick, int64 `[B, 3]`.
        place: where the wanted voxels stand in `squared`, int64 `[N]`.
        vertices: float64 `[V, 3]` in voxel units, equal ones welded.
        faces: int64 `[F, 3]`.
    """
    corners = vertices[faces]
    if place.is_cuda:  # the kernel is faster than the search for pieces
        inside = checked_winding_number(positions(origins, place), corners) > 0.5
    else:
        inside = _ask_speakers(squared, origins, place, vertices, faces)
    touching = (squared[place] < _ON_SURFACE**2).nonzero().squeeze(1)
    if len(touching):
        way = torch.tensor([-1, 1], device=place.device)
        around = torch.cartesian_prod(way, way, way) * vertices.new_tensor(_SURROUNDINGS)  # [8, 3]
        points = positions(origins, place[touching])[:, None] + around
        everywhere = (checked_winding_number(points.reshape(-1, 3), corners) > 0.5).view(-1, len(around)).all(1)
        inside[touching] = everywhere
    return inside


def _ask_speakers(squared: Tensor, origins: Tensor, place: Tensor, vertices: Tensor, faces: Tensor) -> Tensor:
    corners = vertices[faces]
    speaker = place // BRICK**3 * BRICK**3 + _pieces(squared)[place]
    speaks = torch.zeros(len(squared), dtype=torch.bool, device=place.device)
    speaks[speaker] = True
    asked = speaks.nonzero().squeeze(1)
    winding = torch.empty(len(squared), device=place.device)
    winding[asked] = checked_winding_number(positions(origins, asked), corners).float()
    said = winding[speaker]
    slope = _steepest(origins, vertices, faces)
    if slope is not None:
        away = (positions(origins, place) - positions(origins, speaker)).norm(dim=1)
        doubt = (said - 0.5).abs() <= torch.where(away > 0, slope[place // BRICK**3] * away + _TOLERANCE, 0)
        alone = doubt.nonzero().squeeze(1)
        said[alone] = checked_winding_number(positions(origins, place[alone]), corners).float()
    return said > 0.5


def positions(origins: Tensor, place: Tensor) -> Tensor:
    """Return the grid coordinates of places in the buffer. float64 `[N, 3]`"""
    inner = place % BRICK**3
    within = torch.stack([inner // BRICK**2, inner // BRICK % BRICK, inner % BRICK], dim=1)
    return (origins[place // BRICK**3] + within).double()


def _pieces(squared: Tensor) -> Tensor:
    """Return for every voxel the lowest number (0..511) in its brick that it is joined to. int16 `[B * 512]`"""
    labels = torch.empty(len(squared), dtype=torch.int16, device=squared.device)
    step = _BRICKS * BRICK**3
    for start in range(0, len(squared), step):
        part = squared[start : start + step].view(-1, BRICK**3)
        # Bricks last, so that each step of a sweep reads and writes whole rows.
        distance = part.T.contiguous().sqrt_().view(BRICK, BRICK, BRICK, -1)
        label = torch.arange(BRICK**3, dtype=torch.int16, device=squared.device)
        label = label.view(BRICK, BRICK, BRICK, 1).expand_as(distance).contiguous()
        walls = [_walls(distance, axis) for axis in range(3)]
        while True:
            before = label.clone()
            for axis, wall in enumerate(walls):
                rows, gaps = label.unbind(axis), wall.unbind(axis)
                for i in range(1, BRICK):
                    torch.minimum(rows[i], rows[i - 1] + gaps[i - 1], out=rows[i])
                for i in reversed(range(BRICK - 1)):
                    torch.minimum(rows[i], rows[i + 1] + gaps[i], out=rows[i])
            if torch.equal(before, label):
                break
        labels[start : start + step] = label.view(BRICK**3, -1).T.reshape(-1)
    return labels


def _walls(distance: Tensor, axis: int) -> Tensor:
    """Return 0 where a step along the axis cannot cross the surface, else more than any label. int16"""
    low, high = distance.narrow(axis, 0, BRICK - 1), distance.narrow(axis, 1, BRICK - 1)
    return (low + high <= 1 + _SLACK).to(torch.int16) * (1 << 14)


def _steepest(origins: Tensor, vertices: Tensor, faces: Tensor) -> Tensor | None:
    """Return how fast the winding number can change within each brick `[B]`; None if nowhere (a closed surface).

    Away from the surface, the winding number changes like the potential of a current round the surface's
    boundary (Biot and Savart): by at most the sum of length / (4 pi distance^2) over its edges a unit of way. The
    jumps by one across the surface left out, that holds along any straight way that keeps off the boundary, so
    also between two voxels of a brick that the boundary doesn't come near.
    """
    start, end, times = _boundary(faces)
    if len(start) == 0:
        return None
    a, b = vertices[start], vertices[end]
    parts = ((b - a).norm(dim=1) / _PIECE).ceil().long().clamp(min=1)
    if int(parts.sum()) * len(origins) > _MOST_BOUNDARY_PAIRS:
        return torch.full((len(origins),), torch.inf, device=origins.device)
    rows = torch.arange(len(parts), device=parts.device).repeat_interleave(parts)
    number = torch.arange(len(rows), device=parts.device) - (parts.cumsum(0) - parts)[rows]
    share = (number + 0.5) / parts[rows]
    middle = (a[rows] + share[:, None] * (b[rows] - a[rows])).float()
    length = ((b - a).norm(dim=1) / parts)[rows].float()
    weight = length * times[rows].float()
    centers = origins.float() + (BRICK - 1) / 2
    margin = 3**0.5 * (BRICK - 1) / 2 + length / 2
    steepest = torch.empty(len(origins), device=origins.device)
    step = max(1, _BOUNDARY_PAIRS // len(rows))
    for chunk in range(0, len(origins), step):
        away = torch.cdist(centers[chunk : chunk + step], middle, compute_mode="donot_use_mm_for_euclid_dist")
        steepest[chunk : chunk + step] = away.sub_(margin).clamp_(min=0).square_().reciprocal_().mv(weight)
    return steepest / (4 * torch.pi)


def _boundary(faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the edges that faces run along more often in one direction: two corners and the surplus. int64 `[E]`"""
    start = faces.reshape(-1)
    end = faces.roll(-1, 1).reshape(-1)
    count = int(faces.max()) + 1
    key, edge = torch.unique(torch.minimum(start, end) * count + torch.maximum(start, end), return_inverse=True)
    surplus = torch.zeros_like(key).index_add_(0, edge, torch.sign(end - start))
    key, surplus = key[surplus != 0], surplus[surplus != 0].abs()
    return key // count, key % count, surplus
