"""A triangle mesh to a sparse distance field: exact distances inside a band, signs by winding number.

Works in voxel units with sample (i, j, k) at its integer coordinates. Cost and memory grow with the surface
(triangles and voxels near it), not with the volume of the grid and not with the largest triangle: pairs of a
triangle and a cubic cell are refined from coarse cells to voxels, and pairs out of reach are dropped on the way.
Knows nothing of files and of normalization; identical distances on CPU and CUDA.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.geometry.sheets import inside_out, missed_faces
from sdf_vqvae.geometry.signs import BRICK, inside_voxels, positions
from sdf_vqvae.geometry.triangle_distance import PAIRS, Triangles, corner_offsets, refine

MAX_RESOLUTION = 1024
_COARSEST = 64
# An inside voxel this close to a face within the solid must not read as zero, which counts as outside.
_SMALLEST_INSIDE = 1e-4
_SHELL_HALF_THICKNESS = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class VoxelField:
    """The voxels within the band of a surface."""

    index: Tensor
    """int32 `[N, 3]`, rows sorted."""
    distance: Tensor
    """float32 `[N]` in -1..1, in units of the band; negative inside."""
    sign_method: str
    """`winding`, `winding+shell` (open parts became a shell one voxel thick) or `none` (unsigned)."""


def voxelize(
    vertices: Tensor,
    faces: Tensor,
    *,
    resolution: int,
    band: float = 3.0,
    signed: bool = True,
    watertight: bool = False,
) -> VoxelField:
    """Compute the distance field of a mesh on the voxels within `band` of it.

    Args:
        vertices: `[V, 3]` in the world cube [-0.5, 0.5]^3; the computation runs on their device.
        faces: int `[F, 3]`.
        resolution: grid side R; samples sit at cell centers, (i + 0.5) / R - 0.5.
        band: half width of the band in voxels.
        signed: negative where the generalized winding number exceeds 0.5 (Jacobson et al., 2013). A mesh whose
            faces look inward as a whole is turned round first.
        watertight: the mesh is known to be closed, so the search for open sheets is left out.

    Where the surface of the winding number misses more than a tenth of the mesh's area (open sheets), the
    missed faces become a closed shell one voxel thick, joined to the rest as a union.

    Raises:
        ValueError: the resolution is out of 8..1024, the band is not in its range, or no voxel lies within it.
    """
    if not 8 <= resolution <= MAX_RESOLUTION:
        raise ValueError(f"resolution must lie in 8..{MAX_RESOLUTION}, got {resolution}")
    if not 0 < band <= resolution:
        raise ValueError(f"band must be a positive number of voxels, at most the resolution, got {band}")
    with _single_threaded(vertices.device):
        return _voxelize((vertices.double() + 0.5) * resolution - 0.5, faces, resolution, band, signed, watertight)


@contextlib.contextmanager
def _single_threaded(device: torch.device) -> Iterator[None]:
    """Keep PyTorch's CPU operations on one thread.

    Thousands of small steps gain a tenth from a second thread; where another program has the second core, waiting
    for each other after every step made them 5 to 50 times slower. libigl's threads are not concerned.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _voxelize(
    vertices: Tensor, faces: Tensor, resolution: int, band: float, signed: bool, watertight: bool
) -> VoxelField:
    """Do the work of `voxelize`; vertices are in voxel units."""
    corners = vertices[faces]  # [F, 3, 3]
    triangles = Triangles(corners)
    pairs = _brick_pairs(triangles, resolution, band)
    bricks = _Bricks(pairs[1], resolution)
    squared = bricks.least_squared_distance(triangles, *pairs, band)
    index, place = bricks.sorted_index((squared <= band * band).nonzero().squeeze(1))
    if len(index) == 0:
        raise ValueError("no voxel lies within the band of the mesh: it is outside the grid or has no triangle")
    distance = squared[place].sqrt()
    method = "none"
    if signed:
        method = "winding"
        if inside_out(corners, watertight=watertight):
            faces, corners = faces.flip(1), corners.flip(1)
        inside = inside_voxels(bricks.known(squared), bricks.origins, place, vertices, faces)
        distance = torch.where(inside, -distance.clamp(min=_SMALLEST_INSIDE), distance)
        missed = None if watertight else missed_faces(corners)
        if missed is not None:
            shell = Triangles(corners[missed])
            pairs = _brick_pairs(shell, resolution, band)
            to_shell = bricks.least_squared_distance(shell, *pairs, band)[place].sqrt_()
            distance = torch.minimum(distance, to_shell - _SHELL_HALF_THICKNESS)
            method = "winding+shell"
    return VoxelField(
        index=index.to(torch.int32), distance=(distance / band).clamp(-1, 1).float(), sign_method=method
    )


