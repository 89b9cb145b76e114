"""Features on a set of active voxels. Knows nothing of layers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sdf_vqvae.sparse.coordinates import CoordinateSet


class SparseTensor:
    """Features `[N, C]` on the voxels of a coordinate set.

    Args:
        feats: `[N, C]`, any dtype.
        coords: int `[N, 4]` = (batch, x, y, z), samples contiguous; or a ready `CoordinateSet`.
        side: grid side; required with plain coordinates.
        batch_size: number of samples, found from the coordinates if not given.

    Raises:
        ValueError: rows of `feats` and `coords` differ, or the coordinates are invalid.
    """

    def __init__(
        self,
        feats: Tensor,
        coords: Tensor | CoordinateSet,
        side: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(coords, CoordinateSet):
            if side is None:
                raise ValueError("SparseTensor needs the grid side with plain coordinates: pass side=...")
            coords = CoordinateSet(coords, side, batch_size)
        if feats.shape[0] != len(coords):
            raise ValueError(f"{feats.shape[0]} feature rows for {len(coords)} coordinates")
        self.feats = feats
        self.coordinates = coords

    @property
    def coords(self) -> Tensor:
        """int32 `[N, 4]` = (batch, x, y, z)."""
        return self.coordinates.coords

    @property
    def side(self) -> int:
        """Grid side."""
        return self.coordinates.side

    @property
    def batch_size(self) -> int:
        """Number of samples, empty ones included."""
        return self.coordinates.batch_size

    @property
    def shape(self) -> torch.Size:
        """`(batch_size, *feature shape)`."""
        return torch.Size([self.batch_size, *self.feats.shape[1:]])

    @property
    def device(self) -> torch.device:
        """Device of features and coordinates."""
        return self.feats.device

    def __len__(self) -> int:
        return len(self.coordinates)

    def replace(self, feats: Tensor) -> SparseTensor:
        """Return other features `[N, C']` on the same coordinate set."""
        return SparseTensor(feats, self.coordinates)

    def to(self, device: torch.device | str) -> SparseTensor:
        """Return a copy on another device (the same object if it is there already)."""
        if self.feats.device == torch.device(device):
            return self
        return SparseTensor(self.feats.to(device), self.coords.to(device), side=self.side, batch_size=self.batch_size)

    def cpu(self) -> SparseTensor:
        """Return a copy in host memory."""
        return self.to("cpu")

    def samples(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Return `(feats [n, C], xyz [n, 3])` of each sample."""
        splits = self.coordinates.row_splits
        return [(self.feats[a:b], self.coords[a:b, 1:]) for a, b in itertools.pairwise(splits)]

    def __repr__(self) -> str:
        return (
            f"SparseTensor(feats={list(self.feats.shape)} {self.feats.dtype}, side={self.side}, "
            f"batch_size={self.batch_size}, device={self.device})"
        )
