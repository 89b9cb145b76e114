"""The bricks of 8^3 samples that a surface can reach: distances, crossings and order of their samples.

A grid is never held whole: memory and work are those of the surface. Works in voxel units with sample (i, j, k) at
its integer coordinates. Three implementations do the heavy steps: Numba on a CPU, Triton on CUDA, and plain PyTorch,
the twin of both, wherever neither runs.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch
from torch import Tensor

from sdf_vqvae.geometry.boundary import beside_rays

BRICK = 8


def implementation(device: torch.device) -> ModuleType:
    """Return the module with `frames`, `find_bricks`, `distances` and `crossings` for a device."""
    if device.type == "cpu":
        from sdf_vqvae.geometry import bricks_numba

        return bricks_numba
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from sdf_vqvae.geometry import bricks_triton

        return bricks_triton
    from sdf_vqvae.geometry import bricks_reference

    return bricks_reference


class Bricks:
    """The bricks near a surface, and what is known of their samples.

    Args:
        corners: float64 `[F, 3, 3]`.
        resolution: grid side.
        band: how far distances are wanted, in voxels.
        using: the implementation; by default that of the device.
    """

    def __init__(self, corners: Tensor, resolution: int, band: float, *, using: ModuleType | None = None) -> None:
        self.resolution = resolution
        self._corners = corners
        self._band = band
        self._using = using or implementation(corners.device)
        side = (resolution + BRICK - 1) // BRICK
        table = self._using.frames(corners)
        # A ray's crossing of the surface is noted at the sample above it, at most one voxel away.
        keys, self._starts, self._members = self._using.find_bricks(table, corners, resolution, max(band, 1.0))
        self.origins = torch.stack([keys // side**2, keys // side % side, keys % side], dim=1) * BRICK
        """Lowest sample of each brick, int64 `[B, 3]`, rows sorted."""
        self.squared = self._using.distances(table, self.origins, self._starts, self._members, band)
        """Squared distance to the surface, float32 `[B, 512]`; inf beyond the band."""

    def squared_distance_to(self, corners: Tensor) -> Tensor:
        """Return the squared distance of every sample to a part of the surface. float32 `[B, 512]`"""
        side = (self.resolution + BRICK - 1) // BRICK
        table = self._using.frames(corners)
        keys, starts, members = self._using.find_bricks(table, corners, self.resolution, self._band)
        x, y, z = (self.origins // BRICK).T
        place = torch.searchsorted((x * side + y) * side + z, keys)
        squared = torch.full_like(self.squared, torch.inf)
        squared[place] = self._using.distances(table, self.origins[place], starts, members, self._band)
        return squared

    def near(self) -> tuple[Tensor, Tensor]:
        """Return the samples within the band: index int32 `[N, 3]`, rows sorted, and their places in `[B * 512]`."""
        side = self.resolution
        line = torch.arange(BRICK, dtype=torch.int32, device=self.squared.device)
        within = ((line[:, None, None] * side + line[:, None]) * side + line).view(-1)  # [512]
        x, y, z = self.origins.int().T
        first = (x * side + y) * side + z
        known = self.squared.view(-1) <= self._band * self._band
        if side % BRICK:
            known &= (self.origins[:, None] + torch.cartesian_prod(line, line, line) < side).all(2).view(-1)
        place = known.nonzero().squeeze(1)
        key, order = torch.sort(first[place >> 9] + within[place & (BRICK**3 - 1)])
        # The key is below 1024^3, so it fits int32.
        rest = key // side
        return torch.stack([rest // side, rest % side, key % side], dim=1), place[order]

    def crossings(self) -> Tensor:
        """Return for each sample how often a ray down from it leaves the surface, less how often it enters.

        That is the winding number of a closed surface. int32 `[B, 512]`
        """
        return self._using.crossings(beside_rays(self._corners), self.origins, self._starts, self._members)
