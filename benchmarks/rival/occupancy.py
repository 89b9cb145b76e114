"""Occupancy grids of meshes for the rival design: a voxel is occupied if a triangle passes through it.

Knows meshes and grids; nothing of networks. A grid spans the cube whose side is the longest side of the mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.geometry.mesh import LONGEST_SIDE, normalize_mesh
from sdf_vqvae.geometry.metrics.surface_voxels import surface_voxels
from sdf_vqvae.training.mesh_draws import Augmentation, augmented
from sdf_vqvae.utils.jobs import run_jobs

SIDE = 64
"""Voxels along a side of the grid."""
AUGMENTATION = Augmentation(rotation=0.2, stretch=0.5)
"""What is done to further variants of a mesh; our own tokenizer's training does the same."""
# A plane that lies between two voxels belongs to the upper one, whatever the size of its triangles.
_SHIFT = 1e-7


def occupied_voxels(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return the voxels that triangles pass through: bool `[64, 64, 64]`.

    Args:
        corners: `[F, 3, 3]` in voxels; voxel i spans i..i + 1.
    """
    vertices = (np.clip(corners.reshape(-1, 3), 0, SIDE - 2 * _SHIFT) + _SHIFT) / SIDE - 0.5
    return surface_voxels(vertices, np.arange(len(vertices)).reshape(-1, 3), SIDE)


@dataclass(frozen=True, kw_only=True)
class MeshVariants:
    """Meshes of a pack; number n is variant `n // len(entries)`, of which the first is unchanged."""

    pack: MeshPack
    entries: list[PackEntry]
    variants: int = 1
    seed: int = 0

    def __len__(self) -> int:
        return len(self.entries) * self.variants

    def entry(self, number: int) -> PackEntry:
        """Return which mesh a number is a variant of."""
        return self.entries[number % len(self.entries)]

    def grid(self, number: int) -> NDArray[np.uint8]:
        """Return a variant's occupancy, bit-packed `[32768]`. Raises a ValueError for a mesh that can't be used."""
        mesh = self.pack.mesh(self.entry(number))
        if number >= len(self.entries):
            mesh = augmented(mesh, AUGMENTATION, np.random.default_rng((self.seed, number)))
        normalized = normalize_mesh(mesh)
        corners = normalized.vertices[normalized.faces].numpy()
        return packed(occupied_voxels((corners / LONGEST_SIDE + 0.5) * SIDE))


def occupancy_grids(meshes: MeshVariants, device: torch.device, workers: int, what: str) -> tuple[Tensor, Tensor]:
    """Voxelize all meshes.

    Returns:
        Bit-packed grids uint8 `[N, 32768]` on the device, and the number of each in `meshes`, int64 `[N]` on the CPU;
        meshes that can't be used are left out and printed.
    """
    grids: dict[int, NDArray[np.uint8]] = {}
    done = run_jobs(functools.partial(_make_gridder, meshes), range(len(meshes)), workers=workers)
    for result in tqdm(done, desc=what, total=len(meshes), disable=None):
        if result.result is None:
            print(f"{meshes.entry(result.number).id} left out: {result.error}")
        else:
            grids[result.number] = result.result
    if not grids:
        raise ValueError(f"none of the {len(meshes)} meshes can be used")
    numbers = sorted(grids)
    return torch.from_numpy(np.stack([grids[n] for n in numbers])).to(device), torch.tensor(numbers)


def _make_gridder(meshes: MeshVariants, device: str) -> Callable[[int], NDArray[np.uint8]]:
    return meshes.grid


def packed(grid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack a grid bool `[64, 64, 64]` to bits, uint8 `[32768]`."""
    return np.packbits(grid.reshape(-1), bitorder="little")


def unpacked(bits: Tensor) -> Tensor:
    """Undo `packed` for grids uint8 `[N, 32768]`: bool `[N, 64, 64, 64]`."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[..., None] >> shifts) & 1).bool().view(-1, SIDE, SIDE, SIDE)


def turned(grids: Tensor, generator: torch.Generator) -> Tensor:
    """Turn each grid `[B, 64, 64, 64]` by a random one of the 48 symmetries of the cube."""
    results = []
    for grid in grids:
        order = torch.randperm(3, generator=generator).tolist()
        flips = (torch.rand(3, generator=generator) < 0.5).nonzero().squeeze(1).tolist()
        results.append(grid.permute(order).flip(flips))
    return torch.stack(results)
