"""Two codes where one is not enough: a second codebook for what the first leaves of the vectors farthest from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from sdf_vqvae.quantizers.euclidean import EuclideanQuantizer
from sdf_vqvae.quantizers.quantizer import check_range


class ResidualQuantizer(EuclideanQuantizer):
    """Residual vector quantization (Zeghidour et al., 2021, "SoundStream") of the vectors that need it.

    Indices are `[M, 2]`: the first code, and the second or -1. A vector has a second code if the mean square of what
    its first code leaves exceeds `second_from`. Training moves that bound so that `second_share` of the vectors have
    one; then it stays, and a vector's codes depend on nothing but the vector. Both codebooks are moving averages.

    Args:
        num_embeddings: number of first codes K.
        width: their width D.
        second_codes: number of second codes.
        second_share: share of the vectors that have one.
        **settings: see `EuclideanQuantizer`.
    """

    settings: ClassVar = ("second_codes", "second_share", *EuclideanQuantizer.settings)
    own_settings: ClassVar = ("second_codes", "second_share")
    columns: ClassVar = 2

    second_from: Tensor

    def __init__(
        self, num_embeddings: int, width: int, *, second_codes: int, second_share: float, **settings: Any
    ) -> None:
        super().__init__(num_embeddings, width, **settings)
        self.second_share = second_share
        self.second = EuclideanQuantizer(second_codes, width, **settings)
        self.register_buffer("second_from", torch.zeros(()))  # 0: there are no second codes yet

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Raise a ValueError if the values of a `VAEConfig` don't fit."""
        if not config["use_ema_update"]:
            raise ValueError("quantizer='residual' is learned by moving averages: use_ema_update=true")
        if not 0 < config["second_share"] < 1:
            raise ValueError(f"second_share lies between 0 and 1, got {config['second_share']}")

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the nearest first code of each vector `[M, D]`, and its second one. int64 `[M, 2]`"""
        first = super().nearest(vectors)
        left = self._left(vectors, first)
        far = ((_size(left) > self.second_from) & (self.second_from > 0)).nonzero().squeeze(1)
        second = torch.full_like(first, -1)
        if len(far):
            second[far] = self.second.nearest(left[far])
        return torch.stack([first, second], dim=1)

    def codes(self, indices: Tensor) -> Tensor:
        """Return the sums `[M, D]` of the codes of indices `[M, 2]`."""
        first, second = indices.unbind(1)
        return self.embeddings(first) + self.second.embeddings(second.clamp(min=0)) * (second >= 0)[:, None]

    def vectors(self, indices: Tensor) -> Tensor:
        """Return the sums `[M, D]` of the codes of indices `[M, 2]`; see `Quantizer.vectors`."""
        check_range(indices[:, 0], self.embeddings.num_embeddings)
        check_range(indices[:, 1], self.second.embeddings.num_embeddings, least=-1)
        return self.codes(indices)

    @torch.no_grad()
    def learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Move both codebooks, and the bound from which a vector has a second code."""
        first, second = indices.unbind(1)
        super().learn(vectors, first)
        left = self._left(vectors, first)
        bound = _of_all(torch.quantile(_size(left), 1 - self.second_share), mean=True)
        if float(self.second_from) == 0:
            far = left[_size(left) > bound]
            if _fewest(far) >= self.second.embeddings.num_embeddings:  # else a batch of more vectors is waited for
                self.second.initialize(far)
                self.second_from.copy_(bound)
            return
        self.second_from.lerp_(bound, 1 - self.vq_decay)
        far = (second >= 0).nonzero().squeeze(1)
        if _fewest(far):
            self.second.learn(left[far], second[far])

    def _left(self, vectors: Tensor, first: Tensor) -> Tensor:
        """Return what the first codes leave of vectors: float32 `[M, D]`."""
        return vectors.float() - self.embeddings.weight[first].float()


def _size(left: Tensor) -> Tensor:
    return left.square().mean(1)


def _of_all(value: Tensor, *, mean: bool) -> Tensor:
    """Return the mean, or the least, of a number of all ranks."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.SUM if mean else dist.ReduceOp.MIN)
        value = value / dist.get_world_size() if mean else value
    return value


def _fewest(rows: Tensor) -> int:
    """Return how many rows the rank has that has the fewest."""
    return int(_of_all(torch.tensor(len(rows), device=rows.device), mean=False))
