"""How close sentences come to references, word by word: BLEU-1, ROUGE-L, METEOR, CIDEr; and how varied they are.

Every measure is one number an object, so that intervals can be resampled over objects. BLEU-1 and METEOR are NLTK's;
METEOR matches equal words and equal stems, not synonyms, since WordNet's data would have to be downloaded: its values
lie below those of scorers that have it. ROUGE-L and CIDEr are written from their papers. Knows text; knows nothing of
shapes or models.

Short outputs are rewarded by all four: read them beside the mean number of words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Words = Sequence[str]

CIDER_ORDERS = 4
"""Longest n-gram that CIDEr looks at."""
CIDER_SIGMA = 6.0
"""Width, in words, of CIDEr's penalty on another length."""
SPLITS = ("words", "spaces")
# Writing without spaces between words: kana, and the blocks of Chinese characters.
_BY_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORDS = re.compile(rf"[{_BY_CHARACTER}]|[^\W{_BY_CHARACTER}]+(?:['’-][^\W{_BY_CHARACTER}]+)*")
_PIECES = re.compile(rf"[{_BY_CHARACTER}]|[^\s{_BY_CHARACTER}]+")


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of many objects' candidates."""

    objects: dict[str, Array]
    """bleu_1, rouge_l, meteor (0 to 1), cider (0 to 10) and words (the candidate's length). Each `[objects]`"""
    distinct_1: float
    """Different words over all words, of all candidates together (Li et al. 2016)."""
    distinct_2: float
    """The same of pairs of neighboring words."""

    def means(self) -> dict[str, float]:
        """Return the mean over objects of every measure, and the two of variety."""
        means = {name: float(values.mean()) for name, values in self.objects.items()}
        return means | {"distinct_1": self.distinct_1, "distinct_2": self.distinct_2}


def score_captions(
    candidates: Sequence[str], references: Sequence[str | Sequence[str]], *, split: str = "words"
) -> CaptionScores:
    """Compare each object's candidate with its references.

    Args:
        candidates: one sentence an object; an empty one scores 0.
        references: of the same objects, one sentence each or several. BLEU counts against all of them, ROUGE-L and
            METEOR take the best, CIDEr the mean.
        split: see `words_of`.

    Raises:
        ValueError: the lists don't fit together, or an object has no reference with words in it.
        ImportError: NLTK is not installed.
    """
    made = [words_of(text, split=split) for text in candidates]
    known = _split_references(references, split)
    if len(made) != len(known):
        raise ValueError(f"{len(made)} candidates and {len(known)} objects with references: give one each")
    if not made:
        raise ValueError("there is no candidate to score")
    pairs = list(zip(made, known, strict=True))
    objects = {
        "bleu_1": np.array([bleu_1(*pair) for pair in pairs]),
        "rouge_l": np.array([rouge_l(*pair) for pair in pairs]),
        "meteor": np.array([meteor(*pair) for pair in pairs]),
        "cider": cider(made, known),
        "words": np.array([len(words) for words in made], dtype=np.float64),
    }
    return CaptionScores(objects=objects, distinct_1=distinct(made, 1), distinct_2=distinct(made, 2))


