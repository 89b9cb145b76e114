"""The configuration files: they load, build what they say, and keep the original system's values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdf_vqvae.config import VAEConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE

FOLDER = Path(__file__).resolve().parents[1] / "configs"
VAE_FILES = sorted((FOLDER / "vae").glob("*.json"))


@pytest.mark.parametrize("path", VAE_FILES, ids=lambda path: path.stem)
def test_every_vae_config_loads_and_builds(path):
    config = VAEConfig.from_json(path)
    with torch.device("meta"):
        vae = SparseSDFVQVAE(config)
    assert vae.vq.embeddings.weight.shape == (config.num_embeddings, config.latent_channels)
    assert config.data_resolution == config.field.resolution


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("sdf_vqvae_stage1", 63_207_873), ("ct_vqvae_stage2", 63_207_873), ("direct3d_s2_512", 37_874_113 + 8192 * 16)],
)
def test_parameter_counts_are_those_of_the_original(name, parameters):
    with torch.device("meta"):
        vae = SparseSDFVQVAE(VAEConfig.from_json(FOLDER / "vae" / f"{name}.json"))
    assert sum(p.numel() for p in vae.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "stage", "ema", "batch", "dataset", "points", "lr"),
    [
        ("sdf_vqvae_stage1", 1, False, 8, "SparseSDF", 500_000, 1e-3),
        ("sdf_vqvae_stage2", 2, True, 16, "SparseSDF", 1_000_000, 1e-4),
        ("ct_vqvae_stage1", 1, False, 2, "SparseSDF", 250_000, 1e-3),
        ("ct_vqvae_stage2", 2, True, 16, "CTWindowSparseSDF", 500_000, 1e-4),
    ],
)
def test_the_stages_keep_their_values(name, stage, ema, batch, dataset, points, lr):
    document = json.loads((FOLDER / "vae" / f"{name}.json").read_text(encoding="utf-8"))
    model, data, trainer = (document[key] for key in ("models", "dataset", "trainer"))
    assert model["vqvae"]["args"]["use_ema_update"] is ema
    assert data["name"] == dataset
    assert data["args"]["max_points"] == points
    assert trainer["args"]["training_stage"] == stage
    assert trainer["args"]["batch_size_per_gpu"] == batch
    assert trainer["args"]["optimizer"]["args"]["lr"] == lr


def test_the_alignment_config_reads_as_plain_values():
    yaml = pytest.importorskip("yaml")
    values = yaml.safe_load((FOLDER / "3d_align_train.yaml").read_text(encoding="utf-8"))
    assert values["vl_model"] == "Qwen/Qwen2-VL-2B-Instruct"
    assert values["lr"] == 1e-4  # 1e-4 without a dot would be a string to YAML
    assert values["projector_layers"] == 3
    assert values["accelerate"]["downcast_bf16"] == "no"
    assert Path(values["vae_config"]).parent == Path("configs/vae")
