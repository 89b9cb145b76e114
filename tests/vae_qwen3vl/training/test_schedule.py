"""Rates of a run: they wait for their turn, rise, and fall."""

from __future__ import annotations

import pytest

from vae_qwen3vl.training.schedule import rate


def test_rates_rise_fall_and_wait_for_their_turn() -> None:
    assert rate(0.2, 0.3, 0.03) == 0
    assert rate(0.0, 0.0, 0.1) < 0.05
    assert rate(0.1, 0.0, 0.1) == pytest.approx(0.976, abs=0.01)
    assert rate(1.0, 0.3, 0.03) == pytest.approx(0.02)
    falling = [rate(p / 20, 0.0, 0.05) for p in range(2, 20)]
    assert falling == sorted(falling, reverse=True)
