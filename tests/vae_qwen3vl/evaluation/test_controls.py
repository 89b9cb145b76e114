"""Controls don't see the object that they are asked about, and a gap is to the best of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdf_vqvae.evaluation.bootstrap import mean_interval
from vae_qwen3vl.evaluation import controls
from vae_qwen3vl.evaluation.controls import (
    BLIND,
    FORMULAS,
    MOST_FREQUENT,
    MOST_FREQUENT_OF_OTHERS,
    NOT_BLIND,
    TYPICAL,
    TYPICAL_OF_OTHERS,
    bag_of_words,
    constant_answers,
    gap_to_best,
    most_frequent,
    nearest_by_codes,
    other_objects,
    paired_gap,
    scattered,
)
from vae_qwen3vl.evaluation.objects import EvalObject


def test_every_control_says_what_it_is():
    assert set(FORMULAS) == {*BLIND, *NOT_BLIND}


@given(st.integers(2, 60), st.integers(0, 5))
def test_another_object_is_never_the_same_and_each_is_used_once(count: int, seed: int) -> None:
    others = other_objects(count, seed)
    assert sorted(others) == list(range(count))
    assert all(other != own for own, other in enumerate(others))


def test_scattered_objects_keep_their_codes_at_other_cells(shape) -> None:
    one = shape("a", 60, 9)
    (moved,) = scattered([one], 8)
    assert torch.equal(moved.codes, one.codes)
    assert len(torch.unique(moved.coords, dim=0)) == 60
    assert 0 <= int(moved.coords.min()) <= int(moved.coords.max()) < 8
    assert not torch.equal(moved.coords, one.coords)


def test_the_nearest_object_has_the_most_alike_codes(shape) -> None:
    known = [shape("a", 30, 1), shape("b", 30, 2), shape("c", 30, 3)]
    asked = [EvalObject(name="x", codes=known[2].codes.flip(0), coords=known[2].coords)]
    assert nearest_by_codes(asked, known, 32) == [2]
    assert most_frequent(["b", "a", "b", "a", "c"]) == "a"


def test_the_constant_answer_is_trainings_or_the_others() -> None:
    own = ["a red chair", "a red chair", "a blue robot", "a red robot"]
    assert constant_answers(["x", "y", "y"], own, bag_of_words) == (MOST_FREQUENT, ["y"] * 4)
    said = constant_answers(["a cup", "a red cup", "a lamp"], own, bag_of_words)
    assert said == (TYPICAL, ["a cup"] * 4)  # shares "a" and "cup"
    # "a red chair" is said twice, but not of the others of either chair
    name, answers = constant_answers([], own, bag_of_words) or ("", [])
    assert name == TYPICAL_OF_OTHERS
    assert answers[2] == "a red chair"
    three = ["b", "a", "b", "a", "b", "c"]
    assert constant_answers([], three, bag_of_words) == (MOST_FREQUENT_OF_OTHERS, ["a", "b", "a", "b", "a", "b"])
    assert constant_answers([], ["alone"], bag_of_words) is None


def test_unique_captions_never_answer_for_themselves(monkeypatch) -> None:
    own = [f"a thing with {n} legs and {n * n} arms" for n in range(30)] + ["a thing with legs and arms"]
    for most in (2000, 12):
        monkeypatch.setattr(controls, "_MOST_CAPTIONS", most)
        name, answers = constant_answers([], own, bag_of_words) or ("", [])
        assert name == TYPICAL_OF_OTHERS
        assert all(answer != caption for answer, caption in zip(answers, own, strict=True))


def test_a_gap_is_paired():
    # The rows vary much from object to object and differ by the same amount everywhere.
    control = np.random.default_rng(0).normal(size=50)
    found = paired_gap(control + 0.1, control)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    unpaired = mean_interval(control)
    assert unpaired.high - unpaired.low > 0.3


def test_the_gap_is_to_the_best_control():
    row = np.array([1.0, 1.0, 0.0, 1.0])
    control, gap = gap_to_best(row, {"no 3D": np.zeros(4), "shuffled": np.array([1.0, 0, 0, 0])})
    assert control == "shuffled"
    assert gap.mean == pytest.approx(1 / 2)
    assert gap.low <= 1 / 2 <= gap.high


@given(arrays(float, st.integers(1, 12), elements=st.floats(0, 1)))
@settings(max_examples=30, deadline=None)
def test_a_row_is_not_above_itself(row):
    _, gap = gap_to_best(row, {"itself": row})
    assert (gap.mean, gap.low, gap.high) == (0, 0, 0)


def test_rows_of_other_objects_are_refused():
    with pytest.raises(ValueError, match="same objects"):
        paired_gap(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="at least one control"):
        gap_to_best(np.zeros(2), {})


def test_nearest_ones_are_ranked_and_the_first_is_the_nearest(shape):
    known = [shape(f"k{number}", 30, number) for number in range(6)]
    asked = [replace(known[3], name="x"), shape("y", 30, 50)]
    ranked = controls.ranked_by_codes(asked, known, 32, 4)
    assert [len(row) for row in ranked] == [4, 4] and ranked[0][0] == 3
    assert [row[0] for row in ranked] == controls.nearest_by_codes(asked, known, 32)


def test_frequent_answers_come_by_how_often_they_occur():
    assert controls.frequent_answers(["b", "a", "c", "b", "c"], 2) == ["b", "c"]
