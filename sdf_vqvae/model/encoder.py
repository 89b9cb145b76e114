"""From the distance field on the data grid to one latent vector per occupied latent cell."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.trunk import Trunk
from sdf_vqvae.sparse.conv import SparseConv3d
from sdf_vqvae.sparse.layers import SparseActivation, SparseDownsample, SparseGroupNorm
from sdf_vqvae.sparse.tensor import SparseTensor


class DownBlock(nn.Module):
    """Norm, SiLU, pooling, two convolutions, and a pooled skip connection."""

    def __init__(self, in_channels: int, out_channels: int, counts_zero: bool) -> None:
        super().__init__()
        self.act_layers = nn.Sequential(SparseGroupNorm(in_channels), SparseActivation())
        self.down = SparseDownsample(counts_zero)
        self.out_layers = nn.Sequential(
            SparseConv3d(in_channels, out_channels, 3),
            SparseGroupNorm(out_channels),
            SparseActivation(),
            SparseConv3d(out_channels, out_channels, 3),
        )
        self.skip_connection = (
            SparseConv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[N, C]` on a grid to `[P, C']` on the grid of half the side."""
        h = self.out_layers(self.down(self.act_layers(x)))
        return h.replace(h.feats + self.skip_connection(self.down(x)).feats)


class SparseSDFEncoder(Trunk):
    """Distance field `[N, 1]` on the data grid to latent vectors `[M, D]` on the latent grid."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config, config.model_channels, config.blocks_of("encoder"))
        widths = (*config.widths, config.model_channels)
        self.input_layer1 = nn.Linear(1, widths[0])
        self.downsample = nn.ModuleList(DownBlock(a, b, config.pool_counts_zero) for a, b in pairwise(widths))
        # The original predicts mean and variance and uses the mean alone: the second half is dead weight
        # that its checkpoints carry.
        self.latent_channels = config.latent_channels
        self.out_layer = nn.Linear(config.model_channels, 2 * config.latent_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Encode; the output is float32."""
        h = x.replace(self.input_layer1(x.feats))
        for block in self.downsample:
            h = block(h)
        h = self.run_trunk(h)
        normalized = nn.functional.layer_norm(h.feats.float(), h.feats.shape[-1:])
        return h.replace(self.out_layer(normalized)[:, : self.latent_channels].float())
