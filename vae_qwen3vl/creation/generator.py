"""The generator: both networks, what they are trained by, and the bound on how likely an object is.

`forward` is the loss of training; `code_length` the bound. Drawing is in `drawing`, files in `generator_file`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vae_qwen3vl.creation.batches import Asked, ShapeBatch
from vae_qwen3vl.creation.config import GeneratorConfig
from vae_qwen3vl.creation.grids import ROOT
from vae_qwen3vl.creation.networks import MASKED, Conditions, WhatTransformer, WhereTransformer

WORDS_DROPPED = 0.1
"""Share of training objects without words: what guidance compares with."""
SIZES_DROPPED = 0.5
"""Share of training objects of whose sizes nothing is known, as where nobody gives them."""
SIZE_DROPPED = 0.3
"""Of the others, share of those whose proportions, and of those whose number of cells, is unknown."""
_SMOOTHING = 0.1
_MOST_LOGITS = 2**26
"""Logits that exist at a time, in float32 a quarter of a GiB."""


class ShapeGenerator(nn.Module):
    """Says which cells are occupied, then which codes stand there.

    Args:
        config: the architecture.
        codebook: float `[K, D]` of the tokenizer.
    """

    def __init__(self, config: GeneratorConfig, codebook: Tensor) -> None:
        super().__init__()
        self.config = config
        self.where = WhereTransformer(config)
        self.what = WhatTransformer(config, codebook)

    def forward(self, batch: ShapeBatch) -> dict[str, Tensor]:
        """Return `where` and `what`: mean cross-entropies of masked bytes and codes, smoothed by 0.1, in nats.

        The share of places that are masked is cos(pi u / 2) of an even u (MaskGIT: Chang et al. 2022), at least one.
        """
        count, device = len(batch.codes.mask), batch.codes.mask.device
        drawn = torch.rand(count, 4, device=device)
        sizes = (drawn[:, 1:2] >= SIZES_DROPPED) & (drawn[:, 2:] >= SIZE_DROPPED)
        given = batch.given.keeping(drawn[:, 0] >= WORDS_DROPPED, sizes)
        masks = [cosine_masks(asked.mask) for asked in (*batch.levels, batch.codes)]
        where = [
            self._byte_losses(asked, masked, given, smoothing=_SMOOTHING)
            for asked, masked in zip(batch.levels, masks[:-1], strict=True)
        ]
        what = self._code_losses(batch.codes, masks[-1], given, smoothing=_SMOOTHING)
        return {"where": torch.cat(where).mean(), "what": what.mean()}

    @torch.no_grad()
    def code_length(self, batch: ShapeBatch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return an estimate, without bias, of an upper bound on -log p of each object, in nats `[B]`.

        Values are said one after another in an order drawn evenly from all orders, so for L of them
        -log p <= E over k even in 1..L, and over the k of them that are not yet said, of L / k * (the sum of their
        cross-entropies): the bound of order-agnostic models (Uria et al. 2014; Hoogeboom et al. 2022), which in
        continuous time is that of masked diffusion (Sahoo et al. 2024; Shi et al. 2024).

        Args:
            batch: proportions and number of cells are left out, for they would tell of the object itself.
            generator: of the draws, on the CPU.

        Returns:
            `where` (bytes of all levels) and `what` (codes, given the cells).
        """
        given = batch.given.keeping(
            torch.ones_like(batch.given.sizes_mask[:, 0]), torch.zeros_like(batch.given.sizes_mask)
        )
        where = sum(self._bound(asked, given, self._byte_losses, generator) for asked in batch.levels)
        assert isinstance(where, Tensor)
        return {"where": where, "what": self._bound(batch.codes, given, self._code_losses, generator)}

    def _bound(
        self,
        asked: Asked,
        given: Conditions,
        losses: Callable[[Asked, Tensor, Conditions], Tensor],
        generator: torch.Generator | None,
    ) -> Tensor:  # [B]
        lengths = asked.mask.sum(1)
        drawn = torch.rand(len(lengths), generator=generator).to(lengths.device)
        masked_counts = (drawn * lengths).long().clamp(max=lengths - 1) + 1
        masked = random_masks(asked.mask, masked_counts, generator)
        rows = masked.nonzero()[:, 0]
        sums = torch.zeros(len(lengths), device=lengths.device).index_add(0, rows, losses(asked, masked, given))
        return sums * lengths / masked_counts

    def _byte_losses(
        self, asked: Asked, masked: Tensor, given: Conditions, smoothing: float = 0.0
    ) -> Tensor:  # [masked]
        values = asked.values.masked_fill(masked, MASKED)
        logits = self.where(values, asked.cells, asked.mask, asked.side, given)[masked]  # [m, 256]
        if asked.side > ROOT and not smoothing:  # an occupied cell has a child
            logits = logits.index_fill(1, torch.zeros(1, dtype=torch.long, device=logits.device), -math.inf)
        return _cross_entropy(logits.float(), asked.values[masked], smoothing)

    def _code_losses(
        self, asked: Asked, masked: Tensor, given: Conditions, smoothing: float = 0.0
    ) -> Tensor:  # [masked]
        table = self.what.code_tokens()
        queries = self.what(asked.values.masked_fill(masked, MASKED), asked.cells, asked.mask, given, table)
        return code_losses(queries[masked], table, self.what.biases(table), asked.values[masked], smoothing)


def code_losses(
    queries: Tensor, table: Tensor, biases: Tensor, targets: Tensor, smoothing: float = 0.0, most: int = _MOST_LOGITS
) -> Tensor:  # [T]
    """Return cross-entropies of codes, of which at most so many logits exist at a time, forward and backward.

    Args:
        queries: `[T, H]`.
        table: `[K, H]`.
        biases: `[K]`.
        targets: int64 `[T]`.
        smoothing: share of the target that is spread over all codes.
        most: logits in memory; K for one token if that is more.
    """
    rows = max(1, most // len(table))
    parts = []
    for some, wanted in zip(queries.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            part = checkpoint(_losses_of, some, table, biases, wanted, smoothing, use_reentrant=False)
        else:
            part = _losses_of(some, table, biases, wanted, smoothing)
        parts.append(part)
    return torch.cat(parts)


def cosine_masks(mask: Tensor) -> Tensor:  # [B, L] -> [B, L], bool
    """Draw which places of each object are masked: a share of cos(pi u / 2) for an even u, at least one."""
    lengths = mask.sum(1)
    share = torch.cos(torch.rand(len(mask), device=mask.device) * (math.pi / 2))
    return random_masks(mask, (share * lengths).ceil().long().clamp(min=1))


def random_masks(mask: Tensor, counts: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw `counts [B]` places of each object that are no padding: bool `[B, L]`."""
    if generator is None:
        scores = torch.rand(mask.shape, device=mask.device)
    else:
        scores = torch.rand(mask.shape, generator=generator).to(mask.device)
    ranks = scores.masked_fill(~mask, 2.0).argsort(1).argsort(1)
    return ranks < counts[:, None]


def _losses_of(queries: Tensor, table: Tensor, biases: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return _cross_entropy(F.linear(queries, table, biases).float(), targets, smoothing)


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
