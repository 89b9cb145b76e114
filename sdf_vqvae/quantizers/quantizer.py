"""What every quantizer is: a codebook, its nearest code, and how gradients and losses pass it.

Never builds a matrix of M x K one-hot rows (64 KiB a token at K = 8192), which is why it does not stand on
a ready-made quantizer: those do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.utils.threads import CACHED, by_rows

_TABLE = 1 << 28
"""Distances of vectors to codes that are held at a time: a gigabyte."""
_RUN = 64
_VECTORS = 16
"""At least so many share a reading of all codes on a CPU, though their distances leave the cache."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What the quantizer returns for M vectors."""

    feats: Tensor
    """Code vectors `[M, D]`; gradients pass straight through to the input (van den Oord et al., 2017)."""
    indices: Tensor
    """int64 `[M]`."""
    codebook_loss: Tensor | None
    """mean (code - sg[input])^2, or None where no gradient learns the codes."""
    commitment_loss: Tensor
    """mean (input - sg[code])^2."""


class Quantizer(nn.Module):
    """Codebook `[K, D]` with nearest-neighbor assignment; `registry` has the kinds and their names in configs.

    Codes are `embeddings.weight`, whatever learns them; everything else that a kind keeps is for its learning alone
    and is left out of exported weights.

    Args:
        num_embeddings: number of codes K.
        width: their width D.
        rotation_trick: gradients pass by `rotated`, not unchanged.
    """

    settings: ClassVar[tuple[str, ...]] = ("rotation_trick",)
    """Keys of `VAEConfig` that the constructor takes."""
    own_settings: ClassVar[tuple[str, ...]] = ()
    """Those of them that this kind needs and no other takes."""
    columns: ClassVar[int] = 1
    """Codes that a vector may have. Indices are `[M]` where it is one, else `[M, columns]`, -1 for none."""
    fixed: ClassVar[bool] = False
    """The codes stay where they are made: none has to be placed before training."""

    def __init__(self, num_embeddings: int, width: int, *, rotation_trick: bool = False) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(num_embeddings, width)
        self.rotation_trick = rotation_trick

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Raise a ValueError if the values of a `VAEConfig` don't fit this kind."""

    def prepare(self, vectors: Tensor) -> Tensor:
        """Bring encoder outputs `[M, D]` to where the codes are."""
        return vectors

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the nearest code of each vector `[M, D]`, in float32. int64 `[M]`"""
        codes = self.embeddings.weight.float()
        if active_backend(vectors.device) == "triton":
            from sdf_vqvae.quantizers.nearest_triton import nearest_codes

            return nearest_codes(vectors.float().contiguous(), codes.contiguous())
        half_norm = codes.square().sum(1) / 2

        def search(rows: Tensor) -> Tensor:
            return _first_least(half_norm - rows.float() @ codes.T)

        with torch.autocast(vectors.device.type, enabled=False):
            chunks = vectors.split(max(1, _TABLE // len(codes)))
            parts = [by_rows(search, chunk, width=min(len(codes), CACHED // _VECTORS)) for chunk in chunks]
        return torch.cat(parts)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize float32 `[M, D]` from `prepare`; in training, also learn what no gradient learns."""
        indices = self.nearest(vectors.detach())
        codes = self.codes(indices)
        if self.training:
            self.learn(vectors.detach(), indices)
        fixed = codes.detach()
        feats = rotated(vectors, fixed) if self.rotation_trick else vectors + (fixed - vectors).detach()
        codebook_loss, commitment_loss = self.losses(vectors, codes)  # after: gradients add up in this order
        return Quantized(
            feats=feats,
            indices=indices,
            codebook_loss=codebook_loss,
            commitment_loss=commitment_loss,
        )

    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes `[M, D]` of indices `[M]`, with the gradients that learn them."""
        return self.embeddings(indices)

    def vectors(self, indices: Tensor) -> Tensor:
        """Return the codes `[M, D]` of indices `[M, columns]` as they are kept, without gradients to learn them.

        Raises:
            ValueError: an index outside the codebook.
        """
        check_range(indices[:, 0], self.embeddings.num_embeddings)
        return self.embeddings(indices[:, 0])

    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Take note of the vectors `[M, D]` of a training batch and of the codes `[M]` nearest to them."""

    def losses(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return the codebook loss and the commitment loss of vectors and their codes, both `[M, D]`."""
        return (codes - vectors.detach()).square().mean(), (vectors - codes.detach()).square().mean()

    @torch.no_grad()
    def initialize(self, samples: Tensor, iterations: int = 10) -> None:
        """Place the codes by k-means on encoder outputs `[S, D]`, S >= K; every rank gets those of rank 0.

        Raises:
            ValueError: fewer samples than codes.
        """
        size = self.embeddings.num_embeddings
        if len(samples) < size:
            raise ValueError(f"the codebook has {size} codes but only {len(samples)} vectors to start from")
        chosen = torch.randperm(len(samples), device=samples.device)[:size]
        self.embeddings.weight.copy_(samples[chosen])
        for _ in range(iterations):
            counts, sums = self.assign(samples, Quantizer.nearest(self, samples))
            filled = counts > 0
            self.embeddings.weight[filled] = self.prepare(sums[filled] / counts[filled, None])
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.embeddings.weight, 0)

    def assign(self, vectors: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many vectors each code got `[K]` and their sums `[K, D]`."""
        counts = torch.bincount(indices, minlength=self.embeddings.num_embeddings).float()
        sums = torch.zeros_like(self.embeddings.weight, dtype=torch.float32)
        return counts, sums.index_add_(0, indices, vectors.float())


def first_codes(indices: Tensor) -> Tensor:
    """Return the first code of each vector, of indices `[M]` or `[M, columns]`. `[M]`"""
    return indices if indices.ndim == 1 else indices[:, 0]


def check_range(indices: Tensor, size: int, least: int = 0) -> None:
    """Raise a ValueError unless indices `[M]` lie in `least..size - 1`."""
    low, high = torch.stack(torch.aminmax(indices)).tolist()
    if low < least or high >= size:
        raise ValueError(f"codes must lie in {least}..{size - 1}, got {low}..{high}")


def _first_least(values: Tensor) -> Tensor:
    """Return where the least value of each row `[M, K]` stands first. int64 `[M]`

    The same as `argmin`, which is slow on a CPU: first the run of columns that holds it, by least values alone.
    """
    runs = values.unflatten(1, (-1, math.gcd(values.shape[1], _RUN)))  # [M, runs, columns of one]
    run = runs.amin(2).argmin(1)
    return run * runs.shape[2] + runs[torch.arange(len(run), device=run.device), run].argmin(1)


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
