"""The bricks of 8^3 samples that a surface can reach: distances, crossings and order of their samples.

A grid is never held whole: memory and work are those of the surface. Works in voxel units with sample (i, j, k) at
its integer coordinates. Three implementations do the heavy steps: Numba on a CPU, Triton on CUDA, and plain PyTorch,
the twin of both, wherever neither runs.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from types import ModuleType

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.batch import MeshBatch
from sdf_vqvae.geometry.voxelizer.boundary import beside_rays
from sdf_vqvae.utils.threads import has_numba

logger = logging.getLogger(__name__)

BRICK = 8


def implementation(device: torch.device) -> ModuleType:
    """Return the module with `frames`, `find_bricks`, `distances` and `crossings` for a device."""
    if device.type == "cpu" and has_numba():
        from sdf_vqvae.geometry.voxelizer import bricks_numba

        return bricks_numba
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from sdf_vqvae.geometry.voxelizer import bricks_triton

        return bricks_triton
    if device.type == "cpu":
        _warn_of_numba()
    from sdf_vqvae.geometry.voxelizer import bricks_reference

    return bricks_reference


@functools.cache
def _warn_of_numba() -> None:
    """Say once that voxelizing could be faster."""
    logger.warning("Numba is not installed, so voxelizing on this CPU takes many times as long: pip install numba")


class Bricks:
    """The bricks near the surfaces of a batch, and what is known of their samples. Every mesh has its own grid.

    Args:
        batch: the meshes.
        resolution: grid side.
        band: how far distances are wanted, in voxels.
        using: the implementation; by default that of the device.
    """

    def __init__(self, batch: MeshBatch, resolution: int, band: float, *, using: ModuleType | None = None) -> None:
        self.resolution = resolution
        self._corners = batch.corners
        self._count = len(batch)
        self._band = band
        self._using = using or implementation(batch.vertices.device)
        side = (resolution + BRICK - 1) // BRICK
        table = self._using.frames(self._corners)
        # A ray's crossing of the surface is noted at the sample above it, at most one voxel away.
        self._keys, self._starts, self._members = self._using.find_bricks(
            table, self._corners, batch.face_mesh, self._count, resolution, max(band, 1.0)
        )
        self._columns = self._keys // side
        rest = self._columns // side
        self.mesh = rest // side
        """The mesh of each brick, int64 `[B]`."""
        self.origins = torch.stack([rest % side, self._columns % side, self._keys % side], dim=1) * BRICK
        """Lowest sample of each brick, int64 `[B, 3]`; meshes ascend, and rows within one."""
        self.squared = self._using.distances(table, self.origins, self._starts, self._members, band)
        """Squared distance to the surface, float32 `[B, 512]`; inf beyond the band."""
        self._places: Tensor | None = None

    def squared_distance_to(self, corners: Tensor, mesh: Tensor) -> Tensor:
        """Return the squared distance of every sample to triangles of the surfaces. float32 `[B, 512]`

        Args:
            corners: float64 `[F, 3, 3]`.
            mesh: the mesh of each, int64 `[F]`.
        """
        table = self._using.frames(corners)
        keys, starts, members = self._using.find_bricks(
            table, corners, mesh, self._count, self.resolution, self._band
        )
        place = torch.searchsorted(self._keys, keys)
        squared = torch.full_like(self.squared, torch.inf)
        squared[place] = self._using.distances(table, self.origins[place], starts, members, self._band)
        return squared

    def near(self) -> tuple[Tensor, Tensor]:
        """Return the samples within the band: index int32 `[N, 3]`, and their places in `[B * 512]`.

        Meshes ascend, and rows within one are sorted.
        """
        side = self.resolution
        number = torch.int32 if self._count * side**3 < 2**31 else torch.int64
        line = torch.arange(BRICK, dtype=number, device=self.squared.device)
        place = self.places()
        within = ((line[:, None, None] * side + line[:, None]) * side + line).view(-1)  # [512]
        x, y, z = self.origins.to(number).T
        first = ((self.mesh.to(number) * side + x) * side + y) * side + z
        key, order = torch.sort(first[place >> 9] + within[place & (BRICK**3 - 1)])
        rest = key // side
        return torch.stack([rest // side % side, rest % side, key % side], dim=1).int(), place[order]

    def places(self) -> Tensor:
        """Return the places in `[B * 512]` of the samples within the band, brick by brick. int64 `[N]`"""
        if self._places is None:
            known = self.squared.view(-1) <= self._band * self._band
            if self.resolution % BRICK:
                line = torch.arange(BRICK, device=known.device)
                sample = self.origins[:, None] + torch.cartesian_prod(line, line, line)
                known &= (sample < self.resolution).all(2).view(-1)
            self._places = known.nonzero().squeeze(1)
        return self._places

    def crossings(self) -> Tensor:
        """Return for each sample how often a ray down from it leaves the surface, less how often it enters.

        That is the winding number of a closed surface. int32 `[B, 512]`
        """
        return self._using.crossings(
            beside_rays(self._corners), self._columns, self.origins, self._starts, self._members
        )
