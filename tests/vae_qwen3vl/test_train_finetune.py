"""The training program: run folders that are never overwritten, logs by process, codes or fields, plain mistakes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.train_finetune import main

pytest.importorskip("accelerate")


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


def test_an_epoch_takes_so_many_objects_of_a_limited_source(place: Path, vl: str, codes: Path, capsys) -> None:
    command = ("--data_dir", str(codes), "--vl_model", vl, "--merge", "2", "--batch_size", "1")
    assert train(*command, "--epoch_limits", "ldraw") == 2
    assert "epoch_limits must be SOURCE=N, such as ldraw=2000, got 'ldraw'" in capsys.readouterr().err
    assert train(*command, "--epoch_limits", "ldraw=1") == 2
    assert "no object is of the source 'ldraw' (the table has no column source)" in capsys.readouterr().err
    assert train(*command, "--epoch_limits", "ldraw=1,ldraw=2") == 2
    assert "epoch_limits names 'ldraw' twice" in capsys.readouterr().err
    table = codes / "metadata.csv"
    head, *rows = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([f"{head},source", *(f"{row},ldraw" for row in rows)]) + "\n", encoding="utf-8")
    assert main([*command, "--device", "cpu", "--epochs", "2", "--epoch_limits", "ldraw=1"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert json.loads((folder / "result.json").read_text())["objects"] == 2  # one of three objects in each epoch


def test_a_run_starts_from_the_parts_of_an_earlier_one(place: Path, vl: str, codes: Path, capsys) -> None:
    from safetensors.torch import load_file

    from vae_qwen3vl.projector_file import load_projector

    def parts(folder: Path) -> dict[str, torch.Tensor]:
        adapter = load_file(folder / "lora_final" / "adapter_model.safetensors")
        return {**load_projector(folder / "projector_final.pt")[0].state_dict(), **adapter}

    common = ("--data_dir", str(codes), "--vl_model", vl, "--merge", "2", "--use_lora", "--projector_share", "0")
    assert train(*common, "--lr", "1e-2", "--lora_lr", "1e-2") == 0
    first = Path(capsys.readouterr().out.strip())
    start = ("--init_projector", str(first / "projector_final.pt"), "--init_lora", str(first / "lora_final"))
    assert train(*common, *start, "--lr", "1e-9", "--lora_lr", "1e-9", "--max_3d_tokens", "64") == 0
    second = Path(capsys.readouterr().out.strip())
    assert second != first
    before, after = parts(first), parts(second)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0, msg=name)
    assert load_projector(second / "projector_final.pt")[1].max_3d_tokens == 64
    assert train(*common, *start, "--shape_tokens", "2", "--lr", "1e-9", "--lora_lr", "1e-9") == 0
    whole = Path(capsys.readouterr().out.strip())
    grown = parts(whole)
    assert {name for name in grown if name not in before} == {
        f"shape.{n}.{p}" for n in (0, 2) for p in ("weight", "bias")
    }
    assert all(torch.allclose(grown[name], value, atol=1e-5) for name, value in before.items())
    assert train(*common, "--init_projector", str(whole / "projector_final.pt")) == 2
    assert "has shape_tokens 2, the settings say 0; give --shape_tokens 2" in capsys.readouterr().err
    assert train(*common[:4], "--merge", "4", *start[:2]) == 2
    assert "has merge 2, the settings say 4; give --merge 2" in capsys.readouterr().err
    assert train(*common[:-3], "--init_lora", str(first / "lora_final")) == 2
    assert "init_lora needs use_lora" in capsys.readouterr().err
    assert train(*common, *start, "--lr", "1e-1", "--lora_lr", "1e-1") == 0
    moved = parts(Path(capsys.readouterr().out.strip()))
    assert all(not torch.equal(moved[name], value) for name, value in before.items() if value.ndim > 1)
    assert train(*common, "--init_lora", "nowhere") == 2
    assert "init_lora: there is no folder nowhere" in capsys.readouterr().err


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
    assert "there is no folder train_sdf_dataset; make one with" in capsys.readouterr().err
    assert train("--vl_model", vl, "--data_dir", "train_sdf_dataset") == 2
    err = capsys.readouterr().err
    assert "make one with: python dataset_toolkits/sdf_voxelize.py" in err
    assert len(err.strip().splitlines()[-1:]) == 1
    assert not Path("outputs_3d_vl").exists()
