"""A generator learns from codes with captions, goes on where it stopped, and makes the objects it was shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.training.checkpoints import checkpoint_steps, path_of
from sdf_vqvae.utils.archives import read_safetensors
from vae_qwen3vl.creation.generator_file import load_generator
from vae_qwen3vl.training.generator_config import GeneratorTraining
from vae_qwen3vl.training.generator_data import generator_data
from vae_qwen3vl.training.generator_trainer import GeneratorTrainer, new_generator

SMALL = {
    "width": 24,
    "heads": 4,
    "where_blocks": 1,
    "what_blocks": 1,
    "batch_size": 3,
    "val_every": 4,
    "log_every": 1,
}
WORDS = 6


def settings(codes: Path, folder: Path, **more: object) -> GeneratorTraining:
    return GeneratorTraining(data_dir=str(codes), output_dir=str(folder), **{**SMALL, **more})


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True)


def trainer(config: GeneratorTraining, accelerator) -> GeneratorTrainer:
    """Return a trainer whose words are random vectors: the sentence model is tested elsewhere."""
    data = generator_data(config)
    generator = torch.Generator().manual_seed(0)
    words = {caption: torch.randn(3, WORDS, generator=generator).half() for caption in data.captions}
    torch.manual_seed(config.seed)
    return GeneratorTrainer(new_generator(config, data, WORDS), config, data, words, accelerator)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    step = checkpoint_steps(folder)[-1]
    files = ("model.safetensors", "average_0.safetensors", "optimizer.safetensors")
    parts = [read_safetensors(path_of(folder, step) / name, "checkpoint")[0] for name in files]
    return {f"{number}/{name}": tensor for number, part in enumerate(parts) for name, tensor in part.items()}


def test_a_run_that_was_stopped_ends_as_one_that_was_not(codes, accelerator, tmp_path, monkeypatch):
    whole = trainer(settings(codes, tmp_path / "whole", epochs=4), accelerator)
    whole.run()
    parts = trainer(settings(codes, tmp_path / "parts", epochs=4), accelerator)
    step = parts.step

    def stop_after_three(*arguments):
        losses = step(*arguments)
        parts.stopping.received = 15 if parts.step_number == 3 else 0
        return losses

    monkeypatch.setattr(parts, "step", stop_after_three)
    parts.run()
    assert parts.stopping.signal == 15
    assert parts.step_number == 3
    assert not (tmp_path / "parts" / "result.json").exists()
    rest = trainer(settings(codes, tmp_path / "parts", epochs=4, resume=True), accelerator)
    rest.run()
    assert rest.step_number == whole.step_number
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["steps"] == whole.step_number


def test_the_run_folder_holds_a_generator_that_computes_what_was_trained(codes, accelerator, tmp_path):
    made = trainer(settings(codes, tmp_path / "run", epochs=2), accelerator)
    made.run()
    folder = CodeFolder(codes)
    generator, about = load_generator(tmp_path / "run", folder.codebook, folder.manifest.vae_hash)
    assert about.sentence_model == "all-minilm-l6-v2"
    for name, tensor in made.averaged.state_dict().items():
        found = generator.state_dict()[name]
        assert (found - tensor).abs().max() <= tensor.abs().max() / 100 + 1e-4  # int8 rows
    with pytest.raises(ValueError, match="this one is otherhash"):
        load_generator(tmp_path / "run", folder.codebook, "otherhash")
    with pytest.raises(ValueError, match="codebook"):
        load_generator(tmp_path / "run", folder.codebook[:5], folder.manifest.vae_hash)


def test_a_folder_that_holds_a_run_is_neither_overwritten_nor_gone_on_with_otherwise(codes, accelerator, tmp_path):
    with pytest.raises(ValueError, match="no run with a checkpoint"):
        trainer(settings(codes, tmp_path / "run", resume=True), accelerator)
    trainer(settings(codes, tmp_path / "run", epochs=1), accelerator).run()
    with pytest.raises(ValueError, match="holds a run"):
        trainer(settings(codes, tmp_path / "run", epochs=1), accelerator)
    with pytest.raises(ValueError, match=r"other settings: lr 0.0005 -> 0.1"):
        trainer(settings(codes, tmp_path / "run", epochs=1, lr=0.1, resume=True), accelerator)


def test_data_without_captions_or_codes_is_refused(codes, tmp_path):
    with pytest.raises(ValueError, match="no folder of codes"):
        generator_data(settings(tmp_path, tmp_path / "run"))
    table = codes / "metadata.csv"
    table.unlink()
    with pytest.raises(ValueError, match="caption"):
        generator_data(settings(codes, tmp_path / "run"))


def test_settings_come_from_a_file_and_flags_win(tmp_path, repository):
    file = tmp_path / "generator.yaml"
    file.write_text("data_dir: codes\nepochs: 7\nlr: 1.0e-3\n")
    config = GeneratorTraining.of(file, {"epochs": 9})
    assert (config.data_dir, config.epochs, config.lr) == ("codes", 9, 1e-3)
    file.write_text("data_dir: codes\nepoch: 7\n")
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        GeneratorTraining.of(file, {})
    with pytest.raises(ValueError, match="no data"):
        GeneratorTraining.of(None, {})
    shipped = GeneratorTraining.of(repository / "configs" / "creation" / "generator.yaml", {})
    assert shipped.decisive() == GeneratorTraining(data_dir="codes", max_seconds=3600).decisive()
