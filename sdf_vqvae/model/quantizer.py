"""The codebook: nearest code, its learning by gradients or moving averages, and its health.

Never builds a matrix of M x K one-hot rows (64 KiB a token at K = 8192), which is why it does not stand on
a ready-made quantizer: those do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

_CHUNK = 16384


@dataclass(frozen=True, kw_only=True)
class CodebookHealth:
    """How evenly a set of codes uses a codebook of K entries."""

    used: float
    """Fraction of the codebook that occurs at least once."""
    perplexity: float
    """exp of the entropy of the code frequencies; K if all are equally frequent."""
    dead: int
    """Codes that never occur."""
    top_percent_mass: float
    """Share of all tokens that the most frequent 1 % of the codes take."""


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Summarize code counts `[K]` (integers)."""
    total = counts.sum().clamp(min=1).double()
    share = counts.double() / total
    positive = share[share > 0]
    top = torch.topk(share, max(1, len(counts) // 100)).values.sum()
    return CodebookHealth(
        used=float((counts > 0).double().mean()),
        perplexity=float(torch.exp(-(positive * positive.log()).sum())),
        dead=int((counts == 0).sum()),
        top_percent_mass=float(top),
    )


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What the quantizer returns for M vectors."""

    feats: Tensor
    """Code vectors `[M, D]`; gradients pass straight through to the input (van den Oord et al., 2017)."""
    indices: Tensor
    """int64 `[M]`."""
    codebook_loss: Tensor | None
    """mean (code - sg[input])^2, or None where moving averages learn the codebook."""
    commitment_loss: Tensor
    """mean (input - sg[code])^2."""


class SparseVectorQuantizer(nn.Module):
    """Codebook `[K, D]` with Euclidean nearest-neighbor assignment.

    With `use_ema` the codes are moving averages of the vectors assigned to them (van den Oord et al., 2017,
    appendix A), counts and sums summed over all ranks, and codes that fall out of use restart at vectors of
    the current batch (Dhariwal et al., 2020).
    """

    ema_cluster_size: Tensor
    ema_w: Tensor
    _ema_initialized: Tensor

    def __init__(self, num_embeddings: int, width: int, *, use_ema: bool, decay: float, epsilon: float) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(num_embeddings, width)
        self.use_ema = use_ema
        self.decay = decay
        self.epsilon = epsilon
        if use_ema:
            self.embeddings.weight.requires_grad_(False)
            self.register_buffer("ema_cluster_size", torch.zeros(num_embeddings))
            self.register_buffer("ema_w", torch.zeros(num_embeddings, width))
            self.register_buffer("_ema_initialized", torch.tensor(False))

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code of each vector `[M, D]`, in float32. int64 `[M]`."""
        codes = self.embeddings.weight.float()
        half_norm = codes.square().sum(1) / 2
        with torch.autocast(vectors.device.type, enabled=False):
            parts = [(half_norm - part.float() @ codes.T).argmin(1) for part in vectors.split(_CHUNK)]
        return torch.cat(parts)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize float32 `[M, D]`; in training with moving averages, also update the codebook."""
        indices = self.nearest(vectors.detach())
        codes = self.embeddings(indices)
        if self.use_ema and self.training:
            self._update(vectors.detach(), indices)
        return Quantized(
            feats=vectors + (codes - vectors).detach(),
            indices=indices,
            codebook_loss=None if self.use_ema else (codes - vectors.detach()).square().mean(),
            commitment_loss=(vectors - codes.detach()).square().mean(),
        )

    @torch.no_grad()
    def initialize(self, samples: Tensor, iterations: int = 10) -> None:
        """Place the codes by k-means on encoder outputs `[S, D]`, S >= K.

        Raises:
            ValueError: fewer samples than codes.
        """
        size = self.embeddings.num_embeddings
        if len(samples) < size:
            raise ValueError(f"the codebook has {size} codes but only {len(samples)} vectors to start from")
        chosen = torch.randperm(len(samples), device=samples.device)[:size]
        self.embeddings.weight.copy_(samples[chosen])
        for _ in range(iterations):
            counts, sums = self._assign(samples, self.nearest(samples))
            filled = counts > 0
            self.embeddings.weight[filled] = sums[filled] / counts[filled, None]
        if self.use_ema:
            self.ema_cluster_size.fill_(1.0)
            self.ema_w.copy_(self.embeddings.weight)
            self._ema_initialized.fill_(True)

    def _assign(self, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many vectors each code got `[K]` and their sums `[K, D]`."""
        counts = torch.bincount(indices, minlength=self.embeddings.num_embeddings).float()
        sums = torch.zeros_like(self.embeddings.weight, dtype=torch.float32)
        return counts, sums.index_add_(0, indices, vectors.float())

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor) -> None:
        counts, sums = self._assign(vectors, indices)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if not bool(self._ema_initialized):
            self.ema_cluster_size.fill_(1.0)
            self.ema_w.copy_(self.embeddings.weight)
            self._ema_initialized.fill_(True)
        self.ema_cluster_size.lerp_(counts, 1 - self.decay)
        self.ema_w.lerp_(sums, 1 - self.decay)
        self._restart_unused(vectors)
        total = self.ema_cluster_size.sum()
        size = self.embeddings.num_embeddings
        smoothed = (self.ema_cluster_size + self.epsilon) / (total + size * self.epsilon) * total
        self.embeddings.weight.copy_(self.ema_w / smoothed[:, None])

    def _restart_unused(self, vectors: Tensor) -> None:
        """Move codes used less than a hundredth of the mean to random vectors of the batch (rank 0's)."""
        mean = self.ema_cluster_size.mean()
        unused = (self.ema_cluster_size < 0.01 * mean).nonzero().squeeze(1)
        drawn = vectors[torch.randint(len(vectors), (len(unused),), device=vectors.device)].float()
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(drawn, 0)
        self.ema_cluster_size[unused] = mean
        self.ema_w[unused] = drawn * mean
