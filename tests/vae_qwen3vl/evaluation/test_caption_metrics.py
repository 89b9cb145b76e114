"""Caption measures: their formulas by hand, what holds for any sentences, and what other scorers say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_qwen3vl.evaluation import caption_metrics
from vae_qwen3vl.evaluation.caption_metrics import (
    CAPTION_METRICS,
    CaptionMetric,
    bleu_1,
    cider,
    distinct,
    formulas,
    meteor,
    rouge_l,
    score_captions,
    words_of,
)
from vae_qwen3vl.evaluation.controls import NO_SHAPE, OWN
from vae_qwen3vl.evaluation.summary import summarize_captions
from vae_qwen3vl.evaluation.tables import caption_table

pytest.importorskip("nltk")

MEASURES = ("bleu_1", "rouge_l", "meteor", "cider")
WORD = st.sampled_from(["a", "chair", "with", "four", "legs", "tables", "red", "lamp", "椅", "子", "small"])
SENTENCE = st.lists(WORD, min_size=1, max_size=9).map(" ".join)
OBJECTS = st.lists(st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3)), min_size=1, max_size=6)

CANDIDATES = [
    "a red chair with four legs",
    "a round table",
    "the lamp has a round red shade and a long thin stand",
    "a small wooden table with a drawer",
]
REFERENCES = [
    ["a chair with four straight legs", "red chair with four legs and a back"],
    ["a small round table with one leg"],
    ["a lamp with a red shade on a long stand", "a tall lamp"],
    ["a wooden table with one drawer", "small desk", "a small wooden table with a drawer"],
]
# pycocoevalcap 1.2 (CIDEr) and rouge-score 0.1.2 (rougeL, the best over references), run on the sentences above.
CIDER_ELSEWHERE = [4.917104291946448, 2.0806125143152787, 1.0637424578527652, 4.643702684732678]
ROUGE_ELSEWHERE = [0.8333333333333334, 0.6, 0.6363636363636365, 1.0]


def test_cider_and_rouge_agree_with_other_scorers():
    scores = score_captions(CANDIDATES, REFERENCES)
    np.testing.assert_allclose(scores["cider"], CIDER_ELSEWHERE, rtol=1e-9)
    np.testing.assert_allclose(scores["rouge_l"], ROUGE_ELSEWHERE, rtol=1e-9)


def test_bleu_clips_repeated_words_and_punishes_short_output():
    assert bleu_1(["the"] * 7, [words_of("the cat is on the mat")]) == pytest.approx(2 / 7)  # the paper's example
    assert bleu_1(["a", "chair"], [words_of("a chair with legs")]) == pytest.approx(math.exp(1 - 4 / 2))
    assert bleu_1(["a", "chair"], [words_of("a chair with legs"), ["a", "stool"]]) == pytest.approx(1.0)


def test_rouge_is_the_harmonic_mean_over_the_longest_common_subsequence():
    # "police the gunman": two of three words in order, against four.
    assert rouge_l(words_of("police the gunman"), [words_of("police killed the gunman")]) == pytest.approx(6 / 7)
    assert rouge_l(words_of("the gunman police killed"), [words_of("police killed the gunman")]) == pytest.approx(
        1 / 2
    )


def test_meteor_by_its_formula():
    # Five of six words match in two chunks: P = R = 5/6, penalty 0.5 (2/5)^3.
    candidate, reference = words_of("a red chair has four legs"), words_of("a red chair with four legs")
    assert meteor(candidate, [reference]) == pytest.approx(5 / 6 * (1 - 0.5 * (2 / 5) ** 3))
    # P = 1, R = 1/2: F = P R / (0.9 P + 0.1 R), one chunk of two words.
    assert meteor(["red", "chair"], [words_of("a red chair here")]) == pytest.approx(0.5 / 0.95 * (1 - 0.5 / 8))


def test_meteor_knows_stems_but_no_synonyms():
    assert meteor(["chairs"], [["chair"]]) == pytest.approx(0.5)
    assert meteor(["sofa"], [["couch"]]) == 0.0


def test_cider_by_its_formula():
    # Two objects, no n-gram shared between them: every weight is log 2 and cancels.
    references = [[words_of("red round chair here")], [words_of("some long tall lamp")]]
    scores = cider([words_of("red round chair there"), ["none"]], references)
    assert scores[0] == pytest.approx(10 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)
    assert scores[1] == 0.0


def test_cider_punishes_another_length():
    references = [[words_of("red round chair here")], [words_of("some long tall lamp")]]
    same = cider([words_of("red round chair here"), ["x"]], references)
    longer = cider([words_of("red round chair here x y z u v w"), ["x"]], references)
    assert same[0] == pytest.approx(10)
    assert longer[0] < 10 * math.exp(-(6**2) / 72)


def test_distinct_counts_over_all_candidates():
    made = [["a", "chair"], ["a", "chair", "a"]]
    assert distinct(made, 1) == pytest.approx(2 / 5)
    assert distinct(made, 2) == pytest.approx(2 / 3)
    assert distinct([[]], 1) == 0.0


@given(SENTENCE)
@settings(max_examples=60, deadline=None)
def test_a_sentence_scores_highest_against_itself(sentence):
    other = "something entirely else stands here"
    scores = score_captions([sentence, other], [sentence, other])
    words = scores["words"][0]
    assert scores["bleu_1"][0] == pytest.approx(1)
    assert scores["rouge_l"][0] == pytest.approx(1)
    assert scores["meteor"][0] == pytest.approx(1 - 0.5 / words**3)
    assert scores["cider"][0] == pytest.approx(10 * min(words, 4) / 4)


@given(OBJECTS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_of_objects_and_references_changes_nothing(objects, random):
    order = list(range(len(objects)))
    random.shuffle(order)
    first = score_captions([c for c, _ in objects], [r for _, r in objects])
    second = score_captions([objects[i][0] for i in order], [objects[i][1][::-1] for i in order])
    for name in (*MEASURES, "words"):
        np.testing.assert_allclose(second[name], first[name][order], atol=1e-12)
    assert second["distinct_1"] == first["distinct_1"]
    assert second["distinct_2"] == first["distinct_2"]


@given(OBJECTS)
@settings(max_examples=40, deadline=None)
def test_scores_stay_in_their_range(objects):
    scores = score_captions([c for c, _ in objects], [r for _, r in objects])
    for name in MEASURES:
        assert (scores[name] >= 0).all()
        assert (scores[name] <= (10 if name == "cider" else 1) + 1e-9).all()
    assert 0 < scores["distinct_1"] <= 1


@given(OBJECTS, SENTENCE)
@settings(max_examples=40, deadline=None)
def test_one_more_reference_never_lowers_the_best(objects, extra):
    few = score_captions([c for c, _ in objects], [r for _, r in objects])
    more = score_captions([c for c, _ in objects], [[*r, extra] for _, r in objects])
    for name in ("rouge_l", "meteor"):
        assert (more[name] >= few[name] - 1e-12).all()


def test_chinese_is_compared_by_character():
    assert words_of("一把椅子，4条腿 (oak)") == ["一", "把", "椅", "子", "4", "条", "腿", "oak"]
    scores = score_captions(["红色的椅子"], ["红色椅子"])
    assert scores["bleu_1"][0] == pytest.approx(4 / 5)
    assert scores["rouge_l"][0] == pytest.approx(8 / 9)


def test_words_leave_case_and_punctuation_out():
    text = 'A four-legged "Chair", it\'s ＯＡＫ.'
    assert words_of(text) == ["a", "four-legged", "chair", "it's", "oak"]
    assert score_captions(["A chair."], ["a chair"])["bleu_1"][0] == pytest.approx(1)


def test_empty_output_scores_nothing():
    scores = score_captions(["", "?!", "a chair"], ["a chair", "a table", "a lamp"])
    for name in (*MEASURES, "words"):
        assert scores[name][:2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (["a"], [], "1 candidates and 0 objects"),
        ([], [], "no candidate"),
        (["a", "b"], ["a", []], "object 1"),
        (["a"], ["..."], "object 0"),
    ],
)
def test_input_that_does_not_fit_is_refused(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        score_captions(candidates, references)


def test_a_measure_of_the_table_is_scored_and_has_its_heading_and_its_formula(monkeypatch):
    added = CaptionMetric(
        heading="starts", formula="the first word is right", score=lambda c: np.ones(len(c.candidates))
    )
    monkeypatch.setitem(CAPTION_METRICS, "starts", added)
    summary = summarize_captions({OWN: CANDIDATES, NO_SHAPE: CANDIDATES[::-1]}, REFERENCES, None)
    assert summary["rows"][OWN]["starts"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert summary["gaps"]["starts"]["control"] == NO_SHAPE
    heading, own, *_ = caption_table(summary)
    assert (heading[-1], own[-1]) == ("starts", "100.0 (100.0-100.0)")
    assert formulas()["starts"] == "the first word is right"


def test_the_number_of_words_is_no_merit():
    summary = summarize_captions({OWN: CANDIDATES, NO_SHAPE: CANDIDATES[::-1]}, REFERENCES, None)
    assert "words" in summary["rows"][OWN]
    assert set(summary["gaps"]) == set(MEASURES)


def test_without_nltk_the_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'nltk'", name="nltk")

    caption_metrics._nltk.cache_clear()
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ImportError, match=r"vae-qwen3vl\[evaluation\]"):
        score_captions(["a"], ["a"])
