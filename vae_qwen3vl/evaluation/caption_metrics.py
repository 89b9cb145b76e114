"""How close sentences come to references, and how varied they are: one table of measures, `CAPTION_METRICS`.

A new measure is one entry there: its function, its heading in tables and its formula in words; everything else reads
the table. Most give one number an object, so that intervals can be resampled over objects. BLEU-1 and METEOR are
NLTK's; METEOR matches equal words and equal stems, not synonyms, since WordNet's data would have to be downloaded:
its values lie below those of scorers that have it. ROUGE-L and CIDEr are written from their papers; tests hold them
to the numbers of rouge-score and pycocoevalcap. Knows text; knows nothing of shapes.

Short outputs are rewarded by all of them: read them beside the mean number of words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from vae_qwen3vl.language.sentence_encoder import SentenceEncoder, sentence_similarities

Array = npt.NDArray[np.float64]
Words = Sequence[str]

CIDER_ORDERS = 4
"""Longest n-gram that CIDEr looks at."""
CIDER_SIGMA = 6.0
"""Width, in words, of CIDEr's penalty on another length."""
# Writing without spaces between words: kana, and the blocks of Chinese characters.
_BY_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORDS = re.compile(rf"[{_BY_CHARACTER}]|[^\W{_BY_CHARACTER}]+(?:['’-][^\W{_BY_CHARACTER}]+)*")


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What measures compare: each object's candidate with its references."""

    candidates: Sequence[str]
    references: Sequence[Sequence[str]]
    candidate_words: Sequence[Words]
    reference_words: Sequence[Sequence[Words]]
    """Only references with words in them; each object has one."""
    encoder: SentenceEncoder | None
    """A model of meaning, where one is at hand."""


@dataclass(frozen=True, kw_only=True)
class CaptionMetric:
    """A measure of captions."""

    heading: str
    """What tables call it."""
    formula: str = ""
    """What it is, in words."""
    score: Callable[[Captions], Array | float | None]
    """A number an object, `[objects]`, whose mean gets an interval; one number of all candidates together; or None
    where something that the measure needs is not at hand."""
    percent: bool = True
    """Whether tables show it times 100."""
    merit: bool = True
    """Whether more is better, so that a gap to the controls says something."""


def score_captions(
    candidates: Sequence[str], references: Sequence[str | Sequence[str]], encoder: SentenceEncoder | None = None
) -> dict[str, Array | float]:
    """Compare each object's candidate with its references by every measure that is at hand.

    Args:
        candidates: one sentence an object; an empty one scores 0.
        references: of the same objects, one sentence each or several. BLEU counts against all of them, CIDEr takes
            the mean, the others the best.
        encoder: of `load_sentence_encoder`; None leaves Sentence-BERT out.

    Returns:
        Measure -> its `score`, in the order of `CAPTION_METRICS`.

    Raises:
        ValueError: the lists don't fit together, or an object has no reference with words in it.
        ImportError: NLTK is not installed.
    """
    texts = [[own] if isinstance(own, str) else own for own in references]
    captions = Captions(
        candidates=candidates,
        references=texts,
        candidate_words=[words_of(text) for text in candidates],
        reference_words=[_with_words(number, own) for number, own in enumerate(texts)],
        encoder=encoder,
    )
    if len(candidates) != len(texts):
        raise ValueError(f"{len(candidates)} candidates and {len(texts)} objects with references: give one each")
    if not candidates:
        raise ValueError("there is no candidate to score")
    scores = {name: metric.score(captions) for name, metric in CAPTION_METRICS.items()}
    return {name: score for name, score in scores.items() if score is not None}


def words_of(text: str) -> list[str]:
    """Split a text into what is compared, as the scorers of COCO do: lower case without punctuation.

    Of Chinese and Japanese, that is single characters.
    """
    return _WORDS.findall(unicodedata.normalize("NFKC", text).lower())


def _with_words(number: int, references: Sequence[str]) -> list[Words]:
    words: list[Words] = [split for text in references if (split := words_of(text))]
    if not words:
        raise ValueError(f"object {number} (from 0) has no reference with words in it: leave it out")
    return words


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


# -- the table -------------------------------------------------------------------------------------------------------


def _sentence_bert(captions: Captions) -> Array | None:
    if captions.encoder is None:
        return None
    return sentence_similarities(captions.encoder, captions.candidates, captions.references)


def _by_words(measure: Callable[[Words, Sequence[Words]], float]) -> Callable[[Captions], Array]:
    """Return what scores each object for itself by the words of its candidate and its references."""

    def score(captions: Captions) -> Array:
        pairs = zip(captions.candidate_words, captions.reference_words, strict=True)
        return np.array([measure(*pair) for pair in pairs])

    return score


_AGAINST = "against an object's captions, see vae_qwen3vl.evaluation.caption_metrics"
_VARIETY = "different words (pairs of words) over all, of all descriptions together"
CAPTION_METRICS = {
    "sentence_bert": CaptionMetric(
        heading="Sentence-BERT",
        formula="cosine of the sentence embeddings of the description and the caption closest to it",
        score=_sentence_bert,
    ),
    "bleu_1": CaptionMetric(heading="BLEU-1", formula=_AGAINST, score=_by_words(bleu_1)),
    "rouge_l": CaptionMetric(heading="ROUGE-L", formula=_AGAINST, score=_by_words(rouge_l)),
    "meteor": CaptionMetric(heading="METEOR", formula=_AGAINST, score=_by_words(meteor)),
    "cider": CaptionMetric(
        heading="CIDEr",
        formula=_AGAINST,
        score=lambda captions: cider(captions.candidate_words, captions.reference_words),
        percent=False,
    ),
    "words": CaptionMetric(
        heading="words",
        score=lambda captions: np.array([len(words) for words in captions.candidate_words], dtype=np.float64),
        percent=False,
        merit=False,
    ),
    "distinct_1": CaptionMetric(
        heading="distinct-1", formula=_VARIETY, score=lambda captions: distinct(captions.candidate_words, 1)
    ),
    "distinct_2": CaptionMetric(
        heading="distinct-2", formula=_VARIETY, score=lambda captions: distinct(captions.candidate_words, 2)
    ),
}
"""Name in files -> measure, in the order of tables. Values lie between 0 and 1; CIDEr's between 0 and 10."""


def formulas() -> dict[str, str]:
    """Return what the measures are, in words; those that share a formula stand together."""
    texts = dict.fromkeys(metric.formula for metric in CAPTION_METRICS.values() if metric.formula)
    return {
        ", ".join(name for name, metric in CAPTION_METRICS.items() if metric.formula == text): text for text in texts
    }
