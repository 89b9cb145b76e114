"""The tokenizers of this project are found by their configs."""

from __future__ import annotations

import pytest

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model import checkpoint
from sdf_vqvae.model.checkpoint import (
    DEFAULT,
    FINER,
    config_of,
    load_vae_from_config,
    save_vae,
    shipped_config,
    shipped_tokenizers,
)
from sdf_vqvae.model.vqvae import SparseSDFVQVAE


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An installation whose finer tokenizer lies, or is missing, in a temporary folder."""
    places = {**shipped_tokenizers(), FINER: tmp_path / FINER / "model.safetensors"}
    monkeypatch.setattr(checkpoint, "shipped_tokenizers", lambda: places)
    return places[FINER]


@pytest.mark.parametrize("name", [DEFAULT, FINER])
def test_shipped_weights_are_of_the_config_of_their_name(name):
    weights = shipped_tokenizers()[name]
    if not weights.is_file():
        pytest.skip(f"{name} has no weights yet")
    assert VAEConfig.from_json(weights.with_name("config.json")) == VAEConfig.from_json(f"configs/vae/{name}.json")


def test_a_config_alone_gets_the_weights_that_are_shipped_for_it(caplog):
    named = load_vae_from_config("configs/vae/sdf_vqvae_256.json", device="cpu")
    assert named.fingerprint() == load_vae_from_config(device="cpu").fingerprint()
    assert "random" not in caplog.text


def test_the_finer_tokenizer_is_found_by_its_config(elsewhere):
    vae = SparseSDFVQVAE(VAEConfig.from_json("configs/vae/sdf_vqvae_512.json"))
    save_vae(vae, elsewhere.parent)
    assert load_vae_from_config("configs/vae/sdf_vqvae_512.json", device="cpu").fingerprint() == vae.fingerprint()
    assert load_vae_from_config(device="cpu").config.data_resolution == 256  # the default stays


def test_a_tokenizer_whose_weights_are_missing_is_not_replaced_by_noise(elsewhere):
    with pytest.raises(ValueError, match=r"no weights of the tokenizer sdf_vqvae_512 \(.*\): give --vae_ckpt"):
        load_vae_from_config("configs/vae/sdf_vqvae_512.json", device="cpu")


def test_which_config_is_meant(elsewhere):
    save_vae(SparseSDFVQVAE(VAEConfig.from_json("configs/vae/sdf_vqvae_512.json")), elsewhere.parent)
    assert config_of() == shipped_config()
    assert config_of(None, elsewhere) == elsewhere.with_name("config.json")
    assert config_of("mine.json", elsewhere) == "mine.json"
