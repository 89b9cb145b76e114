"""The scripts of the recommended way: one command that starts training as the config says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from vae_qwen3vl.config import AlignmentConfig


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_3d_align_train", repository / "scripts/run_3d_align_train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shipped(repository: Path) -> AlignmentConfig:
    return AlignmentConfig.from_file(repository / "configs/3d_align_train.yaml")


@pytest.mark.parametrize(("gpus", "processes"), [(8, 4), (4, 4), (2, 2)])
def test_as_many_processes_start_as_are_asked_for_and_fit(script, shipped, tmp_path, gpus, processes) -> None:
    file = tmp_path / "accelerate.yaml"
    command = script.launch_command(shipped, gpus, file, debug=False)
    assert command[1:5] == ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    assert yaml.safe_load(file.read_text()) == {**shipped.accelerate, "num_processes": processes}


@pytest.mark.parametrize(("gpus", "debug"), [(0, False), (1, False), (8, True)])
def test_one_process_needs_no_launcher(script, shipped, tmp_path, gpus, debug) -> None:
    command = script.launch_command(shipped, gpus, tmp_path / "accelerate.yaml", debug=debug)
    assert command[0] == sys.executable
    assert command[1].endswith("train_finetune.py")


def test_a_clone_without_data_is_told_how_to_make_some(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "scripts").mkdir()
    for item in ("vae_qwen3vl", "configs", "scripts/run_3d_align_train.py"):
        (tmp_path / item).symlink_to(repository / item)
    shell = tmp_path / "scripts/run_3d_align_train.sh"
    shell.write_bytes((repository / "scripts/run_3d_align_train.sh").read_bytes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": str(repository), "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", str(shell)], capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "make one with: python dataset_toolkits/sdf_voxelize.py" in done.stderr
    assert not (tmp_path / "outputs_3d_align").exists()
