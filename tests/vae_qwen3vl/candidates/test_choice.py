"""Which of several sentences is taken, from their vectors alone."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.candidates.choice import choose, mean_likeness
from vae_qwen3vl.candidates.settings import CandidateSettings


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_the_sentence_that_most_others_resemble_is_taken():
    vectors = unit([1, 0, 0], [0, 1, 0.1], [0, 1, 0], [0, 1, -0.1])
    choice = choose(["rocket", "a chair", "chair", "the chair"], vectors)
    assert (choice.text, choice.place) == ("chair", 2)
    assert choice.scores == pytest.approx(mean_likeness(vectors).tolist())


def test_mean_likeness_is_that_to_the_others_without_itself():
    vectors = unit([1, 0], [1, 1], [0, 1])
    half = 0.5**0.5
    assert mean_likeness(vectors).tolist() == pytest.approx([half / 2, half, half / 2])
    assert mean_likeness(vectors[:1]).tolist() == [0.0]


def test_a_sentence_that_was_drawn_twice_counts_twice():
    vectors = unit([1, 0], [0, 1], [0, 1])
    assert choose(["a", "b", "b"], vectors).text == "b"


def test_of_equal_ones_the_first_is_taken_which_is_the_likeliest():
    assert choose(["a", "b"], unit([1, 0], [0, 1])).place == 0
    assert choose(["a"], unit([1, 0])).text == "a"


def test_the_weight_goes_from_the_others_to_the_shape():
    vectors, toward = unit([1, 0, 0], [0, 1, 0], [0, 1, 0.2]), torch.tensor([1.0, 0, 0])
    texts = ["rocket", "chair", "a chair"]
    assert choose(texts, vectors, toward, 0.0).text != "rocket"
    assert choose(texts, vectors, toward, 1.0).text == "rocket"
    assert choose(texts, vectors, None, 1.0).text != "rocket"
    both = choose(texts, vectors, toward, 0.25).scores[0]
    assert both == pytest.approx(0.75 * 0 + 0.25 * 1)


def test_an_empty_sentence_is_like_nothing():
    vectors = torch.cat([torch.zeros(1, 2), unit([1, 1], [1, 0])])
    assert choose(["", "a", "b"], vectors).place != 0


def test_candidates_are_ranked_once_each_and_the_chosen_one_is_first():
    choice = choose(["a", "b", "b", "c"], unit([1, 0], [0, 1], [0, 1], [1, 3]))
    ranked = choice.ranked()
    assert ranked[0]["text"] == choice.text and len(ranked) == 3
    assert [row["score"] for row in ranked] == sorted((row["score"] for row in ranked), reverse=True)


def test_texts_and_vectors_must_fit():
    with pytest.raises(ValueError, match="give each a vector"):
        choose(["a"], unit([1, 0], [0, 1]))
    with pytest.raises(ValueError, match="one at least"):
        choose([], torch.zeros(0, 2))


def test_there_is_something_to_choose_among_only_where_it_was_asked_for(tmp_path):
    assert not CandidateSettings() and not CandidateSettings(candidate_temperature=1.0)
    assert CandidateSettings(candidates=4) and CandidateSettings(neighbors=tmp_path)
    with pytest.raises(ValueError, match="--shape_weight must be a number from 0 to 1"):
        CandidateSettings(shape_weight=2.0)
