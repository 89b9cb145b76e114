"""Users' questions: read from records, answered with and without the shape, and scored so that yes alone is half."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vae_qwen3vl.evaluation.controls import NO_SHAPE, OTHER_SHAPE, OWN
from vae_qwen3vl.evaluation.interview import UsersAnswered
from vae_qwen3vl.evaluation.run import evaluate
from vae_qwen3vl.evaluation.settings import EvalSettings
from vae_qwen3vl.evaluation.summary import summarize_users
from vae_qwen3vl.evaluation.users_questions import UsersSet, read_users_sets
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

NAMES = ["a", "b", "c", "d", "e", "f"]


def written(path, change=None):
    records = []
    for number, name in enumerate(NAMES):
        for language, answers, question in (("en", ("No.", "Yes."), "flat?"), ("zh", ("不是。", "是。"), "扁平吗？")):
            about = {"sample_id": name, "language": language}
            records += [
                about | {"kind": "is_flat", "question": question, "answer": answers[number % 2]},
                about | {"kind": "unseen", "unseen": "colour", "question": "colour?", "answer": "I can't see it."},
                about | {"kind": "name", "question": "what?", "answer": "Thing."},
            ]
    records.append({"sample_id": "a", "kind": "is_taller", "language": "en", "question": "tall?", "answer": "Yes."})
    records[0] |= change or {}
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_sets_are_of_one_kind_and_language_and_of_both_answers(tmp_path):
    sets = read_users_sets(NAMES, written(tmp_path / "q.jsonl"))
    assert [(one.kind, one.language, one.declined) for one in sets] == [
        *(("is_flat", language, False) for language in ("en", "zh")),
        *(("colour", language, True) for language in ("en", "zh")),
    ]
    assert sets[0].yes == (False, True) * 3 and sets[1].answers == ("不是。", "是。")
    assert [len(one.names) for one in read_users_sets(NAMES[:4], tmp_path / "q.jsonl")] == [4] * 4
    assert read_users_sets(["a", "c", "e"], tmp_path / "q.jsonl") == [], "too few"
    assert read_users_sets(["x", "a", "b", "c", "e"], tmp_path / "q.jsonl")[0].kind == "is_flat"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"answer": "Perhaps."}, "line 1.*yes or no, not 'Perhaps.'"), ({"question": 3}, "line 1.*all text")],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_users_sets(NAMES, written(tmp_path / "q.jsonl", change))


def test_yes_alone_is_half_right_whatever_is_asked():
    asked = UsersSet(
        kind="is_flat", language="en", names=tuple("abcd"), questions=("Is it flat?",) * 4,
        yes=(True, True, True, False), answers=("No.", "Yes."),
    )  # fmt: skip
    right = np.array([[-2.0, -1.0]] * 3 + [[-1.0, -2.0]])
    always = np.array([[-2.0, -1.0]] * 4)
    found = summarize_users(
        [
            UsersAnswered(
                asked=asked,
                texts={OWN: ["Yes.", "It is flat.", "A chair.", "No."], NO_SHAPE: ["Yes."] * 4},
                scores={OWN: right, NO_SHAPE: always, OTHER_SHAPE: np.zeros((4, 2))},
            )
        ]
    )["balanced"]["is_flat en"]
    means = {row: own["mean"] for row, own in found["by_likelihood"]["rows"].items()}
    assert means == {OWN: 1.0, NO_SHAPE: 0.5, OTHER_SHAPE: 0.5}
    assert found["by_words"]["rows"][OWN]["mean"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-3)
    assert found["by_words"]["rows"][NO_SHAPE]["mean"] == 0.5 and found["read"] == 0.75
    assert found["by_likelihood"]["gaps"]["balanced"]["mean"] == 0.5


def test_declining_counts_where_nothing_can_be_seen_and_only_there():
    unseen = UsersSet(kind="colour", language="en", names=tuple("abcd"), questions=("colour?",) * 4, yes=())
    flat = UsersSet(
        kind="is_flat", language="en", names=tuple("abcd"), questions=("flat?",) * 4, yes=(True, False) * 2,
        answers=("No.", "Yes."),
    )  # fmt: skip
    said = {OWN: ["I can't see its colour.", "Red.", "I don't know.", "Red, I don't know."], NO_SHAPE: ["Red."] * 4}
    found = summarize_users(
        [
            UsersAnswered(asked=unseen, texts=said, scores={}),
            UsersAnswered(
                asked=flat,
                texts={OWN: ["I can't see that.", "No.", "Yes.", "No."], NO_SHAPE: ["No."] * 4},
                scores={OWN: np.zeros((4, 2)), NO_SHAPE: np.zeros((4, 2))},
            ),
        ]
    )
    assert found["declined"]["colour en"]["rows"][OWN]["mean"] == 0.5
    assert found["declined"]["colour en"]["gaps"]["declined"]["mean"] == 0.5
    assert found["declined_though_shown"] == 0.25


def test_an_evaluation_asks_users_questions_in_all_rows(vl_models, tokenizer, shape, tmp_path):
    import torch

    from vae_qwen3vl.evaluation.objects import EvalData

    model = Qwen3VLWith3DBranch(use_vl_model=vl_models["qwen2_vl"], latent_dim=8, merge=2, max_3d_tokens=0).eval()
    data = EvalData(
        objects=[shape(name, 9, number) for number, name in enumerate(NAMES)],
        codebook=torch.randn(32, 8, generator=torch.Generator().manual_seed(3)),
        latent_side=8,
        vae_hash="x",
    )
    settings = EvalSettings(
        prompt="What is it?",
        measures=("closed_sets", "users_questions"),
        questions=written(tmp_path / "q.jsonl"),
        max_new_tokens=2,
        batch_size=4,
    )
    found = evaluate(model, Processor3D(tokenizer), data, settings, tmp_path / "out")
    users = found.summary["users_questions"]
    assert set(users["balanced"]) == {"is_flat en", "is_flat zh"}
    assert set(users["declined"]) == {"colour en", "colour zh"}
    assert len(users["balanced"]["is_flat en"]["by_likelihood"]["rows"]) == 4
    assert "is_flat" not in found.summary.get("closed", {}), "asked once, not as a closed set too"
    answer = found.records[0]["answers"]["is_flat en"]
    assert answer["question"] == "flat?" and answer["expected"] == "No." and isinstance(answer["right"], bool)
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Yes or no in users&#x27; words" in page and "What a shape can&#x27;t show" in page
