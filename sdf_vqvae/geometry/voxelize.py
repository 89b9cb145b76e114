"""A triangle mesh to a sparse distance field: exact distances inside a band, signs by winding number.

Works in voxel units with sample (i, j, k) at its integer coordinates. Cost and memory grow with the surface
(triangles and voxels near it), not with the volume of the grid and not with the largest triangle: pairs of a
triangle and a cubic cell are refined from coarse cells to voxels, and pairs out of reach are dropped on the way.
Knows nothing of files and of normalization; identical code on CPU and CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from sdf_vqvae.geometry.winding import inside_mesh

_BRICK = 8
_COARSEST = 64
# Triangle-cell pairs examined at a time; bounds the peak memory (about 300 bytes a pair).
_PAIRS = {"cpu": 1 << 17, "cuda": 1 << 23}
# An inside voxel this close to a face within the solid must not read as zero, which counts as outside.
_SMALLEST_INSIDE = 1e-4
# The winding surface may miss this share of the input's area before the missed faces become a shell.
_MISSED_SHARE = 0.1
_SHELL_HALF_THICKNESS = 0.5
_PROBE_DISTANCE = 0.1
_PROBES = 50_000


@dataclass(frozen=True, kw_only=True)
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
        signed: negative where the generalized winding number exceeds 0.5 (Jacobson et al., 2013).
        watertight: the mesh is known to be closed, so the search for open sheets is left out.

    Where the surface of the winding number misses more than a tenth of the mesh's area (open sheets), the
    missed faces become a closed shell one voxel thick, joined to the rest as a union.

    Raises:
        ValueError: the resolution is out of 8..1024, the band is not positive, or no voxel lies within it.
    """
    if not 8 <= resolution <= 1024:
        raise ValueError(f"resolution must lie in 8..1024, got {resolution}")
    if not band > 0:
        raise ValueError(f"band must be positive (voxels), got {band}")
    corners = (vertices.double()[faces] + 0.5) * resolution - 0.5  # [F, 3, 3]
    triangles = _Triangles(corners)
    pairs = _brick_pairs(triangles, resolution, band)
    bricks = _Bricks(pairs[1], resolution)
    squared = bricks.least_squared_distance(triangles, *pairs, band)
    place = (squared <= band * band).nonzero().squeeze(1)
    index, place = bricks.sorted_index(place)
    if len(index) == 0:
        raise ValueError("no voxel lies within the band of the mesh: it is outside the grid or has no triangle")
    distance = squared[place].sqrt()
    method = "none"
    if signed:
        points = index.double()
        distance = torch.where(inside_mesh(points, corners), -distance.clamp(min=_SMALLEST_INSIDE), distance)
        method = "winding"
        missed = None if watertight else _missed_faces(corners)
        if missed is not None:
            shell = _Triangles(corners[missed])
            shell_pairs = _brick_pairs(shell, resolution, band)
            to_shell = bricks.least_squared_distance(shell, *shell_pairs, band)[place].sqrt()
            distance = torch.minimum(distance, to_shell - _SHELL_HALF_THICKNESS)
            method = "winding+shell"
    return VoxelField(
        index=index.to(torch.int32), distance=(distance / band).clamp(-1, 1).float(), sign_method=method
    )


