"""Small models whose projector reads codes one by one, their exports, and objects."""

from __future__ import annotations

import pytest
import torch

import tiny_models
from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.export.exported import PlainExport, export_model
from vae_qwen3vl.export.gguf_file import QWEN_WORDS
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D


@pytest.fixture(autouse=True, scope="package")
def _needs_gguf():
    pytest.importorskip("gguf")


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def family(request) -> str:
    return request.param


@pytest.fixture
def vl_model(family, make_vl):
    """A Qwen3-VL, a Qwen2-VL, or one without biases, which is a Llama, as the default language model is."""
    model = make_vl("qwen3_vl" if family == "qwen3" else "qwen2_vl")
    for name, parameter in model.named_parameters():
        if family == "qwen2" and name.endswith("_proj.bias"):
            parameter.data.normal_(std=0.5)
    return model


@pytest.fixture
def tokenizer(family):
    """The small tokenizer; of a Qwen2 it splits text as Qwen's, for transformers takes any for that."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer = tiny_models.build_tokenizer()
    if family == "qwen2":
        words = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


@pytest.fixture
def processor(tokenizer) -> Processor3D:
    return Processor3D(tokenizer)


@pytest.fixture
def branch(build, small_vae):
    """Make a model on `small_vae`; one that a vocabulary can hold if nothing else is said."""

    def make(**settings) -> Qwen3VLWith3DBranch:
        model = build(small_vae, **{"merge": 1, "positions": "sequential", "max_3d_tokens": 300, **settings})
        model.projector.output_gain.data.normal_(std=0.3)
        return model

    return make


@pytest.fixture
def shape(small_vae):
    """Make an object of so many codes, always the same."""

    def make(codes: int = 30, seed: int = 0) -> ShapeCodes:
        generator = torch.Generator().manual_seed(seed)
        cells = torch.randperm(8**3, generator=generator)[:codes].sort().values
        return ShapeCodes(
            codes=torch.randint(0, 32, (codes,), generator=generator, dtype=torch.int32),
            coords=torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1).int(),
            latent_resolution=8,
            data_resolution=32,
            center=(0.0, 0.0, 0.0),
            scale=1.0,
            vae_hash=small_vae.fingerprint(),
        )

    return make


@pytest.fixture
def export(tmp_path, tokenizer):
    """Export a model, and open what was written."""

    def run(model, **settings) -> PlainExport:
        export_model(model, tokenizer, tmp_path / "plain", **settings)
        return PlainExport(tmp_path / "plain", model.vae_model)

    return run
