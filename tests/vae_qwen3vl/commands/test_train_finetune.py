"""The training program: run folders that are never overwritten, logs by process, codes or fields, plain mistakes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.projector_file import load_projector
from vae_qwen3vl.train_finetune import main
from vae_qwen3vl.training.trainer import AlignmentTrainer

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
    from sdf_vqvae.codes.folder import CodeFolder

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


def states(folder: Path) -> dict[str, torch.Tensor]:
    """Return weights, the best ones, optimizer and generators of a run's last checkpoint, and its results."""
    found = {}
    last = sorted((folder / "checkpoints").iterdir())[-1]
    for file in [*last.glob("*.safetensors"), folder / "lora_final" / "adapter_model.safetensors"]:
        found |= {f"{file.name}/{name}": value for name, value in load_file(file).items()}
    return found | load_projector(folder / "projector_final.pt")[0].state_dict()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Send the process a signal within a step."""
    original = AlignmentTrainer.step

    def step_and_signal(self: AlignmentTrainer, *given: Any) -> dict[str, float]:
        if self.step_number == step - 1:
            os.kill(os.getpid(), number)
        return original(self, *given)

    monkeypatch.setattr(AlignmentTrainer, "step", step_and_signal)


DUMMIES = ("--dummy_data", "--dummy_samples", "20", "--max_3d_tokens", "110", "--use_lora", "--lora_dropout", "0.3")
SMALL = (*DUMMIES, "--gradient_accumulation_steps", "2", "--projector_share", "0.2", "--output_dir", "out")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_saves_and_goes_on_as_if_it_had_not_been(
    place: Path, vl: str, capsys, monkeypatch, number: int, code: int
) -> None:
    command = (*SMALL, "--vl_model", vl)
    handler = signal.getsignal(number)  # Ray leaves one of its own in a process that used it
    assert train(*command) == 0
    whole = Path(capsys.readouterr().out.strip())
    with monkeypatch.context() as patched:
        stop_at(patched, 2, number)
        assert train(*command) == code
    folder = Path(capsys.readouterr().out.strip())
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step_0000002"]
    assert not (folder / "projector_final.pt").exists()
    assert signal.getsignal(number) == handler
    assert train(*command, "--resume", "--log_every", "1", "--save_every", "7") == 0  # which change no result
    assert Path(capsys.readouterr().out.strip()) == folder
    expected, found = states(whole), states(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert train(*command, "--resume") == 2
    assert f"{folder} has ended" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_said_and_no_run_begins(place: Path, vl: str, capsys, monkeypatch) -> None:
    command = (*SMALL, "--vl_model", vl)

    def refused(*more: str) -> str:
        before = sorted(p.name for p in Path("out").iterdir()) if Path("out").is_dir() else []
        assert train(*command, "--resume", *more) == 2
        assert (sorted(p.name for p in Path("out").iterdir()) if Path("out").is_dir() else []) == before
        return capsys.readouterr().err.splitlines()[-1]

    assert f"no run to go on with in {place / 'out'} (no run at all)" in refused()
    with monkeypatch.context() as patched:
        stop_at(patched, 1, signal.SIGTERM)
        assert train(*command) == 143
    folder = Path(capsys.readouterr().out.strip())
    changed = ("--lr", "5e-4", "--seed", "3", "--lora_r", "2", "--warmup_ratio", "0.5")
    message = refused(*changed)
    assert f"{folder}, stopped after step 1, has other settings (" in message
    for pair in ("lr 0.0001 -> 0.0005", "seed 42 -> 3", "lora_r 8 -> 2", "warmup_ratio 0.03 -> 0.5"):
        assert pair in message
    assert json.loads((folder / "train_args.json").read_text())["seed"] == 42
    objects = json.loads((folder / "objects.json").read_text())
    assert (len(objects["train"]), len(objects["val"])) == (18, 2)
    (folder / "objects.json").write_text(json.dumps(objects | {"train": [*objects["train"][1:], "new"]}))
    assert "has changed since: 1 of its 20 objects are gone or no longer used, 1 are new" in refused()
    shutil.rmtree(folder / "checkpoints")
    assert f"{folder} was stopped before its first checkpoint" in refused()
    (Path("out") / "broken").mkdir()
    (Path("out") / "broken" / "train_args.json").write_text("[")
    assert f"{folder} was stopped before its first checkpoint" in refused()


def test_a_short_run_has_a_checkpoint_after_every_quarter(place: Path, vl: str, capsys) -> None:
    assert train("--dummy_data", "--dummy_samples", "16", "--max_3d_tokens", "110", "--vl_model", vl) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step_0000007", "step_0000008"]


def programs_in(folder: Path) -> list[str]:
    """Return other running programs whose current directory is a folder (none where there is no /proc)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder) and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # another user's, or gone
            continue
    return list(filter(None, found))  # one that has ended and was not waited for has no command


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(place: Path, vl: str, capsys) -> None:
    """A process that dies without notice, in its second epoch, while two others read data for it."""
    command = (*SMALL, "--vl_model", vl, "--device", "cpu", "--batch_size", "2", "--epochs", "2")
    assert main(command) == 0
    whole = Path(capsys.readouterr().out.strip())
    more = ("--save_every", "1", "--num_workers", "2", "--output_dir", "killed")
    with Path("console.txt").open("w") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "vae_qwen3vl.train_finetune", *command, *more], stdout=console, stderr=console
        )
    while process.poll() is None and not list(Path("killed").glob("*/checkpoints/step_0000006")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, Path("console.txt").read_text()
    until = time.monotonic() + 20
    while left := programs_in(place):  # those that read data have nobody to read for
        assert time.monotonic() < until, left
        time.sleep(0.1)
    (folder,) = Path("killed").iterdir()
    assert main([*command, *more[2:], "--resume"]) == 0
    expected, found = states(whole), states(folder)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_mistakes_are_one_line(place: Path, vl: str, codes: Path, capsys) -> None:
    assert train("--vl_model", vl) == 2
    assert "there is no folder train_sdf_dataset; make one with" in capsys.readouterr().err
    assert train("--vl_model", vl, "--data_dir", "train_sdf_dataset") == 2
    err = capsys.readouterr().err
    assert "make one with: python dataset_toolkits/sdf_voxelize.py" in err
    assert len(err.strip().splitlines()[-1:]) == 1
    assert not Path("outputs_3d_vl").exists()
