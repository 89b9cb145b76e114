"""Measured numbers on file, with what it takes to measure them again: command, commit, hardware, versions.

What `benchmarks/ROOM/QUESTION.py` measures is kept in `benchmarks/results/ROOM/QUESTION.json`: an object of runs by
name, each with its numbers. A run of a name that is there replaces it; the others stay.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.files import file_lock, write_json
from sdf_vqvae.utils.strict_files import parse_json


def measuring_parser(about: str | None, program: str) -> argparse.ArgumentParser:
    """Return the parser of a program that measures, with where its numbers go.

    Args:
        about: its documentation.
        program: its file, `benchmarks/ROOM/QUESTION.py`.
    """
    file = Path(program)
    folder = file.absolute().parents[1] / "results" / file.parent.name
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(question=file.stem)
    add_measuring_options(parser, folder)
    return parser


def add_measuring_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Add `--name` and `--out`."""
    parser.add_argument("--name", help="what this run is called in the file of results (default: after what ran)")
    shown = os.path.relpath(folder)
    parser.add_argument("--out", type=Path, default=folder, help=f"folder of that file (default: {shown})")


def results_file(options: argparse.Namespace) -> Path:
    """Return where the runs of a parsed command line's question are kept."""
    file: Path = options.out / f"{options.question}.json"
    return file


def read_runs(file: Path) -> dict[str, dict[str, Any]]:
    """Return the runs of a question by name; none where the file is not there yet.

    Raises:
        ValueError: it is not JSON.
    """
    runs: dict[str, dict[str, Any]] = parse_json(file.read_bytes()) if file.exists() else {}
    return runs


def write_run(options: argparse.Namespace, numbers: Mapping[str, Any], name: str | None = None) -> Path:
    """Write the numbers of this run and return the file.

    Several programs may write into one file at a time. Numbers that say by which command, on what and when they were
    measured keep that.

    Args:
        options: of a `measuring_parser`.
        numbers: what was measured.
        name: of the run, where `--name` doesn't say it (default: the kind of device).
    """
    file = results_file(options)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(file.with_name(f".{file.name}.lock"), wait=True):
        runs = read_runs(file) | {run_name(options, name): _circumstances() | dict(numbers)}
        write_json(file, runs, indent=1, ensure_ascii=False)
    return file


def run_name(options: argparse.Namespace, name: str | None = None) -> str:
    """Return what a run is called: as `--name` says, else `name`, else the kind of device that it runs on."""
    from sdf_vqvae.utils.runtime import resolve_device

    return options.name or name or resolve_device(getattr(options, "device", None)).type


def hardware() -> str:
    """Return the name of the device that numbers are taken on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def _circumstances() -> dict[str, str]:
    import torch

    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "command": _command(),
        "commit": asked.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
        "hardware": hardware(),
        "torch": torch.__version__,
    }


def _command() -> str:
    """Return the command line without `--out`, which only says where the numbers went."""
    words = list(sys.argv)
    if "--out" in words:
        place = words.index("--out")
        del words[place : place + 2]
    return shlex.join(["python", *words])