def _brick_pairs(triangles: Triangles, resolution: int, band: float) -> tuple[Tensor, Tensor]:
    """Return all pairs of a triangle and a brick that it may reach into: int64 `[P]`, lowest voxel int32 `[3, P]`."""
    size = _COARSEST
    low = ((triangles.low - band) / size).floor().long().clamp(min=0)  # [F, 3]
    high = ((triangles.high + band) / size).floor().long().clamp(max=(resolution - 1) // size)
    spans = (high - low + 1).clamp(min=0)
    counts = spans.prod(1)
    ends = torch.cumsum(counts, 0)
    budget = PAIRS[counts.device.type]
    found = []
    start = 0
    while start < len(triangles):
        base = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, base + budget, right=True)))
        rows = torch.arange(start, stop, device=counts.device).repeat_interleave(counts[start:stop])
        number = torch.arange(len(rows), device=counts.device) - (ends[rows] - counts[rows] - base)
        _, span_y, span_z = spans[rows].unbind(1)
        cell = torch.stack([number // (span_y * span_z), number // span_z % span_y, number % span_z])
        cell = ((low[rows].T + cell) * size).int()
        found.append(refine(triangles, rows, cell, size=size, target=BRICK, band=band, resolution=resolution))
        start = stop
    return torch.cat([triangle for triangle, _ in found]), torch.cat([cell for _, cell in found], dim=1)


class _Bricks:
    """The bricks of 8^3 voxels that some triangle can reach, and buffers of values over their voxels."""

    def __init__(self, bases: Tensor, resolution: int) -> None:
        self.side = (resolution + BRICK - 1) // BRICK
        self.resolution = resolution
        self.table = torch.full((self.side**3,), -1, dtype=torch.int32, device=bases.device)
        self.table[self._keys(bases)] = 0
        keys = (self.table == 0).nonzero().squeeze(1)
        self.table[keys] = torch.arange(len(keys), dtype=torch.int32, device=bases.device)
        self.origins = torch.stack([keys // self.side**2, keys // self.side % self.side, keys % self.side], 1) * BRICK

    def _keys(self, bases: Tensor) -> Tensor:
        x, y, z = (bases // BRICK).long()
        return (x * self.side + y) * self.side + z

    def least_squared_distance(self, triangles: Triangles, triangle: Tensor, bases: Tensor, band: float) -> Tensor:
        """Return the squared distance of every voxel of every brick to the nearest triangle, inf beyond the band."""
        squared = torch.full((len(self.origins) * BRICK**3,), torch.inf, device=bases.device)
        budget = PAIRS[bases.device.type]
        offsets = corner_offsets(1, bases.device)
        step = (offsets * torch.tensor([BRICK**2, BRICK, 1], device=bases.device)).sum(1)
        for rows in torch.arange(len(triangle), device=bases.device).split(budget):
            owners, cells = refine(
                triangles, triangle[rows], bases[:, rows], size=BRICK, target=2, band=band, resolution=self.resolution
            )
            for owner, cell in zip(owners.split(budget), cells.split(budget, dim=1), strict=True):
                value = triangles.squared_distance(owner, cell.float(), offsets.float())  # [8, P]
                place = self._places(cell) + step[:, None]
                near = value <= band * band
                squared.scatter_reduce_(0, place[near], value[near], "amin")
        return squared

    def _places(self, voxel: Tensor) -> Tensor:
        """Return where voxels `[3, P]` stand in a buffer."""
        x, y, z = voxel.long() % BRICK
        return ((self.table[self._keys(voxel)].long() * BRICK + x) * BRICK + y) * BRICK + z

    def known(self, squared: Tensor) -> Tensor:
        """Return the buffer with 0 for voxels outside the grid, whose distance was not computed."""
        if self.resolution % BRICK == 0:
            return squared
        return squared.masked_fill(
            (self._index(torch.arange(len(squared), device=squared.device)) >= self.resolution).any(1), 0
        )

    def _index(self, place: Tensor) -> Tensor:
        return positions(self.origins, place).long()

    def sorted_index(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the voxels int64 `[N, 3]` of the places that lie within the grid, sorted, and those places."""
        index = self._index(place)
        inside = (index < self.resolution).all(1)
        index, place = index[inside], place[inside]
        order = torch.argsort((index[:, 0] * self.resolution + index[:, 1]) * self.resolution + index[:, 2])
        return index[order], place[order]
