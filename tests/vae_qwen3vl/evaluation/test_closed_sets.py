"""Closed sets: what may be answered, and what counts as one answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vae_qwen3vl.evaluation.closed_sets import closed_questions, closed_sets, group_of
from vae_qwen3vl.evaluation.controls import MOST_FREQUENT, MOST_FREQUENT_OF_OTHERS, OWN
from vae_qwen3vl.evaluation.interview import Answered
from vae_qwen3vl.evaluation.summary import summarize_closed


def records(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = [
        json.dumps({"sample_id": name, "kind": kind, "language": "en", "question": f"{kind}?", "answer": answer})
        for name, kind, answer in rows
    ]
    path.write_text("\n".join([*lines, '{"sample_id": "o1", "kind": "describe", "question": "?", "answer": "x"}']))
    return path


def test_an_organ_counts_without_its_side_and_unseen_names_are_listed(tmp_path: Path) -> None:
    names = [f"o{n}" for n in range(6)]
    answers = ["Left kidney.", "Right kidney.", "Liver.", "Liver.", "Spleen.", "Left kidney."]
    asked = records(tmp_path / "asked.jsonl", [(n, "organ", a) for n, a in zip(names, answers, strict=True)])
    known = records(tmp_path / "known.jsonl", [("t1", "organ", "Right kidney."), ("t2", "organ", "Liver.")])
    (found,) = closed_sets(closed_questions(asked), names, closed_questions(known))
    assert found.kind == "organ"
    assert found.candidates == ("Left kidney.", "Liver.", "Right kidney.", "Spleen.")
    assert [group_of("organ", c) for c in found.candidates] == ["Kidney.", "Liver.", "Kidney.", "Spleen."]
    scores = np.zeros((6, 4))
    scores[:, 0] = 1.0  # always says left kidney
    summary = summarize_closed(Answered(asked=found, scores={OWN: scores, "no 3D": np.zeros((6, 4))}))
    assert summary["not_in_training"] == {"objects": 1, "answers": ["Spleen."]}
    assert summary["objects"] == 5
    assert summary["rows"][OWN]["top_1"]["mean"] == pytest.approx(3 / 5)
    assert summary["rows"]["no 3D"]["top_1"]["mean"] == pytest.approx(1 / 3, rel=1e-4)
    assert summary["gaps"]["top_1"]["control"] == "most frequent answer"


def test_an_answer_of_its_own_does_not_speak_for_an_object(tmp_path: Path) -> None:
    rows = [("o1", "A."), ("o2", "B."), ("o3", "C."), ("o4", "D."), ("o5", "D.")]
    lines = [
        json.dumps({"sample_id": n, "kind": "k", "language": "en", "question": "?", "answer": a}) for n, a in rows
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    (asked,) = closed_sets(closed_questions(tmp_path / "asked.jsonl"), [name for name, _ in rows])
    blind = np.zeros((5, 4))
    summary = summarize_closed(Answered(asked=asked, scores={OWN: blind, "no 3D": blind}))
    assert MOST_FREQUENT not in summary["rows"]
    # D is the most frequent for A, B and C; for the two of D all four occur once
    assert summary["rows"][MOST_FREQUENT_OF_OTHERS]["top_1"]["mean"] == pytest.approx(2 / 5 / 4)
