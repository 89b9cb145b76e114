"""What weights learned from is not what they are evaluated on, and no answer speaks for the object it belongs to."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from sdf_vqvae.codes.folder import CodeFolderWriter
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.eval_3d_vl import main
from vae_qwen3vl.evaluation.controls import TYPICAL, TYPICAL_OF_OTHERS
from vae_qwen3vl.language.adapters import read_adapter_config
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.train_finetune import main as train
from vae_qwen3vl.trained_parts import NO_LORA
from vae_qwen3vl.training.learned_objects import learned_from
from vae_qwen3vl.training.run_data import alignment_data, cached_codes

pytest.importorskip("nltk")
pytest.importorskip("accelerate")
COUNT = 40


@pytest.fixture
def many(tmp_path: Path, small_vae) -> Path:
    """Cached codes of forty objects without splits, each with a caption of its own."""
    writer = CodeFolderWriter(tmp_path / "many", small_vae)
    for number in range(COUNT):
        cells = torch.randperm(8**3)[: 8 + number % 5].sort().values
        coords = torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1).short()
        writer.add(f"o{number:02d}", torch.randint(0, 32, (len(cells),), dtype=torch.int32), coords)
    writer.flush()
    write_table(tmp_path / "many", [""] * COUNT)
    return tmp_path / "many"


def write_table(folder: Path, splits: list[str]) -> None:
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["sha256", "captions", "split"])
        table.writerows([f"o{n:02d}", f"robot number {n}.", split] for n, split in enumerate(splits))


def trained(codes: Path, vl: str, capsys, *more: str) -> Path:
    told = ("--data_dir", str(codes), "--vl_model", vl, "--device", "cpu", "--epochs", "1", "--output_dir", "runs")
    assert train([*told, *more]) == 0
    return Path(capsys.readouterr().out.strip())


def evaluated(*arguments: str) -> tuple[list[str], dict]:
    """Evaluate, and return ids and summary."""
    quick = ("--device", "cpu", "--max_new_tokens", "1", "--max_eval_samples", "0", "--batch_size", "64")
    assert main([*arguments, *quick, "--measures", "captions", "--output_dir", "out"]) == 0
    lines = Path("out/eval_results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["sample_id"] for line in lines], json.loads(Path("out/eval_summary.json").read_text())


def test_what_a_run_learned_from_is_evaluated_only_when_asked_for(place: Path, vl: str, many: Path, capsys) -> None:
    run = trained(many, vl, capsys, "--max_samples", "4")
    assert json.loads((run / "objects.json").read_text()) == {"train": ["o00", "o01", "o02", "o03"], "val": []}
    weights = ("--data_dir", str(many), "--vl_model", vl, "--projector_ckpt", str(run / "projector_final.pt"))
    ids, summary = evaluated(*weights)
    assert ids == [f"o{n:02d}" for n in range(4, COUNT)]
    assert summary["trained_on"] == 0
    assert str(run / "objects.json") in summary["settings"]["learned_from"]
    assert TYPICAL in summary["captions"]["rows"]  # of the four that were learned from
    ids, summary = evaluated(*weights, "--split", "train")
    assert ids == ["o00", "o01", "o02", "o03"]
    assert summary["trained_on"] == 4
    assert TYPICAL_OF_OTHERS in summary["captions"]["rows"]
    assert "4 of them TRAINED ON" in capsys.readouterr().out
    (run / "objects.json").unlink()  # as a run of an earlier version left it
    ids, summary = evaluated(*weights)
    assert ids == [f"o{n:02d}" for n in range(4, COUNT)]
    assert "has no objects.json" in summary["settings"]["learned_from"]


def test_what_the_weights_before_learned_from_counts_too(place: Path, vl: str, many: Path, capsys) -> None:
    first = trained(many, vl, capsys, "--max_samples", "20", "--use_lora", "--lora_r", "3")
    objects = json.loads((first / "objects.json").read_text())
    assert (len(objects["train"]), len(objects["val"])) == (18, 2)
    start = ("--init_projector", str(first / "projector_final.pt"), "--init_lora", str(first / "lora_final"))
    second = trained(many, vl, capsys, "--max_samples", "5", "--use_lora", "--lora_dropout", "0.25", *start)
    assert second.name == "ep1_lr1e-4_bs2_n5_lora3"  # as the adapters are, not as the default says
    assert json.loads((second / "train_args.json").read_text())["lora_r"] == 3
    assert read_adapter_config(second / "lora_final").lora_dropout == 0.25
    found = learned_from([second / "projector_final.pt", second / "lora_final"], 256)
    assert found.train == set(objects["train"]) | {f"o{n:02d}" for n in range(5)}
    assert found.source is not None and str(first) in found.source
    shutil.copy(first / "projector_final.pt", "moved.pt")
    assert learned_from(["moved.pt"], 256).source is None


@pytest.mark.parametrize(("splits", "val"), [(["train", "test"], 2), (["train", "test", "val"], 13)])
def test_a_run_learns_from_the_split_train_alone(many: Path, tokenizer, splits: list[str], val: int) -> None:
    write_table(many, [splits[n % len(splits)] for n in range(COUNT)])
    config = AlignmentConfig(data_dir=str(many))
    data = alignment_data(config, Processor3D(tokenizer), cached_codes(config), latent_dim=8)
    assert all(int(name[1:]) % len(splits) == 0 for name in data.names)
    assert len(data.names) == len(data.train) == len(data.lengths)
    assert len(data.val_names) == len(data.val) == val
    assert not set(data.names) & set(data.val_names)
    write_table(many, ["test"] * COUNT)
    with pytest.raises(ValueError, match="a column split with test, but no object of the split train"):
        alignment_data(config, Processor3D(tokenizer), cached_codes(config), latent_dim=8)


def test_evaluation_right_after_training_takes_the_run_that_was_made(
    place: Path, vl: str, many: Path, capsys, caplog
) -> None:
    settings = {"vl_model": vl, "data_dir": str(many), "output_dir": "runs", "output_run": "auto", "epochs": 1}
    Path("c.yaml").write_text(json.dumps(settings | {"max_samples": 4}))
    assert main(["--config", "c.yaml", "--device", "cpu"]) == 2
    assert "there is no ended run in runs (there is none); train first" in capsys.readouterr().err
    assert train(["--config", "c.yaml", "--device", "cpu"]) == 0
    first = capsys.readouterr().out.strip()
    assert train(["--config", "c.yaml", "--device", "cpu", "--max_samples", "5"]) == 0
    other = capsys.readouterr().out.strip()
    caplog.set_level(logging.INFO)
    assert evaluated("--config", "c.yaml")[1]["settings"]["run"] == first
    assert f"evaluated is the latest run of these settings: {first}" in caplog.text
    shutil.rmtree(first)
    for empty in ('""', "null"):
        Path("c.yaml").write_text(Path("c.yaml").read_text().replace('"auto"', empty))
        assert evaluated("--config", "c.yaml")[1]["settings"]["run"] == other
    assert f"no run has these settings; evaluated is the latest, {other}: max_samples 5 (not 4)" in caplog.text


def test_an_adapter_goes_with_the_projector_that_it_was_trained_with(
    place: Path, vl: str, many: Path, capsys, caplog
) -> None:
    run = trained(many, vl, capsys, "--max_samples", "4", "--use_lora", "--projector_share", "0", "--lora_lr", "0.1")

    def weight(projector: Path, lora: str | None) -> torch.Tensor:
        layers = load_describer(None, vl, projector, lora, device="cpu").vl_model.state_dict()
        return next(value for name, value in layers.items() if name.endswith("layers.0.self_attn.q_proj.weight"))

    projector = run / "projector_final.pt"
    caplog.set_level(logging.INFO)
    beside, named, without = (weight(projector, lora) for lora in (None, str(run / "lora_final"), NO_LORA))
    assert torch.equal(beside, named)
    assert not torch.equal(beside, without)
    assert f"{run / 'lora_final'} was trained with it and is used (--lora_dir none leaves it out)" in caplog.text
    shutil.copy(projector, "moved.pt")
    for alone in (Path("moved.pt"), projector):
        with pytest.raises(ValueError, match="was trained with a LoRA adapter, which does not lie beside it"):
            weight(alone, None)
        assert torch.equal(weight(alone, NO_LORA), without)
        shutil.rmtree(run / "lora_final", ignore_errors=True)


def test_one_line_starts_from_the_shipped_weights_in_their_shape(repository: Path) -> None:
    from vae_qwen3vl.training.starting_model import parts_to_start_from, settled

    text = (repository / "configs" / "3d_align_train.yaml").read_text(encoding="utf-8")
    config = AlignmentConfig.from_file(repository / "configs" / "3d_align_train.yaml")
    assert (config.start_from, parts_to_start_from(config)) == ("new", (None, None))
    assert settled(config) == config
    assert "start_from: new\n" in text
    shipped = settled(AlignmentConfig(**{**config.to_dict(), "start_from": "shipped"}))
    weights = repository / "vae_qwen3vl" / "weights"
    assert parts_to_start_from(shipped) == (str(weights / "projector.safetensors"), str(weights / "lora"))
    assert (shipped.projector_layers, shipped.use_3d_pos, shipped.shape_tokens) == (2, False, 2)
    assert shipped.run_name() == f"ep2_lr1e-4_bs4_n5000_lora{read_adapter_config(weights / 'lora').r}"
    with pytest.raises(ValueError, match="start_from shipped names an init_projector"):
        AlignmentConfig(start_from="shipped", init_projector="p.pt")
