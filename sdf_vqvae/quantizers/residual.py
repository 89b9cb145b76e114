"""Two codes where one is not enough: a second codebook for what the first leaves of the vectors farthest from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from sdf_vqvae.quantizers.euclidean import EuclideanQuantizer
from sdf_vqvae.quantizers.quantizer import check_range

_VECTORS = 4
"""Vectors a second code that are gathered before those codes are placed."""


class ResidualQuantizer(EuclideanQuantizer):
    """Residual vector quantization (Zeghidour et al., 2021, "SoundStream") of the vectors that need it.

    Indices are `[M, 2]`: the first code, and the second or -1. A vector has a second code if the mean square of what
    its first code leaves exceeds `second_from`. Training moves that bound so that `second_share` of the vectors have
    one; then it stays, and a vector's codes depend on nothing but the vector. Both codebooks are moving averages; the
    second begins by k-means once enough batches have left something to place its codes by, and until then no vector
    has a second code.

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
    gathered: Tensor
    gathered_count: Tensor

    def __init__(
        self, num_embeddings: int, width: int, *, second_codes: int, second_share: float, **settings: Any
    ) -> None:
        super().__init__(num_embeddings, width, **settings)
        self.second_share = second_share
        self.second = EuclideanQuantizer(second_codes, width, **settings)
        self.register_buffer("second_from", torch.zeros(()))  # 0: there are no second codes yet
        # What first codes left of the vectors farthest from them, rank 0's: buffers, so that a stopped run goes on.
        self.register_buffer("gathered", torch.zeros(_VECTORS * second_codes, width))
        self.register_buffer("gathered_count", torch.zeros((), dtype=torch.int64))

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
        bound = _mean_of_ranks(torch.quantile(_size(left), 1 - self.second_share))
        if float(self.second_from) == 0:
            if self._gather(left[_size(left) > bound]):
                self.second.initialize(self.gathered)
                self.second_from.copy_(bound)
            return
        self.second_from.lerp_(bound, 1 - self.vq_decay)
        far = (second >= 0).nonzero().squeeze(1)
        if _every_rank_has(far):
            self.second.learn(left[far], second[far])

    def _gather(self, left: Tensor) -> bool:
        """Keep rank 0's rows of `[F, D]`, as many as are still needed, and return whether there are enough now."""
        count = int(self.gathered_count)
        more = left[: len(self.gathered) - count]
        self.gathered[count : count + len(more)] = more
        self.gathered_count += len(more)
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.gathered, 0)
            dist.broadcast(self.gathered_count, 0)
        return int(self.gathered_count) == len(self.gathered)

    def _left(self, vectors: Tensor, first: Tensor) -> Tensor:
        """Return what the first codes leave of vectors: float32 `[M, D]`."""
        return vectors.float() - self.embeddings.weight[first].float()


def _size(left: Tensor) -> Tensor:
    return left.square().mean(1)


def _mean_of_ranks(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def _every_rank_has(rows: Tensor) -> bool:
    fewest = torch.tensor(len(rows), device=rows.device)
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(fewest, dist.ReduceOp.MIN)
    return bool(fewest > 0)
