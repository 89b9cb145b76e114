"""Writes a benchmark's numbers with what is needed to print them again: command, commit, hardware, versions."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.utils.files import write_json

RESULTS = Path(__file__).parent / "results"


def hardware() -> str:
    """Name the device that numbers are taken on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def write_result(name: str, numbers: dict[str, Any], folder: Path | None = None) -> Path:
    """Write `<name>.json` and return its path."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    document = {
        "command": _command(),
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
        **numbers,
    }
    path = (folder or RESULTS) / f"{name}.json"
    write_json(path, document, indent=1)
    return path


def _command() -> str:
    """Return the command line without `--out`, which only says where the numbers went."""
    arguments = list(sys.argv)
    if "--out" in arguments:
        place = arguments.index("--out")
        del arguments[place : place + 2]
    return shlex.join(["python", *arguments])
