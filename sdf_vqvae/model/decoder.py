"""From code vectors on the latent grid back to the distance field on the data grid."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.trunk import Trunk
from sdf_vqvae.sparse.conv import SparseConv3d
from sdf_vqvae.sparse.layers import SparseActivation, SparseSubdivide
from sdf_vqvae.sparse.tensor import SparseTensor


class UpBlock(nn.Module):
    """Convolution, SiLU, subdivision, convolution, SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.act_layers = nn.Sequential(SparseConv3d(in_channels, out_channels, 3), SparseActivation())
        self.sub = SparseSubdivide()
        self.out_layers = nn.Sequential(SparseConv3d(out_channels, out_channels, 3), SparseActivation())

    def forward(self, x: SparseTensor) -> SparseTensor:
        """`[N, C]` on a grid to `[8 N, C']` on the grid of twice the side."""
        return self.out_layers(self.sub(self.act_layers(x)))


class SparseSDFDecoder(Trunk):
    """Code vectors `[M, D]` to a distance field `[512 M, 1]` (three levels) that fills every latent cell."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config, config.latent_channels, config.blocks_of("decoder"))
        widths = (config.model_channels, *reversed(config.widths))
        self.upsample = nn.ModuleList(UpBlock(a, b) for a, b in pairwise(widths))
        self.out_layer = nn.Linear(widths[-1], 1)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Decode; the output is float32 in (-1, 1), in units of the field."""
        h = self.run_trunk(x)
        for block in self.upsample:
            h = block(h)
        return h.replace(torch.tanh(self.out_layer(h.feats).float()))
