"""The training program as people run it: meshes or fields in, a run folder out, errors that say what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh
from safetensors.torch import load_file

import tiny_tokenizer as tiny
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.model.checkpoint import load_vae_from_config, save_vae
from sdf_vqvae.training.checkpoints import checkpoint_steps, path_of
from sdf_vqvae.training.trainer import TokenizerTrainer
from vae_qwen3vl.commands.main import main as program

TRAINER = {"max_steps": 6, "batch_size_per_gpu": 2, "i_log": 1, "i_save": 3, "i_sample": 3, "i_ddpcheck": 2}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.json", {"name": "Meshes", "args": {"resolution": 64, "buffer": 32}})


def write_config(path: Path, dataset: dict[str, Any]) -> Path:
    args = tiny.args()
    trainer = {"name": "SparseSDFVQVAETrainer", "args": {**TRAINER, "held_out": 1, "disable_snapshot": True}}
    model = {"vqvae": {"name": "SparseSDFVQVAE", "args": args}}
    path.write_text(json.dumps({"models": model, "dataset": dataset, "trainer": trainer}))
    return path


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    folder.mkdir()
    for number in range(3):
        trimesh.creation.box((1, 0.5 + 0.1 * number, 0.4)).export(folder / f"box{number}.ply")
    return folder


def arguments(config: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--vae_config", str(config), "--data_dir", str(data), "--output_dir", str(output), "--device", "cpu"),
        *more,
    ]


def test_meshes_train_and_the_command_goes_on(config: Path, meshes: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert program(["train-tokenizer", *arguments(config, meshes, output, "--max_steps", "3", "--lr", "2e-3")]) == 0
    assert program(["train-tokenizer", *arguments(config, meshes, output, "--lr", "2e-3")]) == 0
    steps = [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 7))
    assert json.loads((output / "train_args.json").read_text())["trainer"]["lr"] == 2e-3
    load_vae_from_config(vae_ckpt=output / "model.safetensors", device="cpu")
    assert program(["train-tokenizer", *arguments(config, meshes, output)]) == 2  # another learning rate
    assert json.loads((output / "train_args.json").read_text())["trainer"]["lr"] == 2e-3


def test_the_finer_config_trains_from_inner_weights_with_thin_shapes_and_goes_on(
    meshes: Path, tmp_path: Path, repository: Path
) -> None:
    """`sdf_vqvae_512.json` as it is, but narrow and on a small grid, from a narrow tokenizer of half that grid."""
    document = json.loads((repository / "configs/vae/sdf_vqvae_512.json").read_text())
    args = document["models"]["vqvae"]["args"]
    assert args["patch_size"] == 4
    args |= tiny.args(resolution=4)
    document["dataset"]["args"] |= {"resolution": 64, "buffer": 8, "shares": {"made:thin": 0.1}}
    document["trainer"]["args"] |= {**TRAINER, "num_workers": 0, "held_out": 1, "disable_snapshot": True}
    (tmp_path / "fine.json").write_text(json.dumps(document))
    field = {**args["field"], "resolution": 32}
    save_vae(tiny.vae(resolution=4, field=field), tmp_path / "coarse")
    weights = tmp_path / "coarse" / "model.safetensors"
    more = ("--pretrained_vae_path", str(weights), "--pretrained_inner", "--bypass_share", "0")
    given = arguments(tmp_path / "fine.json", meshes, tmp_path / "run", *more)
    assert program(["train-tokenizer", *given, "--max_steps", "2"]) == 0
    assert program(["train-tokenizer", *given]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sorted({record["step"] for record in records}) == list(range(1, 7))
    assert all(record["used"] > 0 for record in records if record["kind"] == "held_out")  # codes from the start
    load_vae_from_config(vae_ckpt=tmp_path / "run" / "model.safetensors", device="cpu")


@pytest.mark.parametrize(("kind", "step"), [("meshes", 2), ("fields", 4), ("badly rebuilt first", 3)])
def test_a_run_that_is_told_to_stop_ends_with_the_bits_of_one_that_is_not(
    meshes: Path, tmp_path: Path, monkeypatch, kind: str, step: int
) -> None:
    """Codes start from random vectors and hardly used ones are replaced by random ones: none must depend on stops."""
    dataset = {"name": "Meshes", "args": {"resolution": 64, "buffer": 32, "echo": 1}}
    data = meshes
    if kind == "fields":
        data, dataset = tmp_path / "fields", {"name": "SparseSDF", "args": {"resolution": 64, "symmetries": True}}
        data.mkdir()
        for number, file in enumerate(sorted(meshes.iterdir())):
            SparseSDF.from_mesh(trimesh.load(file), 64, band=3.0, device="cpu").save(data / f"o{number}_r64.npz")
    more = ()
    if kind == "badly rebuilt first":
        more = ("--draw_by_error", "2", "--thin_weight", "3", "--surface_weight", "1")
    config = write_config(tmp_path / "c.json", dataset)
    assert program(["train-tokenizer", *arguments(config, data, tmp_path / "whole", *more)]) == 0
    original = TokenizerTrainer.step

    def step_and_signal(self: TokenizerTrainer, progress: float) -> Any:
        if self.step_number == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(TokenizerTrainer, "step", step_and_signal)
        given = arguments(config, data, tmp_path / "parts", *more)
        assert program(["train-tokenizer", *given]) == 128 + signal.SIGTERM
    assert checkpoint_steps(tmp_path / "parts")[-1] == step
    assert program(["train-tokenizer", *given]) == 0
    for file in sorted(path_of(tmp_path / "whole", 6).glob("*.safetensors")):
        expected, found = load_file(file), load_file(path_of(tmp_path / "parts", 6) / file.name)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), file.name


def test_prepared_fields_train(meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields = tmp_path / "fields"
    fields.mkdir()
    for number, file in enumerate(sorted(meshes.iterdir())):
        SparseSDF.from_mesh(trimesh.load(file), 64, band=3.0, device="cpu").save(fields / f"object{number}_r64.npz")
    dataset = {"name": "SparseSDF", "args": {"resolution": 64, "symmetries": True}}
    config = write_config(tmp_path / "fields.json", dataset)
    assert (
        program(
            [
                "train-tokenizer",
                *arguments(config, fields, tmp_path / "run", "--max_epoch", "1", "--batch_size_per_gpu", "1"),
            ]
        )
        == 0
    )
    last = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 3
    given = arguments(config, fields, tmp_path / "other", "--draw_by_error", "1")
    assert program(["train-tokenizer", *given]) == 2
    assert "draw_by_error belong to the dataset Meshes" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_one_model(config: Path, meshes: Path, tmp_path: Path, repository: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(repository / "scripts" / "train_tokenizer.py"), *arguments(config, meshes, tmp_path / "run")]
    script += ["--max_steps", "3", "--draw_by_error", "1", "--thin_weight", "2"]
    done = subprocess.run(
        [*command, *script],
        env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert records[-1]["objects"] == 3 * 2 * 2
    assert len(list((tmp_path / "run" / "checkpoints" / "step_0000003").glob("rank_*.json"))) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--training_stage", "3"], "starts from trained weights: give --pretrained_vae_path"),
        (["--pretrained_vae_path", "none.pt"], "none.pt does not exist"),
        (["--share", "ldraw=0.5"], "shares name sources of a pack"),
        (["--share", "ldraw"], "--share must be SOURCE=SHARE"),
        (["--lr", "-1"], "trainer.args.lr must be a number of at least 0"),
        (["--data_dir", "nowhere"], "--data_dir nowhere does not exist"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    config: Path, meshes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert program(["train-tokenizer", *arguments(config, meshes, tmp_path / "run", *more)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
