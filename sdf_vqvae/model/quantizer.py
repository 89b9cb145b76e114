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
_UNUSED = 0.1
"""Codes used less than this share of the mean restart."""


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


def rotated(vectors: Tensor, codes: Tensor) -> Tensor:
    """Return `codes` `[M, D]` as the vectors `[M, D]` rotated onto them and scaled.

    Gradients turn back by the same rotation (Fifty et al., 2024, "Restructuring Vector Quantization with the
    Rotation Trick"): with e and q the unit vectors of input and code and r that of e + q, the rotation in their
    plane is `x - 2 r (r.x) + 2 q (e.x)`.
    """
    with torch.no_grad():
        length, target = vectors.norm(dim=1, keepdim=True), codes.norm(dim=1, keepdim=True)
        e, q = vectors / length.clamp(min=1e-6), codes / target.clamp(min=1e-6)
        r = nn.functional.normalize(e + q, dim=1)
        scale = target / length.clamp(min=1e-6)
    turned = vectors - 2 * r * (r * vectors).sum(1, keepdim=True) + 2 * q * (e * vectors).sum(1, keepdim=True)
    return turned * scale


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
    """Codebook `[K, D]` with nearest-neighbor assignment; `VAEConfig.quantizer` names the kinds.

    With `use_ema` the codes are moving averages of the vectors assigned to them (van den Oord et al., 2017,
    appendix A), counts and sums summed over all ranks, and codes that fall out of use restart at vectors of
    the current batch (Dhariwal et al., 2020).
    """

    ema_cluster_size: Tensor
    ema_w: Tensor
    _ema_initialized: Tensor
    simvq_basis: Tensor

    def __init__(
        self,
        num_embeddings: int,
        width: int,
        *,
        use_ema: bool,
        decay: float,
        epsilon: float,
        kind: str = "euclidean",
        fsq_levels: tuple[int, ...] = (),
        rotation_trick: bool = False,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(num_embeddings, width)
        self.use_ema = use_ema
        self.decay = decay
        self.epsilon = epsilon
        self.kind = kind
        self.fsq_levels = fsq_levels
        self.rotation_trick = rotation_trick
        if use_ema:
            self.register_buffer("ema_cluster_size", torch.zeros(num_embeddings))
            self.register_buffer("ema_w", torch.zeros(num_embeddings, width))
            self.register_buffer("_ema_initialized", torch.tensor(False))
        if kind == "simvq":
            self.register_buffer("simvq_basis", self.embeddings.weight.detach().clone())
            self.simvq_map = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.simvq_map.weight)
        if kind == "fsq":
            axes = [torch.linspace(-1, 1, n) for n in fsq_levels]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, width)
            self.embeddings.weight.data.copy_(grid)
        if use_ema or kind in ("simvq", "fsq"):
            self.embeddings.weight.requires_grad_(False)

    def prepare(self, vectors: Tensor) -> Tensor:
        """Bring encoder outputs `[M, D]` to where the codes are: the unit sphere, or the cube of `fsq`."""
        if self.kind == "cosine":
            return nn.functional.normalize(vectors, dim=1)
        if self.kind == "fsq":
            # A little beyond the cube, so that the outermost values take as much of the axis as the others.
            reach = [n / (n - 1) for n in self.fsq_levels]
            return vectors.tanh() * torch.tensor(reach, device=vectors.device)
        return vectors

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code of each vector `[M, D]`, in float32. int64 `[M]`."""
        codes = self.embeddings.weight.float()
        half_norm = codes.square().sum(1) / 2
        with torch.autocast(vectors.device.type, enabled=False):
            parts = [(half_norm - part.float() @ codes.T).argmin(1) for part in vectors.split(_CHUNK)]
        return torch.cat(parts)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize float32 `[M, D]` from `prepare`; in training with moving averages, also update the codebook."""
        if self.kind == "simvq" and self.training:
            self._refresh()
        indices = self.nearest(vectors.detach())
        codes = self.embeddings(indices)
        if self.kind == "simvq":
            codes = self.simvq_map(self.simvq_basis[indices])
        if self.use_ema and self.training:
            self._update(vectors.detach(), indices)
        learned = not self.use_ema and self.kind != "fsq"
        fixed = codes.detach()
        return Quantized(
            feats=rotated(vectors, fixed) if self.rotation_trick else vectors + (fixed - vectors).detach(),
            indices=indices,
            codebook_loss=(codes - vectors.detach()).square().mean() if learned else None,
            commitment_loss=(vectors - fixed).square().mean() if self.kind != "fsq" else vectors.new_zeros(()),
        )

    @torch.no_grad()
    def _refresh(self) -> None:
        """Write the codes that the learned map of `simvq` makes at this moment."""
        self.embeddings.weight.copy_(self.simvq_map(self.simvq_basis))

    @torch.no_grad()
    def initialize(self, samples: Tensor, iterations: int = 10) -> None:
        """Place the codes by k-means on encoder outputs `[S, D]`, S >= K; every rank gets those of rank 0.

        The grid of `fsq` is left as it is.

        Raises:
            ValueError: fewer samples than codes.
        """
        if self.kind == "fsq":
            return
        size = self.embeddings.num_embeddings
        if len(samples) < size:
            raise ValueError(f"the codebook has {size} codes but only {len(samples)} vectors to start from")
        chosen = torch.randperm(len(samples), device=samples.device)[:size]
        self.embeddings.weight.copy_(samples[chosen])
        for _ in range(iterations):
            counts, sums = self._assign(samples, self.nearest(samples))
            filled = counts > 0
            self.embeddings.weight[filled] = self.prepare(sums[filled] / counts[filled, None])
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.embeddings.weight, 0)
        if self.kind == "simvq":
            self.simvq_basis.copy_(self.embeddings.weight)
            nn.init.eye_(self.simvq_map.weight)
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
        self.embeddings.weight.copy_(self.prepare(self.ema_w / smoothed[:, None]))

    def _restart_unused(self, vectors: Tensor) -> None:
        """Move codes that are hardly used to random vectors of the batch (rank 0's)."""
        mean = self.ema_cluster_size.mean()
        unused = (self.ema_cluster_size < _UNUSED * mean).nonzero().squeeze(1)
        drawn = vectors[torch.randint(len(vectors), (len(unused),), device=vectors.device)].float()
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(drawn, 0)
        self.ema_cluster_size[unused] = mean
        self.ema_w[unused] = drawn * mean
