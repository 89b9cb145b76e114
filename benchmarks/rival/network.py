"""The rival design's network: a dense VQ-VAE on 64^3 occupancy with 1,024 tokens an object.

After the published description of ShapeLLM-Omni (see docs/rival.md for what is published and what was chosen): a 3D
U-Net's encoder to 16^3 cells of 8 channels, every four neighbors joined to one of 1,024 vectors of 32, 8,192 codes,
and the mirror image of the encoder. Written from that description; knows occupancy grids and nothing of meshes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from occupancy import SIDE
from torch import Tensor, nn
from torch.nn import functional

from sdf_vqvae.quantizers.euclidean import EuclideanQuantizer

CELLS = 16
"""Side of the latent grid."""
CHANNELS = 8
"""Width of a latent cell."""
JOINED = 4
"""Cells in a row (along z) that make a token."""
TOKENS = CELLS**3 // JOINED
CODES = 8192
_GROUPS = 8
_RARE = -3.5
"""Logit of 3 %, about the share of voxels that are occupied: where the answers start."""


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """Size of the network."""

    widths: tuple[int, int, int]
    """Channels at 64^3, 32^3 and 16^3, multiples of 8."""
    blocks: int = 2
    """Residual blocks at each level of each half, and as many more in its middle."""


def config_for(parameters: int) -> RivalConfig:
    """Return the largest network of at most so many parameters.

    Its widths are as 1 : 4 : 16, which is TRELLIS's ratio, but at least 16 at the finest level, where 8 would be few.

    Raises:
        ValueError: the budget is smaller than the smallest network.
    """
    best = None
    for top in range(8, 1025, 8):
        widths = (max(16, _multiple_of_eight(top / 16)), max(16, _multiple_of_eight(top / 4)), top)
        with torch.device("meta"):
            count = parameter_count(DenseOccupancyVQVAE(RivalConfig(widths=widths)))
        if count > parameters:
            break
        best = RivalConfig(widths=widths)
    if best is None:
        raise ValueError(f"--parameters must be at least {count:,} for the smallest network, got {parameters:,}")
    return best


def parameter_count(module: nn.Module) -> int:
    """Return the number of parameters, the codebook's included."""
    return sum(p.numel() for p in module.parameters())


def _multiple_of_eight(width: float) -> int:
    return 8 * round(width / 8)


