"""The residual form of the network: space-to-channel steps, and a decoder that predicts which children exist.

The finest grid that has features is that of patches: a row there is a block of 2^3 or 4^3 voxels of the field, a
block of 4^3 as eight of 2^3, z fastest in both. Decoding needs codes and their cells only.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.trunk import Trunk
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.layers import VoxelNorm
from sdf_vqvae.sparse.residual import ResidualBlock, ResidualDown, ResidualUp, space_to_channel
from sdf_vqvae.sparse.tensor import SparseTensor

KEEP_LOGIT = -1.0
"""Children of at least this logit are kept. Below 0: a child too many costs time, one too few leaves a hole."""


@dataclass(frozen=True, kw_only=True)
class Occupancy:
    """What the decoder predicted of one level."""

    cells: CoordinateSet
    """The P cells that it was asked about."""
    logits: Tensor
    """float32 `[P, 8]`: whether each child, z fastest, touches the part of the band that the encoder sees."""
    truth: Tensor | None
    """bool `[P, 8]` where the true voxels were given."""


class ResidualEncoder(Trunk):
    """Distance field `[N, 1]` on the data grid to latent vectors `[M, D]` on the latent grid."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config, config.model_channels, config.blocks_of("encoder"))
        widths = (*config.widths, config.model_channels)
        self.patch_levels = config.patch_levels
        self.stem = nn.Linear(2 * config.patch_size**3, widths[0])
        self.levels = nn.ModuleList(_level_blocks(config, "encoder", i) for i in range(len(config.widths)))
        self.downsample = nn.ModuleList(ResidualDown(a, b) for a, b in pairwise(widths))
        self.out_layer = nn.Linear(config.model_channels, config.latent_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Encode; the output is float32."""
        patch = x.replace(torch.cat([x.feats, torch.ones_like(x.feats)], dim=1))  # values and marks of presence
        for _ in range(self.patch_levels):
            patch = space_to_channel(patch)
        h = patch.replace(self.stem(patch.feats))
        for blocks, down in zip(self.levels, self.downsample, strict=True):
            h = down(blocks(h))
        h = self.run_trunk(h)
        normalized = nn.functional.layer_norm(h.feats.float(), h.feats.shape[-1:])
        return h.replace(self.out_layer(normalized).float())


class ResidualDecoder(Trunk):
    """Code vectors `[M, D]` to a distance field on the data grid, in patches."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config, config.latent_channels, config.blocks_of("decoder"))
        widths = (config.model_channels, *reversed(config.widths))
        self.upsample = nn.ModuleList(ResidualUp(a, b) for a, b in pairwise(widths))
        self.occupancy = nn.ModuleList(
            _occupancy_head(width) for width in (widths[:-1] if config.predict_occupancy else ())
        )
        self.levels = nn.ModuleList(_level_blocks(config, "decoder", i) for i in reversed(range(len(config.widths))))
        self.out_norm = VoxelNorm(widths[-1])
        self.patch_levels = config.patch_levels
        self.out_layer = nn.Linear(widths[-1], config.patch_size**3)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Decode; the output is float32 in (-1, 1), in units of the field."""
        return self.predict(x, None)[0]

    def predict(self, x: SparseTensor, truth: CoordinateSet | None) -> tuple[SparseTensor, list[Occupancy]]:
        """Decode and return what was predicted of each level.

        Args:
            x: latent vectors.
            truth: the voxels that the encoder saw. Their cells are decoded in addition to the predicted ones,
                so that training sees both what is right and what decoding will meet.
        """
        h = self.run_trunk(x)
        known = _pyramid(truth, len(self.upsample), self.patch_levels)
        predicted: list[Occupancy] = []
        for number, (up, blocks) in enumerate(zip(self.upsample, self.levels, strict=True)):
            kept = None
            if len(self.occupancy):
                logits = self.occupancy[number](h.feats).float()
                here = known[number].contains(_children(h.coordinates)) if known else None
                predicted.append(Occupancy(cells=h.coordinates, logits=logits, truth=here))
                kept = kept_children(logits.detach())
                kept = kept if here is None else kept | here
            h = blocks(up(h, kept))
        values = torch.tanh(self.out_layer(self.out_norm(h).feats).float())
        voxels = h.coordinates
        for _ in range(self.patch_levels):
            voxels = voxels.finer()
        return SparseTensor(values.view(-1, 1), voxels), predicted


def kept_children(logits: Tensor) -> Tensor:
    """Return which children are decoded: those likely to exist, and of every cell the likeliest. bool `[P, 8]`"""
    return (logits >= KEEP_LOGIT).scatter(1, logits.argmax(1, keepdim=True), True)


def _occupancy_head(width: int) -> nn.Sequential:
    linear = nn.Linear(width, 8)
    nn.init.constant_(linear.bias, 2 * KEEP_LOGIT)  # training begins on the true voxels, not on all children
    return nn.Sequential(nn.LayerNorm(width), linear)


def _level_blocks(config: VAEConfig, half: str, level: int) -> nn.Sequential:
    count = config.level_blocks_of(half)[level]
    return nn.Sequential(*(ResidualBlock(config.widths[level], config.mlp_ratio) for _ in range(count)))


def _pyramid(truth: CoordinateSet | None, levels: int, below: int) -> list[CoordinateSet]:
    """Return the true cells of each of the levels that are predicted, coarsest first.

    `below`: halvings between the true voxels and the finest of them.
    """
    if truth is None:
        return []
    sets = [truth]
    for _ in range(below + levels - 1):
        sets.append(sets[-1].coarser()[0])
    return sets[: below - 1 : -1]


def _children(cells: CoordinateSet) -> Tensor:
    """Return the coordinates of all children of the cells. int32 `[P, 8, 4]`"""
    return cells.finer().coords.view(-1, 8, 4)
