"""The distances and crossings of `bricks` in plain PyTorch, on any device: the twin that the fast ones are held to.

Works in voxel units with sample (i, j, k) at its integer coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.boundary_reference import side_of_edge
from sdf_vqvae.geometry.voxelizer.triangle_distance import PAIRS, Triangles, refine

BRICK = 8
_COARSEST = 64
# Pairs of a triangle and a brick at a time; each has 512 samples.
_BRICK_PAIRS = 1 << 9


def frames(corners: Tensor) -> Triangles:
    """Return the triangles prepared for distances."""
    return Triangles(corners)


def find_bricks(
    triangles: Triangles, corners: Tensor, mesh: Tensor, count: int, resolution: int, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Twin of `bricks_numba.find_bricks`, with the same arguments and result."""
    size = _COARSEST
    low = ((triangles.low - reach) / size).floor().long().clamp(min=0)  # [F, 3]
    high = ((triangles.high + reach) / size).floor().long().clamp(max=(resolution - 1) // size)
    spans = (high - low + 1).clamp(min=0)
    pairs = spans.prod(1)
    ends = torch.cumsum(pairs, 0)
    budget = PAIRS[pairs.device.type]
    side = (resolution + BRICK - 1) // BRICK
    owners, keys = [], []
    start = 0
    while start < len(triangles):
        base = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, base + budget, right=True)))
        rows = torch.arange(start, stop, device=pairs.device).repeat_interleave(pairs[start:stop])
        number = torch.arange(len(rows), device=pairs.device) - (ends[rows] - pairs[rows] - base)
        _, span_y, span_z = spans[rows].unbind(1)
        cell = torch.stack([number // (span_y * span_z), number // span_z % span_y, number % span_z])
        cell = ((low[rows].T + cell) * size).int()
        owner, cell = refine(triangles, rows, cell, size=size, target=BRICK, band=reach, resolution=resolution)
        x, y, z = (cell // BRICK).long()
        owners.append(owner)
        keys.append(((mesh[owner] * side + x) * side + y) * side + z)
        start = stop
    key, order = torch.sort(torch.cat(keys), stable=True)
    bricks, sizes = torch.unique_consecutive(key, return_counts=True)
    return bricks, torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), torch.cat(owners)[order].int()


def distances(triangles: Triangles, origins: Tensor, starts: Tensor, members: Tensor, band: float) -> Tensor:
    """Twin of `bricks_numba.distances`, with the same arguments and result."""
    squared = torch.full((len(origins) * BRICK**3,), torch.inf, device=origins.device)
    line = torch.arange(BRICK, device=origins.device)
    offsets = torch.cartesian_prod(line, line, line)  # [512, 3]
    number = torch.arange(BRICK**3, device=origins.device)[:, None]
    for owner, place in _pairs(starts, members):
        value = triangles.squared_distance(owner, origins[place].T.float(), offsets.float())  # [512, p]
        near = value <= band * band
        squared.scatter_reduce_(0, (place * BRICK**3 + number)[near], value[near], "amin")
    return squared.view(-1, BRICK**3)


def crossings(corners: Tensor, columns: Tensor, origins: Tensor, starts: Tensor, members: Tensor) -> Tensor:
    """Twin of `bricks_numba.crossings`, with the same arguments and result."""
    steps = torch.zeros(len(origins), BRICK**2, BRICK, dtype=torch.int32, device=origins.device)
    for owner, place in _pairs(starts, members):
        _add_crossings(corners[owner], origins[place], place, steps)
    within = steps.cumsum(2, dtype=torch.int32)
    # Bricks of one column follow each other from below.
    total = within[:, :, -1].cumsum(0, dtype=torch.int32)
    below = total - within[:, :, -1]
    first = torch.searchsorted(columns, columns)
    return (within + (below - below[first])[:, :, None]).view(-1, BRICK**3)


def _pairs(starts: Tensor, members: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parts of the pairs of a triangle and a brick, int64 `[p]` each."""
    brick = torch.arange(len(starts) - 1, device=starts.device).repeat_interleave(starts.diff())
    yield from zip(members.long().split(_BRICK_PAIRS), brick.split(_BRICK_PAIRS), strict=True)


def _add_crossings(corners: Tensor, origins: Tensor, place: Tensor, steps: Tensor) -> None:
    """Add the crossings of triangles `[p, 3, 3]` to the rows `place` of `steps`, whose bricks begin at `origins`."""
    line = torch.arange(BRICK, device=corners.device)
    column = origins[:, None, :2] + torch.cartesian_prod(line, line)  # [p, 64, 2]
    xy = corners[:, None, :, :2] - column[:, :, None].double()  # [p, 64, 3, 2]
    turns = torch.zeros(xy.shape[:2], dtype=torch.int32, device=corners.device)
    for i in range(3):
        a, b = xy[:, :, i], xy[:, :, (i + 1) % 3]
        above, beneath = a[..., 1] > 0, b[..., 1] > 0
        side = side_of_edge(a[..., 0], a[..., 1], b[..., 0], b[..., 1])
        turns += (~above & beneath & (side > 0)).int() - (above & ~beneath & (side < 0)).int()
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    low, high = corners[..., 2].amin(1), corners[..., 2].amax(1)
    slope = xy[:, :, 0, 0] * normal[:, None, 0] + xy[:, :, 0, 1] * normal[:, None, 1]
    height = corners[:, None, 0, 2] + slope / normal[:, None, 2]
    height = torch.where(normal[:, None, 2] == 0, low[:, None], height).clamp(low[:, None], high[:, None])
    z = height.floor().long() + 1 - origins[:, None, 2]
    row, col = ((turns != 0) & (z >= 0) & (z < BRICK)).nonzero(as_tuple=True)
    at = place[row] * BRICK**3 + col * BRICK + z[row, col]
    steps.view(-1).index_add_(0, at, -turns[row, col])