def words_of(text: str, *, split: str = "words") -> list[str]:
    """Split a text into what is compared: words, and single characters of Chinese and Japanese.

    Args:
        text: any text.
        split: "words" compares lower case without punctuation, as the scorers of COCO do; "spaces" takes what stands
            between spaces as it is, as PointLLM's scorer does.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if split == "spaces":
        return _PIECES.findall(text)
    plain = unicodedata.normalize("NFKC", text).lower()
    return _WORDS.findall(plain)


def bleu_1(candidate: Words, references: Sequence[Words]) -> float:
    """Return BLEU with single words: clipped precision times the brevity penalty (Papineni et al. 2002)."""
    score = _nltk("bleu_score").sentence_bleu(references, candidate, weights=(1.0,)) if candidate else 0.0
    return float(score)


def rouge_l(candidate: Words, references: Sequence[Words]) -> float:
    """Return ROUGE-L, the best over the references.

    From Lin 2004, section 3.1: with the longest common subsequence of `l` words, precision `l / |candidate|` and
    recall `l / |reference|`; their harmonic mean (beta = 1, as google's rouge-score has it).
    """
    return max(2 * _common(candidate, own) / (len(candidate) + len(own)) for own in references)


def meteor(candidate: Words, references: Sequence[Words]) -> float:
    """Return METEOR with equal words and Porter stems alone, the best over the references.

    Banerjee and Lavie 2005 as in NLTK: alpha 0.9, beta 3, gamma 0.5. A sentence of m words scores 1 - 0.5 / m^3
    against itself.
    """
    single = _nltk("meteor_score").single_meteor_score
    return max(float(single(own, candidate, stemmer=_Stems(), wordnet=_NoSynonyms())) for own in references)


def cider(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> Array:
    """Return CIDEr-D, the form that the scorers of COCO call CIDEr. `[objects]`

    From Vedantam, Zitnick and Parikh 2015, equations 1 to 4 and section 6.2. A sentence is a vector for each n of 1
    to 4: n-gram counts times `log(objects / objects with the n-gram in a reference)`. The score is the mean over n
    and references of `10 exp(-(difference of lengths)^2 / (2 sigma^2)) min(c, r) . r / (|c| |r|)`. The weights depend
    on all references of the call: scores of different sets of objects are not comparable, and n-grams that every
    object has count nothing. A sentence of fewer than four words can't reach 10.
    """
    seen = Counter(chain.from_iterable({g for own in refs for g in _all_ngrams(own)} for refs in references))
    rarity = {gram: math.log(len(references) / count) for gram, count in seen.items()}
    unseen = math.log(len(references)) if references else 0.0

    def vectors(words: Words) -> list[dict[tuple[str, ...], float]]:
        orders = range(1, CIDER_ORDERS + 1)
        return [{g: c * rarity.get(g, unseen) for g, c in Counter(_ngrams(words, n)).items()} for n in orders]

    scores = np.zeros(len(candidates))
    for number, (candidate, refs) in enumerate(zip(candidates, references, strict=True)):
        own = vectors(candidate)
        for ref in refs:
            penalty = math.exp(-((len(candidate) - len(ref)) ** 2) / (2 * CIDER_SIGMA**2))
            match = sum(_clipped_cosine(c, r) for c, r in zip(own, vectors(ref), strict=True)) / CIDER_ORDERS
            scores[number] += 10 * penalty * match / len(refs)
    return scores


def distinct(candidates: Sequence[Words], order: int) -> float:
    """Return the share of different n-grams among all of the candidates; 0 where there are none."""
    grams = [gram for words in candidates for gram in _ngrams(words, order)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _split_references(references: Sequence[str | Sequence[str]], split: str) -> list[list[list[str]]]:
    found = []
    for number, own in enumerate(references):
        texts = [own] if isinstance(own, str) else own
        known = [words for text in texts if (words := words_of(text, split=split))]
        if not known:
            raise ValueError(f"object {number} (from 0) has no reference with words in it: leave it out")
        found.append(known)
    return found


def _ngrams(words: Words, order: int) -> Iterator[tuple[str, ...]]:
    # Each shifted copy is one word shorter than the one before, and the last one ends the n-grams.
    return zip(*(words[start:] for start in range(order)), strict=False)


def _all_ngrams(words: Words) -> Iterable[tuple[str, ...]]:
    return chain.from_iterable(_ngrams(words, order) for order in range(1, CIDER_ORDERS + 1))


def _clipped_cosine(candidate: dict[tuple[str, ...], float], reference: dict[tuple[str, ...], float]) -> float:
    size = math.hypot(*candidate.values()) * math.hypot(*reference.values())
    both = ((value, reference[gram]) for gram, value in candidate.items() if gram in reference)
    product = sum(min(own, other) * other for own, other in both)
    return product / size if size else 0.0


def _common(first: Words, second: Words) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for column, other in enumerate(second, 1):
            before, row[column] = row[column], before + 1 if word == other else max(row[column], row[column - 1])
    return row[-1]


class _Stems:
    """NLTK's Porter stemmer, which asks for each word once."""

    def stem(self, word: str) -> str:
        return _stem(word)


class _NoSynonyms:
    """Stands where NLTK expects WordNet."""

    def synsets(self, word: str) -> list[Any]:
        return []


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return str(_porter().stem(word))


@lru_cache(maxsize=1)
def _porter() -> Any:
    _nltk("bleu_score")
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


@lru_cache(maxsize=2)
def _nltk(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"nltk.translate.{name}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"caption measures need {error.name}: pip install 'vae-qwen3vl[evaluation]'", name=error.name
        ) from error
