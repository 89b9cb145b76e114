"""How sure a model is: probabilities of its tokens as full forwards say them, and what they mean for being right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vae_qwen3vl.answer_confidence import (
    Calibration,
    check_calibrated,
    hedged,
    platt,
    risk_coverage,
)

KNOWN = Calibration(slope=8.0, intercept=-5.0, prompt="What is it?", right="said", data="none", projector="0" * 64)


def test_the_logistic_function_finds_what_answers_were_drawn_by():
    generator = np.random.default_rng(0)
    means = generator.uniform(0.3, 1.0, 20_000)
    right = generator.uniform(size=len(means)) < 1 / (1 + np.exp(-(8 * means - 5)))
    slope, intercept = platt(means, right)
    assert slope == pytest.approx(8, abs=0.4) and intercept == pytest.approx(-5, abs=0.3)
    said = 1 / (1 + np.exp(-(slope * means + intercept)))
    assert said.mean() == pytest.approx(right.mean(), abs=1e-3)


def test_few_answers_that_happen_to_be_separable_give_no_certainty():
    slope, intercept = platt(np.array([0.2, 0.3, 0.8, 0.9]), np.array([False, False, True, True]))
    assert 0.5 < 1 / (1 + np.exp(-(slope + intercept))) < 0.95
    with pytest.raises(ValueError, match="0 of 3 answers are right"):
        platt(np.array([0.1, 0.2, 0.3]), np.zeros(3, dtype=bool))


def test_the_surest_answers_are_taken_first():
    rows = risk_coverage([0.9, 0.1, 0.8, 0.2], np.array([1.0, 0.6, 0.0, 0.2]), (1.0, 0.5, 0.01))
    assert [row["answers"] for row in rows] == [4, 2, 1]
    assert [row["score"] for row in rows] == pytest.approx([0.45, 0.5, 1.0])
    assert [row["best"] for row in rows] == pytest.approx([0.45, 0.8, 1.0])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("A red chair.", "something like a red chair"),
        ("armchair, living room", "something like an armchair"),
        ("major calyx (VH F Ureter L, female)", "something like a major calyx"),
        ("Minifig Accessory: Carrot", "something like a Minifig Accessory: Carrot"),
        ("", "something that I can't name"),
    ],
)
def test_who_is_not_sure_says_so(said, expected):
    assert hedged(said) == expected


def test_a_calibration_is_written_and_read(tmp_path):
    KNOWN.save(tmp_path / "confidence.json")
    assert Calibration.load(tmp_path / "confidence.json") == KNOWN
    assert KNOWN.probability(0.625) == pytest.approx(0.5)
    given = json.loads((tmp_path / "confidence.json").read_text())
    for wrong in ({**given, "slope": "8"}, {**given, "more": 1}, {"slope": 8.0}):
        (tmp_path / "wrong.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"wrong\.json is no calibration"):
            Calibration.load(tmp_path / "wrong.json")


def test_what_was_not_calibrated_is_not_abstained_from():
    check_calibrated(KNOWN, "What is it? ")
    with pytest.raises(ValueError, match=r"knows how often answers to 'What is it\?' are right"):
        check_calibrated(KNOWN, "How many legs?")
    with pytest.raises(ValueError, match=r"has no confidence\.json"):
        check_calibrated(None, "What is it?")


def test_the_shipped_calibration_is_the_shipped_projectors():
    from vae_qwen3vl.describer import calibration_beside
    from vae_qwen3vl.trained_parts import shipped_weights

    projector, _ = shipped_weights()
    assert projector is not None
    known = calibration_beside(projector)
    assert known is not None and known.slope > 0
    assert known.probability(0.5) < 0.5 < known.probability(1.0)


def test_another_projectors_calibration_is_not_used(tmp_path, caplog):
    from vae_qwen3vl.describer import calibration_beside

    (tmp_path / "projector.safetensors").write_bytes(b"of another training")
    assert calibration_beside(tmp_path / "projector.safetensors") is None
    KNOWN.save(tmp_path / "confidence.json")
    assert calibration_beside(tmp_path / "projector.safetensors") is None
    assert "is of another projector" in caplog.text
