"""A projector and a search head of random weights, for the codes of a small tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch

from sdf_vqvae.utils.files import sha256_of
from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.projector_file import ProjectorDescription, save_projector
from vae_qwen3vl.search.head import SearchHead

WIDTH = 384
"""Of the sentence model's embeddings."""


def saved(folder: Path, vae_hash: str) -> tuple[Path, Path]:
    """Write both for a tokenizer with this hash, and return their files."""
    torch.manual_seed(1)
    projector = Projector3D(latent_dim=4, hidden_size=32, num_layers=2, merge=2, shape_tokens=1)
    description = ProjectorDescription(
        latent_dim=4, hidden_size=32, num_layers=2, merge=2, shape_tokens=1, vae_hash=vae_hash
    )
    file, head = folder / "projector.safetensors", folder / "head.safetensors"
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
