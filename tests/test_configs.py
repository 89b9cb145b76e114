"""The configuration files: they load, build what they say, and keep the original system's values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdf_vqvae.config.architecture import VAEConfig, config_file, read_vae_document
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.config import AlignmentConfig

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


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_alignment_config_loads(path):
    config = AlignmentConfig.from_file(path)
    assert config.use_lora
    assert config.run_name().endswith(f"_lora{config.lora_r}")


@pytest.mark.parametrize("name", ["sdf_vqvae_stage1", "sdf_vqvae_stage2", "ct_vqvae_stage1", "ct_vqvae_stage2"])
def test_every_key_of_the_stages_arrives(name):
    """Whatever the file says is found again, under one name, in what the programs read."""
    path = FOLDER / "vae" / f"{name}.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    document = read_vae_document(path)
    for key, value in raw["models"]["vqvae"]["args"].items():
        assert key == "representation_config" or getattr(document.model, key) == value, key
    assert document.dataset.name == raw["dataset"]["name"]
    for key, value in raw["dataset"]["args"].items():
        assert getattr(document.dataset, key) == value, key
    trainer = document.trainer
    nested = {
        "optimizer": {"lr": trainer.lr, "weight_decay": trainer.weight_decay},
        "grad_clip": {"max_norm": trainer.grad_clip, "clip_percentile": trainer.clip_percentile},
    }
    for key, value in raw["trainer"]["args"].items():
        if key in nested:
            assert nested[key] == value["args"], key
        elif key == "lr_scheduler":
            base = value["args"]["base_scheduler"]["args"]
            assert trainer.warmup_steps == value["args"]["warmup_steps"]
            assert {"T_max": trainer.cosine_steps, "eta_min": trainer.lr_min} == base
        elif key == "ema_rate":
            assert list(trainer.ema_rate) == value
        elif key != "fp16_scale_growth":  # bf16 needs no loss scale
            assert getattr(trainer, key) == value, key


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        (
            ("models", "vqvae", "args"),
            {"num_block": 8},
            r"models\.vqvae\.args: unknown key 'num_block'; did you mean 'num_blocks",
        ),
        (("models", "vqvae", "args"), {"vq_group_size": 8}, "vq_group_size=8 is not supported"),
        (("models", "vqvae", "args"), {"use_fp16": True}, "use_fp16=True"),
        (("models", "vqvae", "args"), {"chunk_size": 4}, "chunk_size=4"),
        (("models", "vqvae", "args"), {"resolution": "64"}, "resolution must be an integer"),
        (("models", "vqvae", "args"), {"num_embeddings": 10**12}, "num_embeddings must be an integer .* at most"),
        (("models", "vqvae", "args"), {"vq_decay": float("nan")}, "vq_decay must be a number"),
        (("models", "vqvae", "args"), {"use_checkpoint": 1}, "use_checkpoint must be true or false"),
        (("models", "vqvae", "args"), {"model_channels_encoder": 256}, "differs between encoder and decoder"),
        (("models", "vqvae"), {"name": "SparseSDFVAE"}, "SparseSDFVQVAE"),
        (("models",), {"vae": {}}, "unknown key 'vae'; did you mean 'vqvae'"),
        ((), {"trainers": {}}, "unknown key 'trainers'; did you mean 'trainer'"),
        (("dataset",), {"name": "Sparse"}, "SparseSDF, CTWindowSparseSDF"),
        (("dataset", "args"), {"window_type": "lung"}, "belongs to CTWindowSparseSDF"),
        (("dataset", "args"), {"edge_margin": 0}, "edge_margin.*later versions"),
        (("dataset", "args"), {"min_points": -1}, "min_points must be an integer of at least 0"),
        (("trainer", "args"), {"lambda_sharp": 1.0}, "lambda_sharp.*no edge mask"),
        (("trainer", "args"), {"training_stage": 4}, "training_stage must be one of"),
        (("trainer", "args"), {"max_step": 4}, "did you mean 'max_steps'"),
        (("trainer", "args"), {"loss_type": "l3"}, "loss_type must be one of"),
        (("trainer", "args"), {"batch_split": 3}, "not a multiple of batch_split"),
        (("trainer", "args", "optimizer"), {"name": "SGD"}, "AdamW"),
        (("trainer", "args", "optimizer", "args"), {"betas": [0.9, 0.99]}, "unknown key 'betas'"),
        (("trainer", "args", "optimizer", "args"), {"lr": "fast"}, "lr must be a number"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(tmp_path, where, change, message):
    document = json.loads((FOLDER / "vae" / "sdf_vqvae_stage1.json").read_text(encoding="utf-8"))
    section = document
    for key in where:
        section = section[key]
    section.update(change)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_vae_document(path)
    assert "mine.json" in str(caught.value)


def test_the_spellings_of_the_originals_constructor_work():
    spelled = {"embed_dim": 8, "model_channels_encoder": 128, "model_channels_decoder": 128, "num_heads": None}
    config = VAEConfig.from_args({**spelled, "latents_scale": 1.0, "latents_shift": 0.0, "out_channels": 1})
    assert (config.latent_channels, config.model_channels, config.heads) == (8, 128, 2)


def test_the_alignment_config_reads_as_plain_values():
    yaml = pytest.importorskip("yaml")
    values = yaml.safe_load((FOLDER / "3d_align_train.yaml").read_text(encoding="utf-8"))
    assert values["vl_model"] == "smollm2-135m"  # runs on a fresh clone, as does the shipped tokenizer
    assert values["lr"] == 1e-4  # 1e-4 without a dot would be a string to YAML
    assert values["projector_layers"] == 3
    assert values["accelerate"]["downcast_bf16"] == "no"
    assert "vae_ckpt" not in values


def test_a_shipped_config_is_found_from_any_folder_by_its_documented_path(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    for path in VAE_FILES:
        for name in (f"configs/vae/{path.name}", f"./configs/vae/{path.name}", path.name):
            assert config_file(name).read_bytes() == path.read_bytes()
            assert f"there is no {name} here" in caplog.messages[-1]


def test_a_file_that_is_there_wins_over_a_shipped_config_of_its_name(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    Path("configs/vae").mkdir(parents=True)
    name = "configs/vae/sdf_vqvae_stage1.json"
    Path(name).write_text("{}")
    assert config_file(name) == Path(name)
    with pytest.raises(ValueError, match=r"there is no models\.vqvae\.args section"):
        VAEConfig.from_json(name)
    assert caplog.messages == []


@pytest.mark.parametrize("name", ["mine/sdf_vqvae_stage1.json", "configs/vae/own.json", "/sdf_vqvae_stage1.json"])
def test_another_path_is_never_taken_for_a_shipped_config(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        VAEConfig.from_json(name)
