"""How sure a model is of an answer: the mean probability of its tokens, and what that means for its being right.

A language model's own probability ranks its answers, but is no probability of being right (Kadavath et al. 2022). Two
numbers, fitted on objects nobody trained on, make one of it (Platt 1999); `confidence.json` beside a projector holds
them. Knows numbers and texts; knows nothing of models.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.strict_files import read_mapping

Array = npt.NDArray[np.float64]

CALIBRATION = "confidence.json"
_ASIDE = re.compile(r"\s*[,(]")
"""Begins what captions add to a name: its category, its pack."""
_ARTICLE = re.compile(r"(?:an?|the|some|two|several)\s", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the mean probability of an answer's tokens says of its being right: sigmoid(slope * mean + intercept)."""

    slope: float
    intercept: float
    prompt: str
    """The question whose answers it was fitted on; it says nothing of others."""
    right: str
    """What counted as right, in words."""
    data: str
    """Which objects it was fitted on, in words."""
    projector: str
    """SHA-256 of the file of the projector that gave the answers."""

    def probability(self, mean: float) -> float:
        """Return the probability that an answer is right, from the mean probability of its tokens."""
        return 1 / (1 + math.exp(-(self.slope * mean + self.intercept)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        write_json(path, asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ValueError: it is something else.
        """
        given = read_mapping(Path(path))
        expected = {one.name: float if one.type == "float" else str for one in fields(cls)}
        wrong = [name for name, kind in expected.items() if not isinstance(given.get(name), kind)]
        if wrong or given.keys() != expected.keys():
            raise ValueError(f"{path} is no calibration of confidence: expected {', '.join(expected)}")
        return cls(**given)


def four_digits(probability: float | None) -> float | None:
    """Return a probability as files and answers show it."""
    return None if probability is None else round(probability, 4)


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def platt(means: Array, right: npt.NDArray[np.bool_], steps: int = 100) -> tuple[float, float]:
    """Return slope and intercept of the logistic regression of being right on the mean probability.

    Targets are (n+ + 1) / (n+ + 2) and 1 / (n- + 2), as Platt (1999) has them, so that few objects that happen to be
    separable give no infinite slope. Solved by Newton's method.

    Args:
        means: mean probabilities `[N]`.
        right: whether each answer was right `[N]`.
        steps: at most.

    Raises:
        ValueError: all answers are right, or none is.
    """
    hits, misses = int(right.sum()), int((~right).sum())
    if not hits or not misses:
        raise ValueError(f"{hits} of {len(right)} answers are right: a calibration needs right and wrong ones")
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (misses + 2))
    inputs = np.stack([means, np.ones(len(means))], axis=1)  # [N, 2]
    weights = np.zeros(2)
    for _ in range(steps):
        said = 1 / (1 + np.exp(-inputs @ weights))
        curvature = inputs.T @ (inputs * (said * (1 - said))[:, None]) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, inputs.T @ (targets - said))
        weights += step
        if np.abs(step).max() < 1e-9:
            break
    return float(weights[0]), float(weights[1])


def check_calibrated(known: Calibration | None, prompt: str) -> None:
    """Raise a ValueError unless answers to a question have a calibration."""
    if known is None:
        raise ValueError(
            f"--abstain needs to know how often answers are right, and this model has no {CALIBRATION} beside its "
            "projector"
        )
    if known.prompt.strip() != prompt.strip():
        raise ValueError(
            f"--abstain knows how often answers to {known.prompt!r} are right, and nothing of {prompt!r}: leave the "
            "question out, or --abstain"
        )


def hedged(text: str) -> str:
    """Return an answer as somebody says it who is not sure: "something like a chair"."""
    words = _ASIDE.split(text.strip(), maxsplit=1)[0].rstrip(".")
    if not words:
        return "something that I can't name"
    if _ARTICLE.match(words):
        return f"something like {words[0].lower()}{words[1:]}"
    return f"something like {'an' if words[0].lower() in 'aeiou' else 'a'} {words}"


class GreedyProbabilities:
    """The probability of each token that `generate` takes greedily: one of its logits processors, the last.

    Give it as `logits_processor=[it]` of one call, then ask for `means`.
    """

    def __init__(self) -> None:
        self._taken: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Note the largest probability of each row of scores `[B, V]`, and return the scores."""
        wide = scores.float()
        self._taken.append((wide.amax(-1) - wide.logsumexp(-1)).exp())
        return scores

    def means(self, ids: Tensor, ends: Iterable[int]) -> list[float]:
        """Return each row's mean probability, to the token that ends it and with that one.

        Args:
            ids: new tokens `[B, new]`, as `generate` returns them.
            ends: tokens that end an answer.
        """
        taken = torch.stack(self._taken, dim=1)[:, : ids.shape[1]]  # [B, new]
        ended = torch.isin(ids, torch.tensor(list(ends), device=ids.device))
        counted = ended.cumsum(1) - ended.long() == 0
        return [float(mean) for mean in (taken * counted).sum(1) / counted.sum(1)]


def risk_coverage(sure: Sequence[float], scores: Array, coverages: Sequence[float]) -> list[dict[str, Any]]:
    """Return the mean score of the surest answers, for several shares of answers that are given.

    Args:
        sure: of each answer, any number that is larger where the model is surer. `[N]`
        scores: how good each is. `[N]`
        coverages: shares of the answers, above 0 and at most 1.

    Returns:
        For each `coverage`: `answers`, their mean `score`, and `best`, that of the best order there could be. In an
        order by chance it is the mean of all.
    """
    order = np.argsort(-np.asarray(sure, dtype=np.float64), kind="stable")
    by_sure, by_score = np.asarray(scores)[order], np.sort(scores)[::-1]
    rows = []
    for coverage in coverages:
        count = max(1, round(coverage * len(by_sure)))
        row = {"coverage": coverage, "answers": count, "score": float(by_sure[:count].mean())}
        rows.append(row | {"best": float(by_score[:count].mean())})
    return rows
