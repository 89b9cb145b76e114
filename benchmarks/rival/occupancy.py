"""Occupancy grids of meshes for the rival design: a voxel is occupied if a triangle passes through it.

Knows meshes and grids; nothing of networks. A grid spans the cube whose side is the longest side of the mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.geometry.mesh import LONGEST_SIDE, normalize_mesh
from sdf_vqvae.training.streams import Augmentation, Prepared, augmented, prepare
from sdf_vqvae.utils.errors import brief

SIDE = 64
"""Voxels along a side of the grid."""
AUGMENTATION = Augmentation(rotation=0.2, stretch=0.5)
"""What is done to further variants of a mesh; our own tokenizer's training does the same."""
# A plane that lies between two voxels belongs to the upper one, whatever the size of its triangles.
_SHIFT = 1e-7
_PAIRS = {"cpu": 1 << 16, "cuda": 1 << 22}
_OCTANTS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))


def surface_voxels(corners: Tensor, owner: Tensor, count: int, side: int = SIDE) -> Tensor:
    """Return the voxels that triangles pass through: bool `[count, side, side, side]`.

    Triangles and boxes are compared exactly (separating axes), coarse boxes first: those that a triangle meets are
    split into eight.

    Args:
        corners: float64 `[F, 3, 3]` in voxels; voxel i spans i..i + 1.
        owner: the object of each triangle, int64 `[F]`.
        count: number of objects.
        side: voxels along a side, a power of two.
    """
    corners = corners.clamp(0, side - 2 * _SHIFT) + _SHIFT
    occupied = torch.zeros(count, side, side, side, dtype=torch.bool, device=corners.device)
    test = _BoxTest(corners)
    low, extent = corners.amin(1), (corners.amax(1) - corners.amin(1)).amax(1)
    octants = torch.tensor(_OCTANTS, device=corners.device)  # [8, 3]
    size = side
    smallest = 1
    triangles = torch.empty(0, dtype=torch.int64, device=corners.device)
    cells = torch.empty(0, 3, dtype=torch.int64, device=corners.device)
    while size >= smallest:
        # A triangle enters at the size at which it spans at most two boxes along each axis.
        fits = extent <= size
        enters = fits & (extent > size / 2) if size > smallest else fits
        new = enters.nonzero().squeeze(1)
        first = (low[new] / size).floor().long()
        triangles = torch.cat([triangles, new.repeat_interleave(8)])
        cells = torch.cat([cells, (first[:, None] + octants).reshape(-1, 3)])
        hit = test(triangles, cells, size, side)
        triangles, cells = triangles[hit], cells[hit]
        if size > smallest:
            triangles = triangles.repeat_interleave(8)
            cells = (2 * cells[:, None] + octants).reshape(-1, 3)
        size //= 2
    x, y, z = cells.unbind(1)
    occupied[owner[triangles], x, y, z] = True
    return occupied


