"""The scripts of the recommended way: one command that starts training as the config says."""

from __future__ import annotations

import importlib.util
import os
import signal
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


LAUNCH = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
sys.exit(script.run_to_its_end(sys.argv[2:]))
"""


def launched(repository: Path, *command: str) -> subprocess.Popen:
    """A program that starts a command as the script does."""
    script = str(repository / "scripts/run_3d_align_train.py")
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCH, script, *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_a_signal_ends_the_training_and_what_it_started(repository: Path) -> None:
    """One process that saves before it ends, and one that it started and leaves behind."""
    saves = "trap 'sleep 0.2; echo saved; exit 7' TERM; sleep 300 & echo $$ $!; while true; do sleep 0.05; done"
    program = launched(repository, "bash", "-c", saves)
    assert program.stdout is not None
    processes = [int(number) for number in program.stdout.readline().split()]
    assert all(map(is_running, processes))
    program.terminate()
    assert program.stdout.readline() == "saved\n"
    assert program.wait(timeout=60) == 128 + signal.SIGTERM
    assert not any(map(is_running, processes))


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("kill -KILL $$", 128 + signal.SIGKILL)])
def test_the_exit_code_is_the_trainings(script, command: str, code: int) -> None:
    assert script.run_to_its_end(["bash", "-c", command]) == code


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
