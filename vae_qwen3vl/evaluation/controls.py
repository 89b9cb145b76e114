"""Controls that don't see the object they are asked about: what a score must exceed to say that shapes are read.

A new control has its name, its words in `FORMULAS` and its place in `BLIND` or `NOT_BLIND` here, and is asked in
`interview`. Knows objects as codes and their scores; knows nothing of language models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from sdf_vqvae.evaluation.bootstrap import Array, Interval, mean_interval
from sdf_vqvae.quantizers.quantizer import first_codes
from vae_qwen3vl.evaluation.objects import EvalObject
from vae_qwen3vl.sequence_3d import coords_of_cells

OWN = "own shape"
NO_SHAPE = "no 3D"
OTHER_SHAPE = "another object's 3D"
SCATTERED = "shuffled coordinates"
MOST_FREQUENT = "most frequent answer"
MOST_FREQUENT_OF_OTHERS = "most frequent answer of the others"
TYPICAL = "most typical caption"
TYPICAL_OF_OTHERS = "most typical caption of the others"
NEIGHBOR = "nearest neighbor by codes"
CHOSEN_FREQUENT = "most frequent answers, chosen by another object's 3D"
CHOSEN_NEIGHBOR = "nearest neighbors by codes, chosen among alike"
WRONG_WORDS = "own shape, another object's similar ones"
WORDS_ALONE = "its similar ones, no 3D"
CONSTANT = (MOST_FREQUENT, MOST_FREQUENT_OF_OTHERS, TYPICAL, TYPICAL_OF_OTHERS)
"""One answer for all; an evaluation has one of these."""
BLIND = (NO_SHAPE, OTHER_SHAPE, SCATTERED, *CONSTANT, CHOSEN_FREQUENT)
"""Rows that a gap is measured to. `SCATTERED` keeps the object's codes at random places: it knows which codes there
are, but not how they lie; it is the hardest of them."""
NOT_BLIND = (NEIGHBOR, CHOSEN_NEIGHBOR, WRONG_WORDS, WORDS_ALONE)
"""Rows that see the object, for comparison only."""
FORMULAS = {
    NO_SHAPE: "the prompt alone",
    OTHER_SHAPE: "another evaluated object's shape, a fixed random cycle",
    SCATTERED: "the object's own codes at random cells: which codes there are stays known",
    MOST_FREQUENT: "one answer for all: training's most frequent",
    MOST_FREQUENT_OF_OTHERS: "training's answers are not known: the most frequent of the other evaluated objects'",
    TYPICAL: "training's captions are all unique, so that none is the most frequent: the one with the highest mean "
    "likeness (sentence_bert; without it, common words) to the others, for all",
    TYPICAL_OF_OTHERS: "the same among the captions of the other evaluated objects, where training's are not known",
    CHOSEN_FREQUENT: "as many of training's most frequent captions as there are candidates, chosen as they are, by "
    "the shape of another object",
    CHOSEN_NEIGHBOR: "NOT BLIND, and no language model: as many nearest neighbors by codes as there are candidates, "
    "chosen as they are, by the object's own shape",
    WRONG_WORDS: "NOT BLIND: what the objects similar to another one are called, beside the object's own shape: what "
    "believing them costs",
    WORDS_ALONE: "NOT BLIND: what similar objects are called, without the shape: what they are worth alone",
    NEIGHBOR: "NOT BLIND, and no language model: the training object whose code histogram is closest (Bhattacharyya) "
    "lends its caption or answer",
}
"""Row -> what it is, in words."""
_MOST_CAPTIONS = 2000
"""Captions that are compared for the most typical one; of more, so many at random, always the same."""
Embed = Callable[[Sequence[str]], npt.NDArray[np.floating]]
"""Texts to vectors of length 1, whose products say how alike the texts are. [n, E]"""


# -- what they say ---------------------------------------------------------------------------------------------------


def other_objects(count: int, seed: int = 0) -> list[int]:
    """Return for each object the number of another one, every object once: a random cycle.

    Raises:
        ValueError: there is only one object.
    """
    if count < 2:
        raise ValueError("another object's shape needs at least two objects")
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty(count, dtype=np.int64)
    others[order] = np.roll(order, 1)
    return [int(number) for number in others]


def scattered(objects: Sequence[EvalObject], side: int, seed: int = 0) -> list[EvalObject]:
    """Return the objects with their codes at random cells of the latent grid, none twice."""
    moved = []
    for number, one in enumerate(objects):
        random = torch.Generator().manual_seed(seed * 1_000_003 + number)
        cells = torch.randperm(side**3, generator=random)[: len(one.codes)]
        moved.append(replace(one, coords=coords_of_cells(cells, side).int()))
    return moved


def most_frequent(answers: Sequence[str]) -> str:
    """Return the answer that occurs most often; of several, the one that comes first in the alphabet."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def frequent_answers(answers: Sequence[str], most: int) -> list[str]:
    """Return the answers that occur most often, most frequent first; of equal ones, by the alphabet."""
    counts = Counter(answers)
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:most]


