"""A small tokenizer's files, a projector and a head for its codes: random weights, so that nothing is slow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.utils.files import sha256_of
from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.projector_file import ProjectorDescription, save_projector
from vae_qwen3vl.search.head import SearchHead
from vae_qwen3vl.search.indexing import Indexed, index_dataset

WIDTH = 384
"""Of the sentence model's embeddings."""


@pytest.fixture
def weights(tmp_path: Path, small_vae) -> tuple[Path, Path]:
    """A projector for the small tokenizer, and a search head for it."""
    torch.manual_seed(1)
    projector = Projector3D(latent_dim=4, hidden_size=32, num_layers=2, merge=2, shape_tokens=1)
    description = ProjectorDescription(
        latent_dim=4, hidden_size=32, num_layers=2, merge=2, shape_tokens=1, vae_hash=small_vae.fingerprint()
    )
    file, head = tmp_path / "projector.safetensors", tmp_path / "head.safetensors"
    save_projector(file, projector, description)
    made = SearchHead(
        weight=torch.randn(WIDTH, 2 * 32 + 8**3) / 8,
        bias=torch.zeros(WIDTH),
        projector_hash=sha256_of(file),
        sentence_model="all-minilm-l6-v2",
        trained_on="nothing",
    )
    made.save(head)
    return file, head


@pytest.fixture
def make_index(weights):
    """Index a folder with these weights."""

    def make(source: Path, output: Path, **settings) -> Indexed:
        return index_dataset(EncodeSettings(source=source, output=output, **settings), *weights)

    return make