class _Triangles:
    """Triangles prepared for distances: unit normals and unit in-plane normals of the edges, in float32.

    The unit vectors are worked out in float64, so that slivers keep an accuracy of 1e-4 voxel.
    """

    def __init__(self, corners: Tensor) -> None:
        edges = corners.roll(-1, 1) - corners  # [F, 3, 3]
        normal = torch.linalg.cross(edges[:, 0], edges[:, 1])
        longest = edges.norm(dim=2).amax(1)
        # The height of a sliver is below this share of its length: its edges say all there is to say.
        self.flat = normal.norm(dim=1) > 1e-9 * longest.square()
        normal = torch.nn.functional.normalize(normal, dim=1)
        outward = torch.nn.functional.normalize(torch.linalg.cross(edges, normal[:, None].expand_as(edges)), dim=2)
        self.corners = corners.float()
        self.edges = edges.float()
        self.normal = normal.float()
        self.outward = outward.float()
        self.inverse_length = (1 / edges.square().sum(2).clamp(min=1e-30)).float()
        self.low = corners.amin(1).float()
        self.high = corners.amax(1).float()

    def __len__(self) -> int:
        return len(self.corners)

    def squared_distance(self, triangle: Tensor, points: Tensor) -> Tensor:
        """Return the squared distance of each point `[P, 3]` to the triangle of that number `[P]`."""
        offset = points[:, None] - self.corners[triangle]  # [P, 3 corners, 3]
        edge = self.edges[triangle]
        along = ((offset * edge).sum(2) * self.inverse_length[triangle]).clamp_(0, 1)
        to_edges = (offset - along[..., None] * edge).square().sum(2).amin(1)
        over_face = ((offset * self.outward[triangle]).sum(2) <= 0).all(1) & self.flat[triangle]
        height = (offset[:, 0] * self.normal[triangle]).sum(1)
        return torch.where(over_face, height.square(), to_edges)


