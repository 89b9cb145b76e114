"""Ranking measures: by hand, and against every order of equal scores."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdf_vqvae.evaluation.bootstrap import mean_interval
from vae_qwen3vl.evaluation.ranking_metrics import (
    TO_OBJECTS,
    TO_TEXTS,
    chance,
    in_large_groups,
    merge_candidates,
    mutual_information,
    ranking_scores,
    retrieval_scores,
)

# Few different values, so that many scores are equal.
FEW = st.sampled_from([-np.inf, -2.5, 0.0, 1.0])
SCORES = st.integers(1, 5).flatmap(lambda n: arrays(float, st.tuples(st.integers(1, 6), st.just(n)), elements=FEW))


def test_top_by_hand():
    found = ranking_scores([[0.1, 0.9, 0.3], [0.8, 0.5, 0.6], [0.2, 0.3, 0.1]], [1, 1, 0], tops=(1, 2))
    assert found["top_1"].tolist() == [1, 0, 0]
    assert found["top_2"].tolist() == [1, 0, 1]


def test_equal_scores_count_as_much_as_guessing():
    found = ranking_scores(np.zeros((3, 10)), [0, 4, 9])
    assert found["top_1"] == pytest.approx([chance(10, 1)] * 3)
    assert found["top_5"] == pytest.approx([chance(10, 5)] * 3)
    assert chance(3, 5) == 1


@given(SCORES, st.data())
@settings(max_examples=60, deadline=None)
def test_expected_values_are_means_over_every_order_of_equals(scores, data):
    count = scores.shape[1]
    targets = data.draw(st.lists(st.integers(0, count - 1), min_size=len(scores), max_size=len(scores)))
    found = ranking_scores(scores, targets, tops=(1, 2))
    for number, target in enumerate(targets):
        # A stable sort of every order of the candidates takes equals in that order.
        ranks = np.array(
            [
                [order[i] for i in np.argsort(-scores[number][list(order)], kind="stable")].index(target) + 1
                for order in permutations(range(count))
            ]
        )
        assert found["top_1"][number] == pytest.approx((ranks <= 1).mean())
        assert found["top_2"][number] == pytest.approx((ranks <= 2).mean())


@given(SCORES, st.data())
@settings(max_examples=60, deadline=None)
def test_order_of_objects_and_candidates_changes_nothing(scores, data):
    objects, candidates = scores.shape
    targets = np.array(data.draw(st.lists(st.integers(0, candidates - 1), min_size=objects, max_size=objects)))
    rows = np.array(data.draw(st.permutations(range(objects))))
    columns = np.array(data.draw(st.permutations(range(candidates))))
    first = ranking_scores(scores, targets)
    second = ranking_scores(scores[rows][:, columns], np.argsort(columns)[targets[rows]])
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values[rows])


def test_retrieval_both_ways():
    found = retrieval_scores([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.3, 0.75, 0.6]], tops=(1, 2))
    assert found[TO_TEXTS]["recall_1"].tolist() == [1, 0, 0]
    assert found[TO_OBJECTS]["recall_1"].tolist() == [1, 0, 1]
    assert found[TO_TEXTS]["recall_2"].tolist() == [1, 1, 1]


def test_perfect_scores_retrieve_everything():
    for measures in retrieval_scores(np.eye(12)).values():
        assert all((values == 1).all() for values in measures.values())


def test_left_and_right_count_as_one_name():
    merged, names = merge_candidates([[0.1, 0.5, 0.4], [0.9, 0.2, 0.3]], ["kidney", "liver", "kidney"])
    assert names == ["kidney", "liver"]
    assert merged.tolist() == [[0.4, 0.5], [0.9, 0.2]]


def test_categories_with_few_objects_can_be_left_out():
    assert in_large_groups(["a", "b", "a", "a"], least=3).tolist() == [True, False, True, True]


def test_macro_counts_every_category_alike():
    found = ranking_scores([[1, 0], [1, 0], [1, 0], [1, 0]], [0, 0, 0, 1])["top_1"]
    assert mean_interval(found).mean == pytest.approx(3 / 4)
    assert mean_interval(found, ["chair"] * 3 + ["lamp"]).mean == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("scores", "targets", "message"),
    [
        (np.zeros(3), [0], "objects, candidates"),
        (np.zeros((2, 3)), [0], "objects, candidates"),
        (np.zeros((2, 3)), [0, 3], "candidates from 0 to 2"),
        (np.zeros((2, 3)), [0, -1], "reach from -1"),
        (np.zeros((2, 3)), [0.0, 1.0], "not float64"),
        ([[0, 1], [np.nan, 1]], [0, 1], "object 1"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        ranking_scores(scores, targets)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="as many texts as objects"):
        retrieval_scores(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="at least 1"):
        ranking_scores(np.zeros((1, 2)), [0], tops=(0,))
    with pytest.raises(ValueError, match="each candidate one"):
        merge_candidates(np.zeros((1, 2)), ["a"])


@given(
    arrays(float, (4, 3), elements=st.floats(-40, 0)),
    arrays(float, (3,), elements=st.floats(-20, 20)),
)
def test_what_is_likely_with_every_shape_tells_nothing(scores, usual):
    found = mutual_information(scores)
    np.testing.assert_allclose(np.exp(found).mean(axis=0), 1)
    np.testing.assert_allclose(mutual_information(scores + usual), found, atol=1e-9)
    np.testing.assert_allclose(np.ptp(found - scores, axis=0), 0, atol=1e-9)
