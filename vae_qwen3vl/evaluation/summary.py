"""What was said about many objects as numbers: every row with its interval, and the gap to the best blind control.

Captions: the measures of `caption_metrics`. Closed sets: top-1 and top-5 by log-likelihood, and macro top-1 over
answers that at least five objects have. Retrieval: recall by pointwise mutual information, both ways. Knows texts and
scores; runs nothing but a sentence model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sdf_vqvae.evaluation.bootstrap import Array, mean_interval
from vae_qwen3vl.answer_confidence import risk_coverage
from vae_qwen3vl.evaluation import caption_metrics, controls
from vae_qwen3vl.evaluation.caption_metrics import CAPTION_METRICS, score_captions
from vae_qwen3vl.evaluation.closed_sets import LEAST_OBJECTS, group_of
from vae_qwen3vl.evaluation.controls import (
    BLIND,
    MOST_FREQUENT,
    MOST_FREQUENT_OF_OTHERS,
    NEIGHBOR,
    OWN,
    gap_to_best,
)
from vae_qwen3vl.evaluation.free_answers import declines, yes_or_no
from vae_qwen3vl.evaluation.interview import Answered, Interview, UsersAnswered
from vae_qwen3vl.evaluation.ranking_metrics import (
    chance,
    in_large_groups,
    merge_candidates,
    ranking_scores,
    retrieval_scores,
)
from vae_qwen3vl.evaluation.repeated_answers import repeated_answers
from vae_qwen3vl.language.sentence_encoder import SentenceEncoder

TOPS = (1, 5)
RECALLS = (1, 5, 10)
MACRO = "macro_top_1"
RISK_COVERAGE = "risk_coverage"
COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BALANCED, DECLINED = "balanced", "declined"
BY_LIKELIHOOD, BY_WORDS = "by_likelihood", "by_words"
FORMULAS = {
    "mean, low, high": "mean over objects and its bootstrap interval of 95 %, fixed seed",
    "gap": "mean of the objects' differences to the blind control that comes closest",
    **caption_metrics.formulas(),
    "top_k": "the right answer is among the k with the highest log-likelihood, end of turn included; equal ones "
    "count by chance",
    MACRO: f"mean, over the answers that at least {LEAST_OBJECTS} objects have, of top_1 of their objects",
    "recall_k": "the right caption (object) is among the k with the highest pointwise mutual information: "
    "log p(text | shape) - log p(text), p(text) being the mean over the evaluated objects' shapes",
    RISK_COVERAGE: "mean sentence_bert of the share `coverage` of the descriptions whose tokens have the highest "
    "mean probability; best: of the share that is best; by chance: the mean of all",
    BALANCED: "mean of the share that is right where the answer is yes and where it is no, so that yes alone scores "
    "half; by_likelihood: the likelier of the two answers, by_words: what the generated answer says by rule "
    "(free_answers.yes_or_no); one that says neither is wrong, and `read` is the share of the others",
    DECLINED: "share of generated answers that say that it can't be known and assert nothing (free_answers.declines)",
    **controls.FORMULAS,
}


def summarize(
    said: Interview, captions: Sequence[Sequence[str]], *, encoder: SentenceEncoder | None = None
) -> dict[str, Any]:
    """Return all that was measured.

    Args:
        said: by the model.
        captions: each object's.
        encoder: of `load_sentence_encoder`; None leaves Sentence-BERT out.

    Returns:
        `captions`, `closed` (by kind), `users_questions` and `retrieval`, as far as they were asked for, with
        `formulas`; and `repeated_answers`, where answers repeat.
    """
    summary: dict[str, Any] = {}
    if len(said.texts) > 1:
        summary["captions"] = summarize_captions(said.texts, captions, encoder, said.probabilities)
    if said.closed is not None:
        summary["closed"] = {answered.asked.kind: summarize_closed(answered) for answered in said.closed}
    if said.users is not None:
        summary["users_questions"] = summarize_users(said.users)
    if said.retrieval:
        summary["retrieval"] = summarize_retrieval(said.retrieval)
    if summary:
        summary["formulas"] = FORMULAS
    repeated = repeated_answers(said.texts[OWN], captions)
    return summary if repeated is None else summary | {"repeated_answers": repeated}


def summarize_captions(
    texts: Mapping[str, Sequence[str]],
    captions: Sequence[Sequence[str]],
    encoder: SentenceEncoder | None,
    sure: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the measures of every row's descriptions, and the gaps of the own shapes.

    Args:
        texts: row -> a description of each object.
        captions: each object's.
        encoder: of `load_sentence_encoder`; None leaves Sentence-BERT out.
        sure: how sure the model is of each description of `OWN`, for `risk_coverage` by Sentence-BERT.
    """
    scores = {row: score_captions(described, captions, encoder) for row, described in texts.items()}
    rows = {
        row: {
            name: interval_of(score) if isinstance(score, np.ndarray) else score for name, score in measured.items()
        }
        for row, measured in scores.items()
    }
    objects = {
        row: {
            name: score
            for name, score in measured.items()
            if isinstance(score, np.ndarray) and CAPTION_METRICS[name].merit
        }
        for row, measured in scores.items()
    }
    summary = {"objects": len(captions), "rows": rows, "gaps": _gaps(objects, list(objects[OWN]))}
    alike = scores[OWN].get("sentence_bert")
    if sure is not None and isinstance(alike, np.ndarray):
        summary[RISK_COVERAGE] = risk_coverage(sure, alike, COVERAGES)
    return summary


