"""Residual layers on sparse tensors: blocks that keep the grid, and shortcuts from one grid to the next.

A step to a coarser grid puts the eight children of a cell side by side as channels (space to channel), a step back
takes them apart again (channel to space), so nothing is averaged away or merely copied. The shortcuts round both
steps have no weights (Chen et al., 2024, "Deep Compression Autoencoder"; on sparse voxels Xiang et al., 2025,
"Native and Compact Structured Latents for 3D Generation").
"""

from __future__ import annotations

from torch import Tensor, nn

from sdf_vqvae.sparse.conv import SparseConv3d
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.layers import VoxelNorm
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.threads import by_rows


def space_to_channel(x: SparseTensor) -> SparseTensor:
    """Put the children of every cell side by side: `[N, C]` to `[P, 8 C]` on the coarser grid, absent ones zero."""
    cells, _ = x.coordinates.coarser()
    channels = x.feats.shape[1]
    wide = x.feats.new_zeros((len(cells) * 8, channels))
    wide = wide.index_copy_(0, x.coordinates.places_in_cells(), x.feats)
    return SparseTensor(wide.view(len(cells), 8 * channels), cells)


def channel_to_space(feats: Tensor, cells: CoordinateSet, kept: Tensor | None) -> SparseTensor:
    """Take `[P, 8 C]` apart into the children of every cell.

    Args:
        feats: `[P, 8 C]`.
        cells: the P cells.
        kept: bool `[P, 8]`, the children that exist; None: all.

    Returns:
        `[N, C]` on the finer grid, children of a cell adjacent, z fastest.
    """
    children = feats.reshape(len(cells) * 8, -1)
    fine = cells.finer(kept)
    if kept is not None:
        children = children.index_select(0, fine.places_in_cells())
    return SparseTensor(children, fine)


class ResidualBlock(nn.Module):
    """Convolution, norm and a two-layer network, added to the input (after ConvNeXt, Liu et al., 2022).

    The last layer starts at zero, so that a block begins as the identity.
    """

    def __init__(self, channels: int, mlp_ratio: float) -> None:
        super().__init__()
        self.hidden = int(channels * mlp_ratio)
        self.conv = SparseConv3d(channels, channels, 3)
        self.norm = VoxelNorm(channels)
        last = nn.Linear(self.hidden, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(channels, self.hidden), nn.SiLU(), last)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[N, C]` to `[N, C]`."""
        return x.replace(by_rows(self._update, x.feats, self.conv(x).feats, width=self.hidden))

    def _update(self, feats: Tensor, mixed: Tensor) -> Tensor:
        return feats + self.mlp(self.norm.of(mixed))


class ResidualDown(nn.Module):
    """To the coarser grid: space to channel and a linear layer, beside a shortcut that averages channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if 8 * in_channels % out_channels:
            raise ValueError(
                f"a step from {in_channels} channels cannot lead to {out_channels}: not a divisor of 8 C"
            )
        self.out_channels = out_channels
        self.norm = VoxelNorm(in_channels)
        self.linear = nn.Linear(8 * in_channels, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[N, C]` to `[P, C']`."""
        shortcut = space_to_channel(x)
        wide = space_to_channel(self.norm(x))
        return shortcut.replace(by_rows(self._update, shortcut.feats, wide.feats, width=wide.feats.shape[1]))

    def _update(self, shortcut: Tensor, wide: Tensor) -> Tensor:
        return self.linear(wide) + shortcut.view(len(wide), self.out_channels, -1).mean(-1)


class ResidualUp(nn.Module):
    """To the finer grid: a linear layer and channel to space, beside a shortcut that repeats channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if 8 * out_channels % in_channels:
            raise ValueError(
                f"a step from {in_channels} channels cannot lead to {out_channels}: not a divisor of 8 C"
            )
        self.repeats = 8 * out_channels // in_channels
        self.norm = VoxelNorm(in_channels)
        self.linear = nn.Linear(in_channels, 8 * out_channels)

    def forward(self, x: SparseTensor, kept: Tensor | None) -> SparseTensor:
        """`[P, C]` to `[N, C']` on the children that `kept` (bool `[P, 8]`, None: all) names."""
        wide = by_rows(self._update, x.feats, width=self.linear.out_features)
        return channel_to_space(wide, x.coordinates, kept)

    def _update(self, feats: Tensor) -> Tensor:
        return self.linear(self.norm.of(feats)) + feats.repeat_interleave(self.repeats, dim=1)
