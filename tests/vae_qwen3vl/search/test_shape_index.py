"""Asking an index: the nearest rows, by words and by shapes, and what can't be asked."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.language.sentence_encoder import embed
from vae_qwen3vl.search import ShapeIndex, store
from vae_qwen3vl.search.shape_index import unread_letters


@pytest.fixture
def index(codes, make_index, tmp_path):
    make_index(codes, tmp_path / "index")
    return ShapeIndex.open(tmp_path / "index")


def test_hits_are_the_nearest_rows_in_order(index):
    rows = np.array(store.read_vectors(index.folder, 384, len(index)), dtype=np.float32)
    asked = torch.nn.functional.normalize(torch.randn(384, generator=torch.Generator().manual_seed(3)), dim=0)
    right = np.sort(rows @ asked.numpy())[::-1]
    for k in (1, 3, 5, 50):
        scores = [hit.score for hit in index.nearest(asked, k)]
        assert scores == pytest.approx(right[:k].tolist(), abs=2e-3)


def test_an_object_is_found_by_its_own_codes_whatever_its_place_in_source_units(index):
    for name in ("object0", "object3"):
        codes = replace(index.codes_of(name), center=(5.0, 6.0, 7.0), scale=0.1)
        hits = index.by_shape(codes, 2)
        assert hits[0].id == name and hits[0].score == pytest.approx(1, abs=2e-3)


def test_a_page_shows_each_object_and_takes_no_words_for_markup(index, tmp_path, small_vae, monkeypatch):
    from vae_qwen3vl.search import page

    (hit,) = [hit for hit in index.nearest(torch.ones(384)) if hit.id == "object1"]
    hit = replace(hit, name="<b>name", about="<script>alert(1)</script>", source="nowhere.obj")
    drawn = []
    monkeypatch.setattr(
        page, "surface_of", lambda vae, field, codes: drawn.append(codes) or page.trimesh.creation.box()
    )
    page.write_results(tmp_path / "found.html", "<i>asked", index, [hit, hit], lambda: small_vae)
    text = (tmp_path / "found.html").read_text()
    assert len(drawn) == 2 and text.count("<img") == 2
    assert "<script" not in text and "<b>name" not in text and "<i>asked" not in text and "&lt;script&gt;" in text


def test_words_find_the_object_that_is_like_them(index, minilm, monkeypatch):
    things = ["a wooden chair with a tall back", "a rocket", "a sailing ship", "a coffee mug", "a tree"]
    vectors = embed(minilm, things).numpy().astype(np.float16)
    (index.folder / store.VECTORS).write_bytes(vectors.tobytes())
    asked = ShapeIndex.open(index.folder)
    ids = [asked._table.execute("SELECT id FROM objects WHERE place = ?", (n,)).fetchone()[0] for n in range(5)]
    for number, words in enumerate(["chair", "spaceship launch", "boat", "cup for drinks", "oak"]):
        assert asked.by_words(words, 1)[0].id == ids[number], words


def test_other_scripts_are_warned_of(index, minilm, caplog):
    assert unread_letters("une chaise à bascule, 12 €") == ""
    assert unread_letters("一把木椅 chair") == "一把木椅"
    with caplog.at_level(logging.WARNING):
        assert len(index.by_words("一把木椅")) == 5
    assert "reads English" in caplog.text


def test_what_cannot_be_asked_is_refused(index):
    with pytest.raises(ValueError, match="no words"):
        index.by_words("  ")
    with pytest.raises(ValueError, match="k must be at least 1"):
        index.nearest(torch.ones(384), 0)
    other = ShapeCodes(
        codes=torch.tensor([1], dtype=torch.int32),
        coords=torch.zeros((1, 3), dtype=torch.int32),
        latent_resolution=8,
        data_resolution=32,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash="another",
    )
    with pytest.raises(ValueError, match="made by the VAE another"):
        index.by_shape(other)
    with pytest.raises(ValueError, match="no object"):
        index.codes_of("nobody")
