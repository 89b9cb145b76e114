"""Codes learned by gradients or as moving averages, in space or on the unit sphere."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdf_vqvae.quantizers.quantizer import Quantizer

_UNUSED = 0.1
"""Codes used less than this share of the mean restart."""


class EuclideanQuantizer(Quantizer):
    """Codes that gradients learn, or moving averages.

    With `use_ema_update` the codes are moving averages of the vectors assigned to them (van den Oord et al., 2017,
    appendix A), counts and sums summed over all ranks, and codes that fall out of use restart at vectors of
    the current batch (Dhariwal et al., 2020).

    Args:
        num_embeddings: number of codes K.
        width: their width D.
        use_ema_update: learn by moving averages instead of gradients.
        vq_decay: decay of those averages.
        vq_epsilon: smoothing of the code counts.
        rotation_trick: see `Quantizer`.
    """

    settings: ClassVar = ("use_ema_update", "vq_decay", "vq_epsilon", *Quantizer.settings)

    ema_cluster_size: Tensor
    ema_w: Tensor
    _ema_initialized: Tensor

    def __init__(
        self,
        num_embeddings: int,
        width: int,
        *,
        use_ema_update: bool = False,
        vq_decay: float = 0.99,
        vq_epsilon: float = 1e-5,
        rotation_trick: bool = False,
    ) -> None:
        super().__init__(num_embeddings, width, rotation_trick=rotation_trick)
        self.use_ema_update = use_ema_update
        self.vq_decay = vq_decay
        self.vq_epsilon = vq_epsilon
        if use_ema_update:
            self.register_buffer("ema_cluster_size", torch.zeros(num_embeddings))
            self.register_buffer("ema_w", torch.zeros(num_embeddings, width))
            self.register_buffer("_ema_initialized", torch.tensor(False))
            self.embeddings.weight.requires_grad_(False)

    def losses(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the codebook loss (None where averages learn the codes) and the commitment loss."""
        if self.use_ema_update:
            return None, (vectors - codes).square().mean()
        return super().losses(vectors, codes)

    @torch.no_grad()
    def initialize(self, samples: Tensor, iterations: int = 10) -> None:
        """Place the codes by k-means, and let the averages start there."""
        super().initialize(samples, iterations)
        if self.use_ema_update:
            self._start_averages()

    def _start_averages(self) -> None:
        self.ema_cluster_size.fill_(1.0)
        self.ema_w.copy_(self.embeddings.weight)
        self._ema_initialized.fill_(True)

    @torch.no_grad()
    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the averages by a batch of all ranks, and the codes with them."""
        if not self.use_ema_update:
            return
        counts, sums = self.assign(vectors, indices)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if not bool(self._ema_initialized):
            self._start_averages()
        self.ema_cluster_size.lerp_(counts, 1 - self.vq_decay)
        self.ema_w.lerp_(sums, 1 - self.vq_decay)
        self.restart_unused(vectors)
        total = self.ema_cluster_size.sum()
        size = self.embeddings.num_embeddings
        smoothed = (self.ema_cluster_size + self.vq_epsilon) / (total + size * self.vq_epsilon) * total
        self.embeddings.weight.copy_(self.prepare(self.ema_w / smoothed[:, None]))

    def restart_unused(self, vectors: Tensor) -> None:
        """Move codes that are hardly used to random vectors of the batch `[M, D]` (rank 0's)."""
        mean = self.ema_cluster_size.mean()
        unused = (self.ema_cluster_size < _UNUSED * mean).nonzero().squeeze(1)
        drawn = vectors[torch.randint(len(vectors), (len(unused),), device=vectors.device)].float()
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(drawn, 0)
        self.ema_cluster_size[unused] = mean
        self.ema_w[unused] = drawn * mean


class CosineQuantizer(EuclideanQuantizer):
    """The same with vectors and codes on the unit sphere."""

    def prepare(self, vectors: Tensor) -> Tensor:
        """Bring encoder outputs `[M, D]` onto the unit sphere."""
        return nn.functional.normalize(vectors, dim=1)