class _BoxTest:
    """Which boxes triangles meet (Akenine-Moeller, 2001: thirteen axes), with what is the same for all boxes kept."""

    def __init__(self, corners: Tensor) -> None:
        self.low, self.high = corners.amin(1), corners.amax(1)  # [F, 3]
        edges = corners.roll(-1, 1) - corners  # [F, 3 edges, 3]
        self.edges = edges
        self.normal = torch.linalg.cross(edges[:, 0], edges[:, 1])  # [F, 3]
        self.plane = (self.normal * corners[:, 0]).sum(1)  # [F]
        # The axis of an edge e and a grid axis i is their cross product; along it a point p lies at (e x p)_i.
        at = torch.stack(
            [torch.linalg.cross(edges, corners, dim=2), torch.linalg.cross(edges, corners.roll(1, 1), dim=2)]
        )
        self.least, self.most = at.amin(0), at.amax(0)  # [F, 3 edges, 3]

    def __call__(self, triangles: Tensor, cells: Tensor, size: int, side: int) -> Tensor:
        """Return the pairs that meet, as places `[H]` in triangles `[P]` and cells `[P, 3]` of boxes of a size."""
        found = [torch.empty(0, dtype=torch.int64, device=cells.device)]
        step = _PAIRS[cells.device.type]
        for start in range(0, len(triangles), step):
            part = slice(start, start + step)
            cell = cells[part]
            inside = ((cell >= 0) & (cell < side // size)).all(1)
            place = inside.nonzero().squeeze(1)
            met = self._meets(triangles[part][place], cell[place].double() * size, size)
            found.append(place[met] + start)
        return torch.cat(found)

    def _meets(self, triangle: Tensor, corner: Tensor, size: int) -> Tensor:
        """Compare triangles `[P]` with the boxes of this size at corners `[P, 3]`. bool `[P]`"""
        meets = ((self.low[triangle] <= corner + size) & (self.high[triangle] >= corner)).all(1)
        center, half = corner + size / 2, size / 2
        normal = self.normal[triangle]
        meets &= ((normal * center).sum(1) - self.plane[triangle]).abs() <= half * normal.abs().sum(1)
        edges = self.edges[triangle]  # [P, 3 edges, 3]
        here = torch.linalg.cross(edges, center[:, None].expand_as(edges), dim=2)
        reach = half * (edges.abs().sum(2, keepdim=True) - edges.abs())
        apart = (self.least[triangle] - here > reach) | (self.most[triangle] - here < -reach)
        return meets & ~apart.flatten(1).any(1)


class MeshVariants(Dataset):
    """Meshes of a pack, normalized; number n is variant `n // len(entries)`, of which the first is unchanged."""

    def __init__(self, pack: MeshPack, entries: Sequence[PackEntry], variants: int, seed: int) -> None:
        self.pack = pack
        self.entries = list(entries)
        self.variants = variants
        self.seed = seed

    def __len__(self) -> int:
        return len(self.entries) * self.variants

    def __getitem__(self, number: int) -> tuple[int, str, Any]:
        """Return what `streams.prepare` joins: number, name, and the mesh or why it can't be used."""
        entry = self.entries[number % len(self.entries)]
        try:
            mesh = self.pack.mesh(entry)
            if number >= len(self.entries):
                mesh = augmented(mesh, AUGMENTATION, np.random.default_rng((self.seed, number)))
            normalized = normalize_mesh(mesh)
        except ValueError as error:
            return number, entry.id, brief(error)
        return number, entry.id, (normalized.vertices, normalized.faces, normalized.watertight)


def occupancy_grids(meshes: MeshVariants, device: torch.device, workers: int, what: str) -> tuple[Tensor, Tensor]:
    """Voxelize all meshes.

    Returns:
        Bit-packed grids uint8 `[N, 32768]` on the device, and the number of each in `meshes`, int64 `[N]` on the CPU;
        meshes that can't be used are left out and printed.
    """
    grids, numbers = [], []
    for prepared in tqdm(_prepared(meshes, workers), desc=what, total=-(-len(meshes) // 32), disable=None):
        for name, reason in prepared.failed.items():
            print(f"{name} left out: {reason}")
        if prepared.numbers:
            grids.append(packed(_voxelized(prepared, device)))
            numbers += prepared.numbers
    if not grids:
        raise ValueError(f"none of the {len(meshes)} meshes can be used")
    return torch.cat(grids), torch.tensor(numbers)


def _prepared(meshes: MeshVariants, workers: int) -> Iterator[Prepared]:
    yield from DataLoader(
        meshes,
        batch_size=32,
        num_workers=workers,
        collate_fn=prepare,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
    )


def _voxelized(prepared: Prepared, device: torch.device) -> Tensor:
    counts = prepared.sizes.to(device)
    count = len(counts)
    owner = torch.arange(count, device=device).repeat_interleave(counts[:, 1])
    starts = counts[:, 0].cumsum(0) - counts[:, 0]
    corners = prepared.vertices.to(device)[prepared.faces.to(device) + starts[owner, None]]
    return surface_voxels((corners / LONGEST_SIDE + 0.5) * SIDE, owner, count)


def packed(grids: Tensor) -> Tensor:
    """Pack grids bool `[N, 64, 64, 64]` to bits, uint8 `[N, 32768]`."""
    bits = grids.reshape(len(grids), -1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=grids.device)).sum(2, dtype=torch.uint8)


def unpacked(bits: Tensor) -> Tensor:
    """Undo `packed`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).bool().view(-1, SIDE, SIDE, SIDE)


def turned(grids: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each grid `[B, 64, 64, 64]` by a random one of the 48 symmetries of the cube."""
    found = []
    for grid in grids:
        order = torch.randperm(3, generator=generator).tolist()
        flips = (torch.rand(3, generator=generator) < 0.5).nonzero().squeeze(1).tolist()
        found.append(grid.permute(order).flip(flips))
    return torch.stack(found)
