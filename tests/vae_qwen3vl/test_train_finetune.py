"""The training program: run folders that are never overwritten, logs by process, codes or fields, plain mistakes."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest
import torch

from sdf_vqvae.config import VAEConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.code_folder import CodeFolderWriter
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.train_finetune import main

pytest.importorskip("accelerate")
SMALL = {
    "architecture": "original",
    "resolution": 8,
    "model_channels": 16,
    "level_channels": [4, 8],
    "latent_channels": 4,
    "num_blocks": 1,
    "num_head_channels": 8,
    "num_embeddings": 32,
    "field": {"kind": "sdf", "unit": "band", "band": 3.0, "sampling": "center", "resolution": 32},
}
ROWS = [("train", "A red robot."), ("train", "A chair."), ("train", "Robot."), ("val", "A chair."), ("test", "One.")]


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
def codes(tmp_path: Path) -> Path:
    """A folder of cached codes with captions and splits."""
    torch.manual_seed(0)
    writer = CodeFolderWriter(tmp_path / "codes", SparseSDFVQVAE(VAEConfig.from_args(SMALL)))
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


def train(*arguments: str) -> int:
    return main([*arguments, "--device", "cpu", "--batch_size", "2", "--epochs", "1"])


def test_random_objects_make_a_run_and_a_second_one_beside_it(place: Path, vl: str, capsys) -> None:
    dummies = (
        "--dummy_data",
        "--dummy_samples",
        "12",
        "--vl_model",
        vl,
        "--max_3d_tokens",
        "150",
        "--output_dir",
        "out",
    )
    assert train(*dummies, "--use_lora") == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == Path("out/ep1_lr1e-4_bs2_nd12_lora8")
    assert {p.name for p in folder.iterdir()} >= {"projector_final.pt", "lora_final", "train_args.json", "log.jsonl"}
    assert AlignmentConfig.from_file(folder / "train_args.json").dummy_samples == 12
    first = (folder / "projector_final.pt").read_bytes()
    assert train(*dummies, "--use_lora") == 0
    assert Path(capsys.readouterr().out.strip()).name == "ep1_lr1e-4_bs2_nd12_lora8_2"
    assert (folder / "projector_final.pt").read_bytes() == first


def test_logs_lie_by_time_and_process_and_the_console_hides_debug(place: Path, vl: str, capsys) -> None:
    assert train("--dummy_data", "--dummy_samples", "4", "--vl_model", vl, "--max_3d_tokens", "120") == 0
    (log,) = (place / "logs").iterdir()
    assert log.name.startswith("train_")
    assert log.name.endswith("_rank0.log")
    logging.getLogger("vae_qwen3vl").warning("[DEBUG] a detail")
    assert "[DEBUG] a detail" in log.read_text(encoding="utf-8")
    assert "[DEBUG] a detail" not in capsys.readouterr().err


def test_cached_codes_train_without_a_tokenizer_on_their_split(place: Path, vl: str, codes: Path, capsys) -> None:
    assert train("--data_dir", str(codes), "--vl_model", vl, "--merge", "2") == 0
    folder = Path(capsys.readouterr().out.strip())
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert json.loads((folder / "result.json").read_text())["objects"] == 4  # three objects, batches of two
    assert [r["kind"] for r in records].count("val") == 1
    from vae_qwen3vl.code_folder import CodeFolder
    from vae_qwen3vl.projector_file import load_projector

    _, about = load_projector(folder / "projector_final.pt")
    assert about.vae_hash == CodeFolder(codes).manifest.vae_hash
    assert about.merge == 2


def test_a_stopped_run_goes_on_and_an_ended_one_does_not(place: Path, vl: str, capsys) -> None:
    command = ("--dummy_data", "--dummy_samples", "8", "--vl_model", vl, "--max_3d_tokens", "120", "--resume")
    assert train(*command) == 0
    folder = Path(capsys.readouterr().out.strip())
    (folder / "result.json").unlink()
    assert train(*command) == 0
    assert Path(capsys.readouterr().out.strip()) == folder
    assert train(*command) == 0
    assert Path(capsys.readouterr().out.strip()) != folder


def test_mistakes_are_one_line(place: Path, vl: str, codes: Path, capsys) -> None:
    assert train("--vl_model", vl) == 2
    assert "no data: give --data_dir, or --dummy_data" in capsys.readouterr().err
    assert train("--vl_model", vl, "--data_dir", "train_sdf_dataset") == 2
    err = capsys.readouterr().err
    assert "make one with: python dataset_toolkits/sdf_voxelize.py" in err
    assert len(err.strip().splitlines()[-1:]) == 1
    assert not Path("outputs_3d_vl").exists()
