"""How well scores pick the right candidate: classification and retrieval.

Takes a matrix of scores `[objects, candidates]`, higher is better. Every measure is one number an object. Equal
scores are counted as in a random order of them: the expected value, so that a scorer which gives every candidate the
same score gets what guessing gets. Knows numbers; knows nothing of texts or models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from sdf_vqvae.evaluation.bootstrap import Array

TO_TEXTS = "object to texts"
TO_OBJECTS = "text to objects"
DIRECTIONS = (TO_TEXTS, TO_OBJECTS)


def ranking_scores(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, tops: Sequence[int] = (1, 5)
) -> dict[str, Array]:
    """Return each object's `top_k` for every k of `tops`. Each `[objects]`

    Args:
        scores: of each candidate for each object, higher is better. `[objects, candidates]`
        targets: the number of each object's right candidate, from 0. `[objects]`
        tops: how many of the best candidates may hold the right one.

    Raises:
        ValueError: the shapes don't fit together, a score is NaN, or a target is no candidate.
    """
    better, equal = _rivals(scores, targets)
    return {f"top_{k}": _expected_hit(better, equal, k) for k in tops}


def mutual_information(scores: Array) -> Array:
    """Return how much likelier each text is with an object than with one of the objects at random.

    Without the second part, some texts would be likely, or unlikely, whatever the shape.

    Args:
        scores: log-likelihoods `[objects, texts]`.

    Returns:
        log p(text | object) - log p(text), p(text) being the mean of p(text | object) over the objects (Church and
        Hanks, 1990), `[objects, texts]`.
    """
    return scores - (np.logaddexp.reduce(scores, axis=0) - np.log(len(scores)))


def retrieval_scores(scores: npt.ArrayLike, *, tops: Sequence[int] = (1, 5, 10)) -> dict[str, dict[str, Array]]:
    """Return `recall_k` for every k of `tops`, for both directions.

    Args:
        scores: of each text for each object; text i is the right one of object i. `[objects, objects]`
        tops: how many of the best candidates may hold the right one.

    Raises:
        ValueError: the matrix is not square, or a score is NaN.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"retrieval scores have shape {list(matrix.shape)}, expected as many texts as objects")
    targets = np.arange(len(matrix))
    recalls = {}
    for direction, directed in zip(DIRECTIONS, (matrix, matrix.T), strict=True):
        ranked = ranking_scores(directed, targets, tops=tops)
        recalls[direction] = {name.replace("top_", "recall_"): values for name, values in ranked.items()}
    return recalls


def chance(candidates: int, top: int) -> float:
    """Return how often a random order has the right one of `candidates` among the first `top`."""
    return min(1.0, top / candidates)


def merge_candidates(scores: npt.ArrayLike, groups: Sequence[str]) -> tuple[Array, list[str]]:
    """Return the best score of every group of candidates, and the groups in the order of their first candidate.

    For names that count as one: an organ's left and right.

    Args:
        scores: `[objects, candidates]`
        groups: the group of each candidate. `[candidates]`

    Returns:
        Scores `[objects, groups]`, and the groups' names.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != len(groups):
        raise ValueError(f"scores of shape {list(matrix.shape)} and {len(groups)} groups: give each candidate one")
    names = list(dict.fromkeys(groups))
    columns = [[n for n, group in enumerate(groups) if group == name] for name in names]
    return np.stack([matrix[:, own].max(axis=1) for own in columns], axis=1), names


def in_large_groups(groups: Sequence[Hashable], *, least: int = 5) -> npt.NDArray[np.bool_]:
    """Return which objects belong to a group of at least `least` objects. `[objects]`"""
    sizes = Counter(groups)
    return np.array([sizes[group] >= least for group in groups], dtype=bool)


def _rivals(scores: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Array, Array]:
    """Return how many candidates are better than the right one, and how many others equal it. Each `[objects]`"""
    matrix, right = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if matrix.ndim != 2 or right.shape != matrix.shape[:1]:
        raise ValueError(
            f"scores of shape {list(matrix.shape)} and targets of shape {list(right.shape)}: "
            "expected [objects, candidates] and [objects]"
        )
    if not np.issubdtype(right.dtype, np.integer) and right.size:
        raise ValueError(f"targets are numbers of candidates, not {right.dtype}")
    if np.isnan(matrix).any():
        raise ValueError(f"object {int(np.isnan(matrix).any(axis=1).argmax())} (from 0) has a score that is NaN")
    if ((right < 0) | (right >= matrix.shape[1])).any():
        raise ValueError(
            f"targets reach from {right.min()} to {right.max()}, candidates from 0 to {matrix.shape[1] - 1}"
        )
    own = np.take_along_axis(matrix, right.astype(np.int64)[:, None], axis=1)  # [objects, 1]
    return (matrix > own).sum(axis=1).astype(np.float64), (matrix == own).sum(axis=1) - 1.0


def _expected_hit(better: Array, equal: Array, top: int) -> Array:
    """Return the share of the orders of equal scores that have the right one among the first `top`."""
    if top < 1:
        raise ValueError(f"top {top}: expected at least 1")
    return np.clip(top - better, 0, equal + 1) / (equal + 1)
