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
from sdf_vqvae.geometry.triangle_distance import Triangles

BRICK = 8
_SAMPLES = BRICK**3


def implementation(device: torch.device) -> ModuleType:
    """Return the module with `find_bricks` and `measure` for a device."""
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
        crossings: whether windings are wanted.
        using: the implementation; by default that of the device.
    """

    def __init__(
        self, corners: Tensor, resolution: int, band: float, *, crossings: bool, using: ModuleType | None = None
    ) -> None:
        self.resolution = resolution
        self._band = band
        self._using = using or implementation(corners.device)
        side = (resolution + BRICK - 1) // BRICK
        triangles = Triangles(corners)
        # A ray's crossing of the surface is noted at the sample above it, at most one voxel away.
        keys, starts, members = self._using.find_bricks(triangles, corners, resolution, max(band, 1.0))
        self._column = keys // side
        self.origins = torch.stack([keys // side**2, keys // side % side, keys % side], dim=1) * BRICK
        """Lowest sample of each brick, int64 `[B, 3]`, rows sorted."""
        self.squared, self._steps = self._using.measure(
            triangles, beside_rays(corners), self.origins, starts, members, band, crossings=crossings
        )
        """Squared distance to the surface, float32 `[B, 512]`; inf beyond the band."""

    def squared_distance_to(self, corners: Tensor) -> Tensor:
        """Return the squared distance of every sample to a part of the surface. float32 `[B, 512]`"""
        side = (self.resolution + BRICK - 1) // BRICK
        triangles = Triangles(corners)
        keys, starts, members = self._using.find_bricks(triangles, corners, self.resolution, self._band)
        x, y, z = (self.origins // BRICK).T
        place = torch.searchsorted((x * side + y) * side + z, keys)
        part, _ = self._using.measure(
            triangles, corners, self.origins[place], starts, members, self._band, crossings=False
        )
        squared = torch.full_like(self.squared, torch.inf)
        squared[place] = part
        return squared

    def near(self) -> tuple[Tensor, Tensor]:
        """Return the samples within the band: index int32 `[N, 3]`, rows sorted, and their places in `[B * 512]`."""
        place = (self.squared.view(-1) <= self._band * self._band).nonzero().squeeze(1)
        index = self.index(place)
        if self.resolution % BRICK:
            inside = (index < self.resolution).all(1)
            index, place = index[inside], place[inside]
        order = torch.argsort((index[:, 0] * self.resolution + index[:, 1]) * self.resolution + index[:, 2])
        return index[order], place[order]

    def index(self, place: Tensor) -> Tensor:
        """Return the samples int32 `[N, 3]` at places in `[B * 512]`."""
        place = place.int()
        within = torch.stack([place >> 6 & 7, place >> 3 & 7, place & 7], dim=1)
        return self.origins.int()[place >> 9] + within

    def crossings_below(self) -> Tensor:
        """Return for each sample how often a ray down from it leaves the surface, less how often it enters.

        That is the winding number inside a closed surface. int32 `[B, 512]`
        """
        within = self._steps.view(-1, BRICK**2, BRICK).cumsum(2, dtype=torch.int32)
        # Bricks of one column follow each other from below.
        total = within[:, :, -1].cumsum(0, dtype=torch.int32)
        below = total - within[:, :, -1]
        first = torch.searchsorted(self._column, self._column)
        return (within + (below - below[first])[:, :, None]).view(-1, _SAMPLES)
