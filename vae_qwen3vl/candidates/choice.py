"""Which of several sentences is taken: the one that is on the whole most like the others, or most like a vector.

Minimum Bayes risk (Kumar and Byrne 2004; with sentences drawn from the model as their own judges, Eikema and Aziz
2022, "sampling-based minimum Bayes risk decoding"): the likeliest answer is one sentence, and often one that few of
the others resemble. Where a model spreads what it believes over many wordings, the sentence with the highest mean
likeness to the drawn ones says what most of them say. Knows vectors; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The sentence that was taken, and what it was taken from."""

    text: str
    place: int
    """Its number among the candidates."""
    candidates: tuple[str, ...]
    scores: tuple[float, ...]
    """Of each of them; the highest is taken."""

    def ranked(self) -> list[dict[str, str | float]]:
        """Return the different candidates with their scores, best first."""
        best: dict[str, float] = {}
        for text, score in zip(self.candidates, self.scores, strict=True):
            best[text] = max(score, best.get(text, score))
        order = sorted(best, key=lambda text: (text != self.text, -best[text]))
        return [{"text": text, "score": round(best[text], 4)} for text in order]


def mean_likeness(vectors: Tensor) -> Tensor:  # [n, E] -> [n]
    """Return each sentence's mean cosine with the others: the negative of its expected risk.

    `u_i = 1 / (n - 1) * sum over j != i of cos(v_i, v_j)`, the estimate of Eikema and Aziz 2022 with the cosine as
    utility and all other candidates as judges. A sentence that was drawn twice counts twice: that is how likely it
    is. One sentence alone has 0.

    Args:
        vectors: of length 1; zeros for an empty sentence, which is like nothing.
    """
    unit = vectors.double()
    alike = unit @ unit.T
    alike.fill_diagonal_(0.0)
    return alike.sum(dim=1) / max(1, len(unit) - 1)


def choose(texts: Sequence[str], vectors: Tensor, toward: Tensor | None = None, weight: float = 0.0) -> Choice:
    """Return the sentence with the highest `(1 - weight) u_i + weight cos(v_i, toward)`; of equal ones the first.

    Args:
        texts: the candidates.
        vectors: of length 1. `[n, E]`
        toward: what the sentence should be like, of length 1 `[E]`; None counts as `weight` 0.
        weight: how much that counts, 0 to 1.

    Raises:
        ValueError: there is no candidate, or not a vector for each.
    """
    if not texts or len(texts) != len(vectors):
        raise ValueError(f"{len(texts)} candidates and {len(vectors)} vectors: give each a vector, and one at least")
    scores = mean_likeness(vectors)
    if toward is not None:
        scores = (1 - weight) * scores + weight * (vectors.double() @ toward.double())
    place = int(torch.argmax(scores))
    return Choice(text=texts[place], place=place, candidates=tuple(texts), scores=tuple(scores.tolist()))