def constant_answers(known: Sequence[str], own: Sequence[str], embed: Embed) -> tuple[str, list[str]] | None:
    """Return the name of the constant row and what it says to each object, or None where there is nothing to say.

    That is the most frequent caption of training. Where training's captions are not known, it is that of the other
    evaluated objects: an object's own caption is not among those that speak for it. Where captions are all
    unique, none is the most frequent, and the most typical one is taken: that with the highest mean likeness to the
    others.

    Args:
        known: captions of training, one an object; none where they are not known.
        own: captions of the evaluated objects, one an object.
        embed: of the captions.
    """
    if known:
        if max(Counter(known).values()) > 1:
            return MOST_FREQUENT, [most_frequent(known)] * len(own)
        return TYPICAL, [_typical(known, embed)] * len(own)
    if len(own) < 2:
        return None
    if _repeat_without_one(Counter(own)):
        return MOST_FREQUENT_OF_OTHERS, _frequent_of_others(own)
    return TYPICAL_OF_OTHERS, _typical_of_others(own, embed)


def bag_of_words(texts: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return counts of words as vectors of length 1, where no sentence model is at hand. [n, words]"""
    words = [Counter(re.findall(r"\w+", text.casefold())) or Counter([text]) for text in texts]
    names = {word: number for number, word in enumerate(sorted({word for own in words for word in own}))}
    table = np.zeros((len(texts), len(names)))
    for row, own in zip(table, words, strict=True):
        row[[names[word] for word in own]] = list(own.values())
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def _repeat_without_one(counts: Counter[str]) -> bool:
    """Return whether some answer occurs twice whichever object is left out."""
    most = [count for _, count in counts.most_common(2)]
    return most[0] > 2 or most[1:] == [2]


def _frequent_of_others(own: Sequence[str]) -> list[str]:
    """Return for each object the answer that occurs most often among the others."""
    counts = Counter(own)
    first, *rest = sorted(counts, key=lambda answer: (-counts[answer], answer))
    if not rest:
        return [first] * len(own)
    without = min((-(counts[first] - 1), first), (-counts[rest[0]], rest[0]))[1]
    return [without if answer == first else first for answer in own]


def _drawn(count: int) -> npt.NDArray[np.int64]:
    """Return the numbers of the texts that are compared, ascending."""
    if count <= _MOST_CAPTIONS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, _MOST_CAPTIONS, replace=False))


def _typical(texts: Sequence[str], embed: Embed) -> str:
    chosen = [texts[number] for number in _drawn(len(texts))]
    vectors = np.asarray(embed(chosen), dtype=np.float64)
    return chosen[int((vectors @ vectors.sum(axis=0)).argmax())]


def _typical_of_others(own: Sequence[str], embed: Embed) -> list[str]:
    places = _drawn(len(own))
    chosen = [own[number] for number in places]
    vectors = np.asarray(embed(chosen), dtype=np.float64)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, 0.0)
    totals = alike.sum(axis=0)
    answers = [chosen[int(totals.argmax())]] * len(own)
    for row, place in enumerate(places):  # whoever is among the captions does not count, as answer or as judge
        left = totals - alike[row]
        left[row] = -np.inf
        answers[place] = chosen[int(left.argmax())]
    return answers


def nearest_by_codes(objects: Sequence[EvalObject], known: Sequence[EvalObject], codebook: int) -> list[int]:
    """Return for each object the number of the known one whose histogram of codes is most like its own."""
    return [row[0] for row in ranked_by_codes(objects, known, codebook, 1)]


def ranked_by_codes(
    objects: Sequence[EvalObject], known: Sequence[EvalObject], codebook: int, most: int
) -> list[list[int]]:
    """Return for each object the numbers of the known ones with the most similar histograms of codes, best first.

    Likeness is the cosine of the square roots of the code frequencies (the Bhattacharyya coefficient).
    """
    from scipy.sparse import csr_matrix

    def rows(items: Sequence[EvalObject]) -> csr_matrix:
        counts = [torch.bincount(first_codes(one.codes), minlength=codebook).float() for one in items]
        return csr_matrix(np.stack([(c / c.sum()).sqrt().numpy() for c in counts]))

    table = rows(known)
    nearest: list[list[int]] = []
    for start in range(0, len(objects), 64):
        likeness = (rows(objects[start : start + 64]) @ table.T).toarray()
        nearest += np.argsort(-likeness, axis=1, kind="stable")[:, :most].tolist()
    return nearest


# -- how far a row is above them -------------------------------------------------------------------------------------


def paired_gap(row: Array, control: Array, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the mean difference between two rows of the same objects, and its interval.

    Args:
        row: a measure of each object. `[objects]`
        control: the same measure of the same objects. `[objects]`
        groups: the objects' categories, for the difference of macro means; see `bootstrap.mean_interval`.

    Raises:
        ValueError: the rows are not of the same objects, or have no value.
    """
    if np.shape(row) != np.shape(control) or np.ndim(row) != 1:
        raise ValueError(
            f"rows of shape {list(np.shape(row))} and {list(np.shape(control))}: measure the same objects"
        )
    gap = mean_interval(np.asarray(row, dtype=np.float64) - np.asarray(control, dtype=np.float64), groups)
    if gap is None:
        raise ValueError("no object has a value in both rows")
    return gap


def gap_to_best(
    row: Array, controls: Mapping[str, Array], groups: Sequence[Hashable] | None = None
) -> tuple[str, Interval]:
    """Return the control that comes closest to a row, and how far the row is above it.

    Args:
        row: a measure of each object. `[objects]`
        controls: name -> the same measure under that control. Each `[objects]`
        groups: as of `paired_gap`.

    Raises:
        ValueError: there is no control, or one has other objects.
    """
    if not controls:
        raise ValueError("a gap needs at least one control")
    gaps = {name: paired_gap(row, values, groups) for name, values in controls.items()}
    best = min(gaps, key=lambda name: gaps[name].mean)
    return best, gaps[best]
