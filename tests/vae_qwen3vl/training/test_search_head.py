"""The search's head: it learns which words belong to which features, and keeps what it may not read at zero."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sdf_vqvae.utils.files import sha256_of
from vae_qwen3vl.search.head import SearchHead
from vae_qwen3vl.search.vectors import shipped_search_weights
from vae_qwen3vl.training.search_head import Told, recalls, train_search_head


def told(objects: int, seed: int) -> Told:
    """Return objects whose features are a linear map of their captions, with noise and a constant column."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(16, 40, generator=torch.Generator().manual_seed(9))
    captions = F.normalize(torch.randn(objects, 16, generator=random), dim=1)
    features = captions @ mix + 0.1 * torch.randn(objects, 40, generator=random)
    twice = [torch.stack([own, F.normalize(own + 0.05, dim=0)]) for own in captions]
    return Told(features=F.pad(features, (1, 0), value=3.0), captions=twice)


def test_a_head_finds_objects_by_words_that_it_never_saw():
    train, val = told(600, 0), told(100, 1)
    trained = train_search_head(train, val, epochs=4, batch_size=128)
    assert [record["epoch"] for record in trained.records] == [0, 1, 2, 3, 4]
    vectors = F.normalize(F.linear(val.features, trained.weight, trained.bias), dim=1)
    asked = torch.stack([own[-1] for own in val.captions])
    assert recalls(vectors, asked)["recall_1"] > 0.9
    assert recalls(vectors, asked.roll(1, 0))["recall_1"] < 0.1
    best = max(trained.records, key=lambda record: record["recall_5"] + record["recall_10"])
    assert recalls(vectors, asked)["recall_10"] == pytest.approx(best["recall_10"])
    assert not trained.weight[:, 0].any()  # what is the same everywhere is not read
    again = train_search_head(train, val, epochs=4, batch_size=128)
    assert torch.equal(again.weight, trained.weight)


def test_equal_scores_get_what_guessing_gets():
    same = F.normalize(torch.ones(8, 4), dim=1)
    assert recalls(same, same) == {"recall_1": 0.0, "recall_5": 1.0, "recall_10": 1.0}  # all in the middle, rank 3.5


def test_the_shipped_head_belongs_to_the_shipped_projector_and_comes_back_from_its_file(tmp_path):
    projector, file = shipped_search_weights()
    head = SearchHead.load(file)
    assert head.projector_hash == sha256_of(projector) and head.weight.shape[0] == 384
    assert file.stat().st_size < 2 * 2**20
    head.save(tmp_path / "again.safetensors")
    assert torch.equal(SearchHead.load(tmp_path / "again.safetensors").weight, head.weight)
    (tmp_path / "again.safetensors").write_bytes(b"no head")
    with pytest.raises(ValueError, match="search head"):
        SearchHead.load(tmp_path / "again.safetensors")
    with pytest.raises(ValueError, match="is not a search head"):
        SearchHead.load(projector)
