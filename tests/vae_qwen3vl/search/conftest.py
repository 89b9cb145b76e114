"""A small tokenizer's files, a projector and a head for its codes: random weights, so that nothing is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_search
from sdf_vqvae.codes.settings import EncodeSettings
from vae_qwen3vl.search.indexing import Indexed, index_dataset


@pytest.fixture
def weights(tmp_path: Path, small_vae) -> tuple[Path, Path]:
    """A projector for the small tokenizer, and a search head for it."""
    return tiny_search.saved(tmp_path, small_vae.fingerprint())


@pytest.fixture
def make_index(weights):
    """Index a folder with these weights."""

    def make(source: Path, output: Path, **settings) -> Indexed:
        return index_dataset(EncodeSettings(source=source, output=output, **settings), *weights)

    return make
