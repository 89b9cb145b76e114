"""What was said about many objects as numbers: every row with its interval, and the gap to the best blind control.

Captions: Sentence-BERT, BLEU-1, ROUGE-L, METEOR, CIDEr against the best of an object's captions. Closed sets: top-1
and top-5 by log-likelihood, and macro top-1 over answers that at least five objects have. Retrieval: recall by
pointwise mutual information, both ways. Knows texts and scores; runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sdf_vqvae.evaluation.bootstrap import Array, Interval, mean_interval
from vae_qwen3vl.evaluation.caption_metrics import score_captions
from vae_qwen3vl.evaluation.closed_sets import LEAST_OBJECTS, ClosedSet, group_of
from vae_qwen3vl.evaluation.controls import (
    BLIND,
    MOST_FREQUENT,
    MOST_FREQUENT_OF_OTHERS,
    NEIGHBOR,
    OTHER_SHAPE,
    OWN,
    SCATTERED,
    TYPICAL,
    TYPICAL_OF_OTHERS,
)
from vae_qwen3vl.evaluation.interview import Answered, Understanding
from vae_qwen3vl.evaluation.ranking_metrics import (
    chance,
    gap_to_best,
    in_large_groups,
    merge_candidates,
    ranking_scores,
    retrieval_scores,
)
from vae_qwen3vl.language.sentence_encoder import SentenceEncoder, sentence_similarities

SENTENCE_BERT = "sentence_bert"
TOPS = (1, 5)
RECALLS = (1, 5, 10)
MACRO = "macro_top_1"
_LEAST_ANSWERS = 8
_FIRST_WORDS = 4
_REPEATED = 0.4
"""More answers that begin alike are no chance; see `repeated_answers`."""
FORMULAS = {
    "mean, low, high": "mean over objects and its bootstrap interval of 95 %, fixed seed",
    "gap": "mean of the objects' differences to the blind control that comes closest",
    SENTENCE_BERT: "cosine of the sentence embeddings of the description and the caption closest to it",
    "bleu_1, rouge_l, meteor, cider": "against an object's captions, see vae_qwen3vl.evaluation.caption_metrics",
    "distinct_1, distinct_2": "different words (pairs of words) over all, of all descriptions together",
    "top_k": "the right answer is among the k with the highest log-likelihood, end of turn included; equal ones "
    "count by chance",
    MACRO: f"mean, over the answers that at least {LEAST_OBJECTS} objects have, of top_1 of their objects",
    "recall_k": "the right caption (object) is among the k with the highest pointwise mutual information: "
    "log p(text | shape) - log p(text), p(text) being the mean over the evaluated objects' shapes",
    "no 3D": "the prompt alone",
    OTHER_SHAPE: "another evaluated object's shape, a fixed random cycle",
    SCATTERED: "the object's own codes at random cells: which codes there are stays known",
    MOST_FREQUENT: "one answer for all: training's most frequent",
    MOST_FREQUENT_OF_OTHERS: "training's answers are not known: the most frequent of the other evaluated objects'",
    TYPICAL: "training's captions are all unique, so that none is the most frequent: the one with the highest mean "
    f"likeness ({SENTENCE_BERT}; without it, common words) to the others, for all",
    TYPICAL_OF_OTHERS: "the same among the captions of the other evaluated objects, where training's are not known",
    NEIGHBOR: "NOT BLIND, and no language model: the training object whose code histogram is closest (Bhattacharyya) "
    "lends its caption or answer",
}


def repeated_answers(texts: Sequence[str], captions: Sequence[Sequence[str]] = ()) -> dict[str, Any] | None:
    """Return how many answers begin alike, where that says more of the model than of the objects.

    Answers are compared by their first four words in lower case: degenerate ones often differ only in their tails
    ("The original sentence is ..."). Of 9,000 draws of 8 captions from the pack none had more than 37 % that begin
    alike, and of 20 none more than 20 %.

    Args:
        texts: an answer an object.
        captions: each object's, where they are known: answers may repeat as far as these do.

    Returns:
        `text` (one of these answers), `share`, `captions_share` (0 where there are none), `warning` (a line); None
        for less than eight objects, or where answers don't repeat.
    """
    if len(texts) < _LEAST_ANSWERS:
        return None
    beginning, share = _most_frequent_beginning(texts)
    true = [own[0] for own in captions if own]
    captions_share = _most_frequent_beginning(true)[1] if true else 0.0
    if share <= _REPEATED or share <= 2 * captions_share:
        return None
    text = next(" ".join(each.split()) for each in texts if _beginning(each) == beginning)
    warning = (
        f"{share:.0%} of {len(texts)} answers begin like {text[:60]!r}: the model hardly looks at the shapes. Mostly "
        "too little training (more epochs, a larger max_samples), too few of the tokenizer's codes in use (the "
        "codebook's use in its own evaluation), or captions that don't fit their objects"
    )
    return {"text": text, "share": share, "captions_share": captions_share, "warning": warning}


def _beginning(text: str) -> str:
    return " ".join(text.lower().split()[:_FIRST_WORDS])


def _most_frequent_beginning(texts: Sequence[str]) -> tuple[str, float]:
    beginning, count = Counter(map(_beginning, texts)).most_common(1)[0]
    return beginning, count / len(texts)


def summarize_captions(
    understanding: Understanding, references: Sequence[Sequence[str]], encoder: SentenceEncoder | None
) -> dict[str, Any]:
    """Return the measures of every row's descriptions, and the gaps of the own shapes.

    Args:
        understanding: what was said.
        references: each object's captions.
        encoder: of `load_sentence_encoder`; None leaves Sentence-BERT out.
    """
    objects: dict[str, dict[str, Array]] = {}
    rows: dict[str, Any] = {}
    for row, texts in understanding.texts.items():
        scored = score_captions(texts, references)
        objects[row] = dict(scored.objects)
        if encoder is not None:
            objects[row] = {SENTENCE_BERT: sentence_similarities(encoder, texts, references)} | objects[row]
        rows[row] = {name: _interval(values) for name, values in objects[row].items()}
        rows[row] |= {"distinct_1": scored.distinct_1, "distinct_2": scored.distinct_2}
    measures = [name for name in objects[OWN] if name != "words"]
    return {"objects": len(references), "rows": rows, "gaps": _gaps(objects, measures)}


def summarize_closed(answered: Answered, neighbors: Mapping[str, str] | None) -> dict[str, Any]:
    """Return top-1, top-5 and macro top-1 of every row of a closed set.

    Objects whose answer no object of training has are left out, and listed.

    Args:
        answered: the scores.
        neighbors: object -> the answer of its nearest training object; None where that is not known.
    """
    asked = answered.asked
    groups = list(dict.fromkeys(asked.groups))
    right = [group_of(asked.kind, answer) for answer in asked.answers]
    seen = {group_of(asked.kind, answer) for answer in asked.known} or set(groups)
    kept = [number for number, group in enumerate(right) if group in seen]
    unseen = sorted({right[n] for n in range(len(right)) if right[n] not in seen})
    made: dict[str, Any] = {
        "objects": len(kept),
        "candidates": len(groups),
        "not_in_training": {"objects": len(right) - len(kept), "answers": unseen},
    }
    if not kept:
        return made
    rows = {row: merge_candidates(scores, asked.groups)[0][kept] for row, scores in answered.scores.items()}
    rows |= _constant_rows(asked, groups, kept, neighbors)
    targets = np.array([groups.index(right[number]) for number in kept])
    answers = [right[number] for number in kept]
    large = in_large_groups(answers, least=LEAST_OBJECTS)
    objects: dict[str, dict[str, Array]] = {}
    for row, scores in rows.items():
        objects[row] = {k: v for k, v in ranking_scores(scores, targets, tops=TOPS).items() if k.startswith("top_")}
    made["rows"] = {row: {name: _interval(values) for name, values in own.items()} for row, own in objects.items()}
    made["gaps"] = _gaps(objects, ["top_1", "top_5"])
    if large.any():
        macro = {row: {MACRO: own["top_1"][large]} for row, own in objects.items()}
        names = [answer for answer, is_large in zip(answers, large, strict=True) if is_large]
        for row, own in macro.items():
            made["rows"][row][MACRO] = _interval(own[MACRO], names)
        made["gaps"] |= _gaps(macro, [MACRO], names)
        made["macro"] = {"answers": len(set(names)), "objects": len(names)}
    return made


def summarize_retrieval(understanding: Understanding) -> dict[str, Any] | None:
    """Return recalls in both directions with own and scattered codes, and chance; None where nothing was scored."""
    if understanding.retrieval is None:
        return None
    count = len(understanding.retrieval)
    made: dict[str, Any] = {
        "objects": count,
        "chance": {f"recall_{k}": chance(count, k) for k in RECALLS},
        "rows": {},
    }
    for row, scores in ((OWN, understanding.retrieval), (SCATTERED, understanding.retrieval_scattered)):
        if scores is None:
            continue
        found = retrieval_scores(scores, tops=RECALLS)
        made["rows"][row] = {
            direction: {name: _interval(values) for name, values in own.items() if name.startswith("recall")}
            for direction, own in found.items()
        }
    return made


def _constant_rows(
    asked: ClosedSet,
    groups: Sequence[str],
    kept: Sequence[int],
    neighbors: Mapping[str, str] | None,
) -> dict[str, Array]:
    """Return the scores of the rows that ask no model."""
    counts: Counter[str] = Counter()
    for answer, count in (asked.known or Counter(asked.answers)).items():
        counts[group_of(asked.kind, answer)] += count
    frequent = np.tile(np.array([float(counts[group]) for group in groups]), (len(kept), 1))
    if not asked.known:  # an object's own answer does not speak for it
        frequent[np.arange(len(kept)), [groups.index(group_of(asked.kind, asked.answers[n])) for n in kept]] -= 1
    rows = {MOST_FREQUENT if asked.known else MOST_FREQUENT_OF_OTHERS: frequent}
    if neighbors is not None and not asked.kind.startswith("is_"):  # theirs answer another claim
        lent = np.zeros((len(kept), len(groups)))
        for place, number in enumerate(kept):
            found = neighbors.get(asked.names[number])
            if found is not None and (shared := group_of(asked.kind, found)) in groups:
                lent[place, groups.index(shared)] = 1.0
        rows[NEIGHBOR] = lent
    return rows


def _gaps(
    objects: Mapping[str, Mapping[str, Array]], measures: Sequence[str], groups: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Return for each measure the best blind control and the mean difference of the own shapes to it."""
    blind = [row for row in BLIND if row in objects]
    made = {}
    for name in measures if blind else ():
        found = gap_to_best(objects[OWN][name], {row: objects[row][name] for row in blind}, groups)
        made[name] = {"control": found.control, **_plain(found.gap)}
    return made


def _interval(values: Array, groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    found = mean_interval(values, groups)
    assert found is not None
    return _plain(found)


def _plain(found: Interval) -> dict[str, float]:
    return {name: float(f"{getattr(found, name):.6g}") for name in ("mean", "low", "high")}