class Norm(nn.GroupNorm):
    """Group normalization that answers in the type it is asked in (autocast would answer in float32)."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[B, C, s, s, s]`."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return functional.group_norm(x, self.num_groups, weight, bias, self.eps)


class Block(nn.Module):
    """Two convolutions with a shortcut; at first the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1))
        self.second = nn.Sequential(Norm(channels), nn.SiLU(), nn.Conv3d(channels, channels, 3, padding=1))
        nn.init.zeros_(self.second[2].weight)
        nn.init.zeros_(self.second[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, s, s, s]` to the same."""
        return x + self.second(self.first(x))


def _blocks(channels: int, count: int) -> list[nn.Module]:
    return [Block(channels) for _ in range(count)]


def make_encoder(config: RivalConfig) -> nn.Sequential:
    """Occupancy `[B, 1, 64, 64, 64]` to latent cells `[B, 8, 16, 16, 16]`."""
    fine, middle, coarse = config.widths
    return nn.Sequential(
        nn.Conv3d(1, fine, 3, padding=1),
        *_blocks(fine, config.blocks),
        nn.Conv3d(fine, middle, 2, stride=2),
        *_blocks(middle, config.blocks),
        nn.Conv3d(middle, coarse, 2, stride=2),
        *_blocks(coarse, 2 * config.blocks),
        Norm(coarse),
        nn.SiLU(),
        nn.Conv3d(coarse, CHANNELS, 3, padding=1),
    )


def make_decoder(config: RivalConfig) -> nn.Sequential:
    """Latent cells `[B, 8, 16, 16, 16]` to logits `[B, 1, 64, 64, 64]`."""
    fine, middle, coarse = config.widths
    last = nn.Conv3d(fine, 1, 3, padding=1)
    nn.init.constant_(last.bias, _RARE)
    return nn.Sequential(
        nn.Conv3d(CHANNELS, coarse, 3, padding=1),
        *_blocks(coarse, 2 * config.blocks),
        nn.ConvTranspose3d(coarse, middle, 2, stride=2),
        *_blocks(middle, config.blocks),
        nn.ConvTranspose3d(middle, fine, 2, stride=2),
        *_blocks(fine, config.blocks),
        Norm(fine),
        nn.SiLU(),
        last,
    )


class TokenQuantizer(EuclideanQuantizer):
    """Our codebook of moving averages; codes out of use restart at tokens that the surface passes through.

    Three tokens of four are empty space here, and a code that restarts there stays unused.
    """

    restart_from: Tensor | None = None
    """Which vectors of the batch in hand are not empty, bool `[M]`."""

    def restart_unused(self, vectors: Tensor) -> None:
        """Move codes that are hardly used to random vectors of the batch that are not empty."""
        if self.restart_from is not None and bool(self.restart_from.any()):
            vectors = vectors[self.restart_from]
        super().restart_unused(vectors)


class DenseOccupancyVQVAE(nn.Module):
    """Occupancy -> 1,024 tokens -> occupancy."""

    def __init__(self, config: RivalConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        self.decoder = make_decoder(config)
        self.vq = TokenQuantizer(CODES, CHANNELS * JOINED, use_ema_update=True, vq_decay=0.98)

    def latent(self, grids: Tensor) -> Tensor:
        """Encode grids bool `[B, 64, 64, 64]` to token vectors float32 `[B * 1024, 32]`."""
        x = grids[:, None].to(torch.float32).contiguous(memory_format=torch.channels_last_3d)
        cells = self.encoder(x).float()  # [B, 8, 16, 16, 16]
        return cells.permute(0, 2, 3, 4, 1).reshape(-1, JOINED * CHANNELS)

    def logits(self, vectors: Tensor) -> Tensor:
        """Decode token vectors `[B * 1024, 32]` to logits `[B, 64, 64, 64]`."""
        cells = vectors.view(-1, CELLS, CELLS, CELLS, CHANNELS).permute(0, 4, 1, 2, 3)
        return self.decoder(cells)[:, 0].float()

    @torch.no_grad()
    def encode(self, grids: Tensor) -> Tensor:
        """Return the codes of grids, int64 `[B, 1024]`."""
        return self.vq.nearest(self.latent(grids)).view(len(grids), TOKENS)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the probability that each voxel is occupied, float32 `[B, 64, 64, 64]`, of codes `[B, 1024]`."""
        return self.logits(self.vq.embeddings(codes.reshape(-1))).sigmoid()


def tokens_of_surface(grids: Tensor) -> Tensor:
    """Return which tokens hold an occupied voxel in their own block of 4 x 4 x 16. bool `[B * 1024]`"""
    step = SIDE // CELLS
    pool = (step, step, step * JOINED)
    return (functional.max_pool3d(grids[:, None].float(), pool) > 0).reshape(-1)


def occupancy_loss(logits: Tensor, grids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy, mean over voxels, plus the Dice loss, mean over objects; and the parts."""
    truth = grids.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, truth)
    p, t = logits.sigmoid().flatten(1), truth.flatten(1)
    dice = (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()
    return entropy + dice, {"bce": entropy, "dice": dice}


def voxel_iou(probability: Tensor, grids: Tensor) -> Tensor:
    """Return the intersection over union of each object's voxels of probability at least one half. `[B]`"""
    occupied, truth = (probability >= 0.5).flatten(1), grids.flatten(1)
    return (occupied & truth).sum(1) / (occupied | truth).sum(1).clamp(min=1)