def _brick_pairs(triangles: _Triangles, resolution: int, band: float) -> tuple[Tensor, Tensor]:
    """Return all (triangle, brick base) pairs within reach of each other: int64 `[P]`, int32 `[P, 3]`."""
    size = _COARSEST
    low = ((triangles.low - band) / size).floor().long().clamp(min=0)  # [F, 3]
    high = ((triangles.high + band) / size).floor().long().clamp(max=(resolution - 1) // size)
    spans = (high - low + 1).clamp(min=0)
    counts = spans.prod(1)
    found = []
    budget = _PAIRS[counts.device.type]
    ends = torch.cumsum(counts, 0)
    start = 0
    while start < len(triangles):
        base = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, base + budget, right=True)))
        rows = torch.arange(start, stop, device=counts.device).repeat_interleave(counts[start:stop])
        number = torch.arange(len(rows), device=counts.device) - (ends[rows] - counts[rows] - base)
        span = spans[rows]
        cell = torch.stack(
            [number // (span[:, 1] * span[:, 2]), number // span[:, 2] % span[:, 1], number % span[:, 2]], dim=1
        )
        bases = ((low[rows] + cell) * size).int()
        found += _refine(triangles, rows, bases, size, _BRICK, resolution, band)
        start = stop
    return torch.cat([t for t, _ in found]), torch.cat([b for _, b in found])


def _refine(
    triangles: _Triangles, triangle: Tensor, base: Tensor, size: int, target: int, resolution: int, band: float
) -> list[tuple[Tensor, Tensor]]:
    """Drop pairs out of reach and halve the cells until they have the target size; depth first, in chunks."""
    budget = _PAIRS[triangle.device.type]
    if len(triangle) > budget:
        return [
            pair
            for rows in torch.arange(len(triangle), device=triangle.device).split(budget)
            for pair in _refine(triangles, triangle[rows], base[rows], size, target, resolution, band)
        ]
    reach = band + 3**0.5 * (size - 1) / 2 + 1e-3
    near = triangles.squared_distance(triangle, base + (size - 1) / 2) <= reach * reach
    triangle, base = triangle[near], base[near]
    if size == target or len(triangle) == 0:
        return [(triangle, base)]
    child, children = _children(triangle, base, size // 2, resolution)
    return _refine(triangles, child, children, size // 2, target, resolution, band)


def _children(triangle: Tensor, base: Tensor, size: int, resolution: int) -> tuple[Tensor, Tensor]:
    """Return the pairs with the eight half-size cells of each cell that begin inside the grid."""
    offsets = torch.tensor(list(product((0, size), repeat=3)), dtype=torch.int32, device=base.device)
    children = (base[:, None] + offsets).reshape(-1, 3)
    inside = (children < resolution).all(1)
    return triangle.repeat_interleave(8)[inside], children[inside]


class _Bricks:
    """The bricks of 8^3 voxels that some triangle can reach, and a buffer of values over their voxels."""

    def __init__(self, bases: Tensor, resolution: int) -> None:
        self.side = (resolution + _BRICK - 1) // _BRICK
        self.resolution = resolution
        keys = torch.unique(self._keys(bases))
        self.table = torch.full((self.side**3,), -1, dtype=torch.int32, device=bases.device)
        self.table[keys] = torch.arange(len(keys), dtype=torch.int32, device=bases.device)
        self.keys = keys

    def _keys(self, bases: Tensor) -> Tensor:
        x, y, z = (bases.long() // _BRICK).unbind(1)
        return (x * self.side + y) * self.side + z

    def least_squared_distance(self, triangles: _Triangles, triangle: Tensor, bases: Tensor, band: float) -> Tensor:
        """Return the least squared distance of every voxel of every brick to any triangle, inf beyond reach."""
        squared = torch.full((len(self.keys) * _BRICK**3,), torch.inf, device=bases.device)
        budget = _PAIRS[bases.device.type]
        for rows in torch.arange(len(triangle), device=bases.device).split(max(1, budget // 8)):
            child, cells = _children(triangle[rows], bases[rows], _BRICK // 2, self.resolution)
            for t, b in _refine(triangles, child, cells, _BRICK // 2, 2, self.resolution, band):
                for part in torch.arange(len(t), device=bases.device).split(max(1, budget // 8)):
                    owner, voxel = _children(t[part], b[part], 1, self.resolution)
                    value = triangles.squared_distance(owner, voxel.float())
                    squared.scatter_reduce_(0, self._places(voxel), value, "amin")
        return squared

    def _places(self, voxel: Tensor) -> Tensor:
        """Return where voxels `[P, 3]` stand in the buffer."""
        inner = voxel.long() % _BRICK
        brick = self.table[self._keys(voxel)].long()
        return ((brick * _BRICK + inner[:, 0]) * _BRICK + inner[:, 1]) * _BRICK + inner[:, 2]

    def sorted_index(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Return the voxel indices int64 `[N, 3]` of buffer places, in lexicographic order, and the places."""
        key, inner = self.keys[place // _BRICK**3], place % _BRICK**3
        brick = torch.stack([key // self.side**2, key // self.side % self.side, key % self.side], dim=1)
        within = torch.stack([inner // _BRICK**2, inner // _BRICK % _BRICK, inner % _BRICK], dim=1)
        index = brick * _BRICK + within
        order = torch.argsort((index[:, 0] * self.resolution + index[:, 1]) * self.resolution + index[:, 2])
        return index[order], place[order]


def _missed_faces(corners: Tensor) -> Tensor | None:
    """Return a mask `[F]` of faces with outside on both sides, or None if they are a small share of the area.

    Every face is probed on both sides of points spread over it: one a voxel area, as far as `_PROBES` go round.
    """
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = normal.norm(dim=1)
    area = length / 2
    counts = area.ceil().long().clamp(1, max(1, _PROBES // len(corners)))
    rows = torch.arange(len(corners), device=corners.device).repeat_interleave(counts)
    number = torch.arange(len(rows), device=corners.device) - (torch.cumsum(counts, 0) - counts)[rows]
    # A low-discrepancy sequence on the square, folded onto the triangle (Roberts, 2018: the R2 sequence).
    u, v = (0.5 + number * 0.7548776662466927) % 1, (0.5 + number * 0.5698402909980532) % 1
    over = u + v > 1
    u, v = torch.where(over, 1 - u, u).double(), torch.where(over, 1 - v, v).double()
    a, b, c = corners[rows].unbind(1)
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    step = _PROBE_DISTANCE * (normal / length.clamp(min=1e-30)[:, None])[rows]
    sides = inside_mesh(torch.cat([points + step, points - step]), corners)
    front, behind = sides.chunk(2)
    outside = torch.zeros(len(corners), device=corners.device)
    outside.index_add_(0, rows, (~front & ~behind).float())
    missed = (outside / counts > 0.5) & (area > 0)
    share = float(area[missed].sum() / area.sum().clamp(min=1e-30))
    return missed if share > _MISSED_SHARE else None