def summarize_closed(answered: Answered) -> dict[str, Any]:
    """Return top-1, top-5 and macro top-1 of every row of a closed set.

    Objects whose answer no object of training has are left out, and listed.
    """
    asked = answered.asked
    groups = list(dict.fromkeys(asked.groups))
    right = [group_of(asked.kind, answer) for answer in asked.answers]
    seen = {group_of(asked.kind, answer) for answer in asked.known} or set(groups)
    kept = [number for number, group in enumerate(right) if group in seen]
    unseen = sorted({right[n] for n in range(len(right)) if right[n] not in seen})
    summary: dict[str, Any] = {
        "objects": len(kept),
        "candidates": len(groups),
        "not_in_training": {"objects": len(right) - len(kept), "answers": unseen},
    }
    if not kept:
        return summary
    rows = {row: merge_candidates(scores, asked.groups)[0][kept] for row, scores in answered.scores.items()}
    rows |= _rows_without_a_model(answered, groups, kept)
    targets = np.array([groups.index(right[number]) for number in kept])
    answers = [right[number] for number in kept]
    large = in_large_groups(answers, least=LEAST_OBJECTS)
    objects: dict[str, dict[str, Array]] = {}
    for row, scores in rows.items():
        objects[row] = ranking_scores(scores, targets, tops=TOPS)
    summary["rows"] = {
        row: {name: interval_of(values) for name, values in own.items()} for row, own in objects.items()
    }
    summary["gaps"] = _gaps(objects, ["top_1", "top_5"])
    if large.any():
        macro = {row: {MACRO: own["top_1"][large]} for row, own in objects.items()}
        names = [answer for answer, is_large in zip(answers, large, strict=True) if is_large]
        for row, own in macro.items():
            summary["rows"][row][MACRO] = interval_of(own[MACRO], names)
        summary["gaps"] |= _gaps(macro, [MACRO], names)
        summary["macro"] = {"answers": len(set(names)), "objects": len(names)}
    return summary


