"""The transformer on the latent grid that encoder and decoder share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.sparse.attention import AbsolutePositionEmbedder, SparseTransformerBlock
from sdf_vqvae.sparse.tensor import SparseTensor


class Trunk(nn.Module):
    """Linear layer, position code and transformer blocks on the latent grid; shared by encoder and decoder."""

    def __init__(self, config: VAEConfig, in_channels: int, num_blocks: int) -> None:
        super().__init__()
        channels = config.model_channels
        self.use_checkpoint = config.use_checkpoint
        self.pos_embedder = AbsolutePositionEmbedder(channels)
        self.input_layer = nn.Linear(in_channels, channels)
        window = None if config.attn_mode == "full" else config.window_size
        self.blocks = nn.ModuleList(
            SparseTransformerBlock(
                channels,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                window_size=window,
                shift=config.window_size // 2 if config.attn_mode == "swin" and i % 2 else 0,
                qk_rms_norm=config.qk_rms_norm,
            )
            for i in range(num_blocks)
        )

    def run_trunk(self, x: SparseTensor) -> SparseTensor:
        """`[M, in_channels]` to `[M, C]`."""
        feats = self.input_layer(x.feats)
        h = x.replace(feats + self.pos_embedder(x.coords[:, 1:]).to(feats.dtype))
        for block in self.blocks:
            if self.use_checkpoint and self.training:
                h = h.replace(checkpoint(_features_of, block, h, h.feats, use_reentrant=False))
            else:
                h = block(h)
        return h


def _features_of(block: nn.Module, like: SparseTensor, feats: Tensor) -> Tensor:
    """Run a block on `feats`, which checkpointing must see as a tensor argument."""
    return block(like.replace(feats)).feats
