"""How evenly codes use their codebook. Knows counts alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