def summarize_users(users: Sequence[UsersAnswered]) -> dict[str, Any]:
    """Return what users' questions came to, by kind and language.

    Returns:
        `balanced`: kind and language -> the rows' means over the two answers, by likelihood and by words, and gaps;
        `declined`: property and language -> the rows' shares; `declined_though_shown`: share of the answers to yes/no
        questions, with the own shape, that decline.
    """
    balanced, declined = {}, {}
    though_shown: list[bool] = []
    for answered in users:
        asked = answered.asked
        name = f"{asked.kind} {asked.language}"
        if asked.declined:
            rows = {row: np.array([float(declines(text)) for text in texts]) for row, texts in answered.texts.items()}
            declined[name] = {"objects": len(asked.names), **_rows_of_one(rows, DECLINED)}
            continue
        though_shown += [declines(text) for text in answered.texts[OWN]]
        right = np.array(asked.yes)
        words = {
            row: np.array(
                [
                    yes_or_no(text, question) == yes
                    for text, question, yes in zip(texts, asked.questions, right, strict=True)
                ],
                dtype=np.float64,
            )
            for row, texts in answered.texts.items()
        }
        # Equal likelihoods are half right.
        gaps = {row: scores[:, 1] - scores[:, 0] for row, scores in answered.scores.items()}
        likely = {row: np.where(gap == 0, 0.5, (gap > 0) == right) for row, gap in gaps.items()}
        read = [
            yes_or_no(text, question) is not None
            for text, question in zip(answered.texts[OWN], asked.questions, strict=True)
        ]
        balanced[name] = {
            "objects": len(asked.names),
            "yes": int(right.sum()),
            "read": float(np.mean(read)),
            BY_LIKELIHOOD: _rows_of_one(likely, BALANCED, asked.yes),
            BY_WORDS: _rows_of_one(words, BALANCED, asked.yes),
        }
    summary: dict[str, Any] = {BALANCED: balanced, DECLINED: declined}
    return summary | ({"declined_though_shown": float(np.mean(though_shown))} if though_shown else {})


def _rows_of_one(rows: Mapping[str, Array], measure: str, groups: Sequence[Hashable] | None = None) -> dict[str, Any]:
    """Return the rows' means of one measure, over groups where they are given, and the gap of the own shapes."""
    means = {row: interval_of(values, groups) for row, values in rows.items()}
    return {"rows": means, "gaps": _gaps({row: {measure: values} for row, values in rows.items()}, [measure], groups)}


def summarize_retrieval(rows: Mapping[str, Array]) -> dict[str, Any]:
    """Return recalls in both directions of every row, and chance.

    Args:
        rows: name -> scores of every text for every object `[objects, objects]`.
    """
    count = len(rows[OWN])
    return {
        "objects": count,
        "chance": {f"recall_{k}": chance(count, k) for k in RECALLS},
        "rows": {
            row: {
                direction: {name: interval_of(values) for name, values in recalls.items()}
                for direction, recalls in retrieval_scores(scores, tops=RECALLS).items()
            }
            for row, scores in rows.items()
        },
    }


def _rows_without_a_model(answered: Answered, groups: Sequence[str], kept: Sequence[int]) -> dict[str, Array]:
    """Return the scores of the rows that ask no model."""
    asked, lent = answered.asked, answered.lent
    counts: Counter[str] = Counter()
    for answer, count in (asked.known or Counter(asked.answers)).items():
        counts[group_of(asked.kind, answer)] += count
    frequent = np.tile(np.array([float(counts[group]) for group in groups]), (len(kept), 1))
    if not asked.known:  # an object's own answer does not speak for it
        frequent[np.arange(len(kept)), [groups.index(group_of(asked.kind, asked.answers[n])) for n in kept]] -= 1
    rows = {MOST_FREQUENT if asked.known else MOST_FREQUENT_OF_OTHERS: frequent}
    if lent is not None and not asked.kind.startswith("is_"):  # theirs answer another claim
        scores = np.zeros((len(kept), len(groups)))
        for place, number in enumerate(kept):
            neighbors_answer = lent.get(asked.names[number])
            if neighbors_answer is not None and (shared := group_of(asked.kind, neighbors_answer)) in groups:
                scores[place, groups.index(shared)] = 1.0
        rows[NEIGHBOR] = scores
    return rows


def _gaps(
    objects: Mapping[str, Mapping[str, Array]], measures: Sequence[str], groups: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Return for each measure the best blind control and the mean difference of the own shapes to it."""
    blind = [row for row in BLIND if row in objects]
    gaps = {}
    for name in measures if blind else ():
        control, gap = gap_to_best(objects[OWN][name], {row: objects[row][name] for row in blind}, groups)
        gaps[name] = {"control": control, **gap.rounded()}
    return gaps


def interval_of(values: Array, groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """Return a measure's mean over objects and its interval, as files have them; see `bootstrap.mean_interval`."""
    interval = mean_interval(values, groups)
    assert interval is not None
    return interval.rounded()
