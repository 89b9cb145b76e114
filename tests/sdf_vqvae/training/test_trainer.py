"""Training lowers the loss, goes on exactly where it stopped, and does what its stages say."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_tokenizer as tiny
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.model.checkpoint import load_vae_from_config, save_vae
from sdf_vqvae.training.checkpoints import checkpoint_steps
from sdf_vqvae.training.held_out import measure_held_out
from sdf_vqvae.training.start import start_model
from sdf_vqvae.training.streams import Field
from sdf_vqvae.training.thin_shapes import part
from sdf_vqvae.training.trainer import TokenizerTrainer


class Spheres:
    """Spheres of seeded radii, one after another."""

    learn = None

    def __init__(self) -> None:
        self.drawn = 0

    @property
    def epoch(self) -> float:
        return self.drawn / 10

    def draw(self, count: int) -> list[Field]:
        found = [tiny.field(10.0 + (3 * (self.drawn + i)) % 7) for i in range(count)]
        self.drawn += count
        return found

    def state(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def restore(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]


def settings_of(**more: Any) -> TrainerConfig:
    values = {
        "max_steps": 30,
        "batch_size_per_gpu": 2,
        "lr": 3e-3,
        "warmup_steps": 3,
        "ema_rate": (0.9,),
        "grad_clip": 1.0,
        "bypass_share": 0.2,
        "i_log": 1,
        "held_out": 1,
    }
    return TrainerConfig(**{**values, **more})


def trainer_of(folder: Path, config: TrainerConfig, **more: Any) -> TokenizerTrainer:
    torch.manual_seed(0)
    vae = more.pop("vae", None) or tiny.vae()
    torch.manual_seed(1)
    return TokenizerTrainer(vae, config, Spheres(), folder=folder, **more)


def weights_of(trainer: TokenizerTrainer) -> dict[str, torch.Tensor]:
    averages = {f"average.{k}": v for k, v in trainer.averages[0].module.state_dict().items()}
    return {**trainer.vae.state_dict(), **averages}


@pytest.mark.parametrize("args", [{}, tiny.PATCHES, {"architecture": "original"}], ids=["residual", "4", "original"])
def test_a_short_training_lowers_the_loss_and_leaves_loadable_weights(tmp_path: Path, args: dict[str, Any]) -> None:
    trainer = trainer_of(tmp_path, settings_of(max_steps=40), held_out=[tiny.field(12.0)], vae=tiny.vae(**args))
    records = [r for r in trainer.run() if r["kind"] == "train"]
    # Each step is one sphere of another size, so a single one tells little.
    assert min(r["loss"] for r in records[-8:]) < 0.75 * records[0]["loss"]
    assert records[-1]["perplexity"] > 1
    again = load_vae_from_config(vae_ckpt=tmp_path / "model.safetensors", device="cpu")
    assert len(again.Encode(tiny.batch(12.0))) > 0
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert kinds.count("train") == 40
    assert kinds.count("held_out") == 1
    assert list((tmp_path / "pictures").glob("*.png"))


SECOND = {"quantizer": "residual", "second_codes": 8, "second_share": 0.2}


def test_the_log_tells_how_many_cells_have_a_second_code(tmp_path: Path) -> None:
    config = settings_of(max_steps=12)
    trainer = trainer_of(tmp_path, config, held_out=[tiny.field(12.0)], vae=tiny.vae(**SECOND))
    records = trainer.run()
    shares = [r["second_share"] for r in records if r["kind"] == "train" and "second_share" in r]
    assert shares[0] == 0 < shares[-1] < 1
    assert records[-1]["kind"] == "held_out"
    assert 0 <= records[-1]["second_share"] <= 1


def test_two_codes_a_cell_start_from_weights_of_one(tmp_path: Path) -> None:
    save_vae(tiny.vae(), tmp_path / "plain")
    weights = tmp_path / "plain" / "model.safetensors"
    plain = load_vae_from_config(vae_ckpt=weights, device="cpu")
    config = settings_of(pretrained_vae_path=str(weights), pretrained_inner=True, bypass_share=0.0, max_steps=6)
    vae, has_codebook = start_model(VAEConfig.from_args(tiny.args(**SECOND)), config, 0)
    expected, codes = plain.Encode(tiny.batch(12.0)), vae.eval().Encode(tiny.batch(12.0))
    assert has_codebook
    assert torch.equal(codes.feats[:, :1], expected.feats)
    assert torch.equal(vae.Decode(codes).feats, plain.Decode(expected).feats)
    records = trainer_of(tmp_path / "run", config, vae=vae, has_codebook=has_codebook).run()
    assert records[0]["second_share"] == 0 < records[-1]["second_share"]
    again = load_vae_from_config(vae_ckpt=tmp_path / "run" / "model.safetensors", device="cpu")
    assert again.vq.second_from > 0


@pytest.mark.parametrize(
    ("stop", "optimizer", "args"),
    [(3, "AdamW", {}), (11, "AdamW", {}), (11, "Muon", {}), (7, "AdamW", {**SECOND, "second_codes": 32})],
)
def test_a_run_in_two_parts_equals_a_run_in_one(
    tmp_path: Path, stop: int, optimizer: str, args: dict[str, Any]
) -> None:
    """Before the codebook is placed (step 3) and after it (step 11), and while second codes wait for vectors (7)."""
    config = partial(settings_of, max_steps=14, bypass_share=0.4, optimizer=optimizer)
    whole = trainer_of(tmp_path / "whole", config(), vae=tiny.vae(**args))
    whole.run()

    class Killed(Exception):
        pass

    first = trainer_of(tmp_path / "parts", config(i_save=stop), vae=tiny.vae(**args))
    save = first.save

    def save_and_die() -> None:
        save()
        if first.step_number == stop:
            raise Killed

    first.save = save_and_die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        first.run()
    second = trainer_of(tmp_path / "parts", config(), vae=tiny.vae(**args))
    torch.manual_seed(77)  # the checkpoint's generator must win
    second.run()
    expected, found = weights_of(whole), weights_of(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 15))


def test_the_stream_is_told_the_error_of_every_object(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, settings_of(batch_size_per_gpu=4, batch_split=2, max_steps=2, thin_weight=2.0))
    told: list[list[float]] = []
    trainer.stream.learn = lambda errors: told.append(list(errors))  # type: ignore[misc, method-assign]
    trainer.run()
    assert [len(errors) for errors in told] == [4, 4]
    assert all(0.01 < error < 2 for errors in told for error in errors)


def test_held_out_measures_tell_of_thin_and_small_objects(tmp_path: Path) -> None:
    plate = part((0, 0, 0), (1 / 64, 0.3, 0.3)).field(tiny.SIDE)
    fields = [tiny.field(20.0), tiny.field(8.0), plate]
    vae = tiny.vae().eval()
    config = settings_of(surface_weight=1.0)
    measures = measure_held_out(vae, fields, config, quantizing=True)
    small = measure_held_out(vae, fields[1:2], config, quantizing=True)
    assert measures["l1_near_small"] == pytest.approx(small["l1_near"])
    assert measures["l1_near_small"] == pytest.approx(small["l1_near_small"])
    thin = measure_held_out(vae, fields[2:], config, quantizing=True)
    assert measures["wrong_sign_thin"] == pytest.approx(thin["wrong_sign_thin"])
    assert measures["surface"] > 0
    weighed = measure_held_out(vae, fields, settings_of(thin_weight=3.0), quantizing=True)
    assert weighed["l1"] != pytest.approx(measures["l1"])
    for name in ("surface", "l1_near", "wrong_sign", "l1_near_thin", "wrong_sign_small"):
        assert weighed[name] == pytest.approx(measures[name])
    assert "l1_near_thin" not in measure_held_out(vae, fields[:1], config, quantizing=True)


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    trainer_of(tmp_path, settings_of(max_steps=1), settings={"seed": 0}).run()
    with pytest.raises(ValueError, match=r"other settings \(seed 0 -> 1\)"):
        trainer_of(tmp_path, settings_of(max_steps=2), settings={"seed": 1}).run()


def test_old_checkpoints_go(tmp_path: Path) -> None:
    trainer_of(tmp_path, settings_of(max_steps=5, i_save=1, keep_checkpoints=2)).run()
    assert checkpoint_steps(tmp_path) == [4, 5]


@pytest.mark.parametrize(("stage", "moved"), [(1, {"vq"}), (3, {"decoder"})])
def test_a_stage_trains_its_part_alone(tmp_path: Path, stage: int, moved: set[str]) -> None:
    vae = tiny.vae()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    trainer_of(tmp_path, settings_of(training_stage=stage, max_steps=4), vae=vae, has_codebook=stage == 3).run()
    after = vae.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == moved


def test_split_batches_give_the_gradient_of_the_whole(tmp_path: Path) -> None:
    """Of objects of one size, whose losses weigh the same."""
    norms = []
    for split in (1, 2):
        trainer = trainer_of(tmp_path / str(split), settings_of(batch_split=split, bypass_share=1.0))
        trainer.stream.draw = lambda count: [tiny.field(12.0)] * count  # type: ignore[method-assign]
        trainer._modes()
        norms.append(float(trainer.step(0.0)["grad_norm"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_gradients_that_are_not_finite_change_nothing(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, settings_of())
    trainer._modes()
    trainer.vae.decoder.out_layer.weight.register_hook(lambda grad: grad * float("nan"))
    before = trainer.vae.decoder.out_layer.weight.clone()
    trainer.step(0.0)
    assert trainer.skipped == 1
    assert torch.equal(before, trainer.vae.decoder.out_layer.weight)


def test_the_learning_rate_warms_up_and_follows_the_cosine(tmp_path: Path) -> None:
    config = settings_of(lr=1.0, lr_min=0.1, warmup_steps=10, cosine_over_run=True)
    trainer = trainer_of(tmp_path, config)
    assert trainer.learning_rate(0.0) == pytest.approx(0.1)
    trainer.step_number = 100
    assert trainer.learning_rate(0.5) == pytest.approx(0.55)
    assert trainer.learning_rate(1.0) == pytest.approx(0.1)


def test_weights_as_int8_give_nearly_the_same_field(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", settings_of(max_steps=20))
    trainer.run()
    vae = trainer.vae.eval()
    save_vae(vae, tmp_path / "small", torch.int8)
    small = load_vae_from_config(vae_ckpt=tmp_path / "small" / "model.safetensors", device="cpu")
    with torch.no_grad():
        a, b = (v.encode_latent(tiny.batch(12.0)).feats for v in (vae, small))
    assert float((a - b).norm() / a.norm()) < 0.05
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("run", "small")]
    assert sizes[1] < 0.35 * sizes[0]
