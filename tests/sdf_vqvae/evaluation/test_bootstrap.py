"""Bootstrap intervals: what they cover, and that they are the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.evaluation.bootstrap import RESAMPLES, draws, mean_interval

VALUES = st.lists(st.floats(-100, 100), min_size=1, max_size=20).map(np.array)


def test_every_resample_draws_as_many_objects_as_there_are():
    drawn = draws(7)
    assert drawn.shape == (RESAMPLES, 7)
    assert (drawn.sum(axis=1) == 7).all()
    assert (drawn == draws(7)).all()


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_the_mean_lies_among_the_values_and_shifts_with_them(values):
    found = mean_interval(values)
    assert found.mean == pytest.approx(values.mean(), abs=1e-9)
    assert values.min() - 1e-9 <= found.low <= found.high <= values.max() + 1e-9
    shifted = mean_interval(values + 3)
    assert (shifted.low, shifted.high) == pytest.approx((found.low + 3, found.high + 3), abs=1e-9)


def test_the_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(4).normal(size=400)
    found = mean_interval(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_objects_without_a_value_are_left_out():
    values = np.array([1.0, np.nan, 3.0])
    assert mean_interval(values).mean == 2
    assert mean_interval(values).objects == 2
    assert mean_interval(np.array([np.nan])) is None


def test_groups_count_alike_however_large():
    values, groups = np.array([1.0, 1, 1, 1, 1, 1, 0, 0]), ["chair"] * 6 + ["lamp"] * 2
    assert mean_interval(values).mean == pytest.approx(6 / 8)
    macro = mean_interval(values, groups)
    assert macro.mean == pytest.approx(1 / 2)
    assert 0 <= macro.low <= 1 / 2 <= macro.high <= 1


@given(VALUES)
@settings(max_examples=25, deadline=None)
def test_one_group_is_no_group(values):
    plain, grouped = mean_interval(values), mean_interval(values, ["all"] * len(values))
    assert (grouped.mean, grouped.low, grouped.high) == pytest.approx((plain.mean, plain.low, plain.high))


def test_each_object_needs_a_group():
    with pytest.raises(ValueError, match="2 values and 1 groups"):
        mean_interval(np.ones(2), ["a"])
