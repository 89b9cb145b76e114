"""An evaluation from Python: a call writes the folder, and what the objects don't allow is left out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import tiny_search
from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.settings import EncodeSettings
from vae_qwen3vl.candidates.settings import CandidateSettings
from vae_qwen3vl.evaluation.objects import EvalData, EvalObject, from_codes
from vae_qwen3vl.evaluation.run import evaluate
from vae_qwen3vl.evaluation.settings import EvalSettings
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.search.indexing import index_dataset

SETTINGS = EvalSettings(prompt="What is it?", measures=("closed_sets", "retrieval"), max_new_tokens=2, data="mine")


@pytest.fixture
def asked(vl_models, tokenizer):
    model = Qwen3VLWith3DBranch(use_vl_model=vl_models["qwen2_vl"], latent_dim=8, merge=2, max_3d_tokens=0).eval()
    return model, Processor3D(tokenizer)


def data_of(objects: list[EvalObject]) -> EvalData:
    codebook = torch.randn(32, 8, generator=torch.Generator().manual_seed(3))
    return EvalData(objects=objects, codebook=codebook, latent_side=8, vae_hash="x")


def test_a_call_writes_the_folder_and_returns_what_is_in_it(asked, shape, tmp_path):
    objects = [shape("a", 9, 0, captions=("a chair",)), shape("b", 12, 1, captions=("a lamp", "a light"))]
    found = evaluate(*asked, data_of(objects), SETTINGS, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("generated.txt", "eval_results.jsonl", "eval_summary.json", "report.html")
    }
    assert json.loads((tmp_path / "out/eval_summary.json").read_text(encoding="utf-8")) == found.summary
    lines = (tmp_path / "out/eval_results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found.records
    assert [record["sample_id"] for record in found.records] == ["a", "b"]
    assert found.summary["settings"]["data"] == "mine"
    assert found.summary["retrieval"]["objects"] == 2
    assert "captions" not in found.summary and "closed" not in found.summary
    assert found.reconstructions == {}


def test_retrieval_needs_a_caption_of_every_object_and_two_objects(asked, shape, tmp_path, caplog):
    some = [shape("a", 9, 0, captions=("a chair",)), shape("b", 12, 1)]
    assert "retrieval" not in evaluate(*asked, data_of(some), SETTINGS, tmp_path / "some").summary
    assert "1 of 2 objects have no caption" in caplog.text
    assert "retrieval" not in evaluate(*asked, data_of(some[:1]), SETTINGS, tmp_path / "one").summary
    assert caplog.text.count("have no caption") == 1


def test_another_tokenizer_is_refused_before_anything_is_asked(asked, shape, small_vae, tmp_path, monkeypatch):
    model, processor = asked
    monkeypatch.setattr(model, "generate", lambda *_, **__: pytest.fail("it was asked"))
    with pytest.raises(ValueError, match="the codes of mine are of the VAE x, this one is"):
        evaluate(model, processor, data_of([shape("a", 9, 0)]), SETTINGS, tmp_path / "out", vae=small_vae)


def test_descriptions_are_chosen_among_several_in_every_row(asked, shape, tmp_path, minilm, caplog):
    objects = [shape("a", 9, 0, captions=("a chair",)), shape("b", 12, 1, captions=("a lamp", "a light"))]
    choice = CandidateSettings(candidates=3, candidate_temperature=2.0, shape_weight=0.0)
    settings = replace(SETTINGS, measures=("captions",), choice=choice)
    found = evaluate(*asked, data_of(objects), settings, tmp_path / "out")
    assert found.summary["settings"]["candidates"]["chosen_with"] == "all-minilm-l6-v2"
    assert "chosen and measured by the same sentence model" in caplog.text
    again = evaluate(*asked, data_of(objects), settings, tmp_path / "again")
    assert again.records == found.records  # a draw is the same for the same seed
    greedy = evaluate(*asked, data_of(objects), replace(SETTINGS, measures=("captions",)), tmp_path / "greedy")
    rows = found.summary["captions"]["rows"]
    assert set(rows) == set(greedy.summary["captions"]["rows"])
    assert {record["controls"]["another object's 3D"] for record in found.records} == {
        record["generated"] for record in found.records
    }
    assert "chosen among 4 answers" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_descriptions_read_what_similar_objects_are_called(
    codes, tokenizer, vl_models, small_vae, tmp_path, monkeypatch
):
    pytest.importorskip("usearch")
    parts = tiny_search.saved(tmp_path, small_vae.fingerprint())
    index_dataset(EncodeSettings(source=codes, output=tmp_path / "index", split="train"), *parts)
    model = Qwen3VLWith3DBranch(use_vl_model=vl_models["qwen2_vl"], latent_dim=4, merge=2, max_3d_tokens=0).eval()
    prompts: list[str] = []
    processor = Processor3D(tokenizer)
    write = Processor3D.__call__

    def noting(self, conversations, *others, **more):
        prompts.extend(conversations)
        return write(self, conversations, *others, **more)

    monkeypatch.setattr(Processor3D, "__call__", noting)
    settings = replace(SETTINGS, measures=("captions",), look_up=tmp_path / "index")
    data = from_codes(CodeFolder(codes), split="train", most=0)
    found = evaluate(model, processor, data, settings, tmp_path / "out")
    told = [prompt for prompt in prompts if prompt.startswith("Similar objects: ")]
    assert len(told) == 3 * len(data.objects)  # beside its own shape, another's beside it, and without any
    assert prompts.count("What is it?") == 1 + len(data.objects)  # no 3D, and shuffled coordinates
    assert {"own shape, another object's similar ones", "its similar ones, no 3D"} <= set(
        found.summary["captions"]["rows"]
    )
