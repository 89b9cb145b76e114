"""Benchmarks start where documents say, and documents, benchmarks and results name each other."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from pathlib import Path

import pytest

from sdf_vqvae.utils.measurements import measuring_parser, read_runs, run_name, write_run

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
PROGRAMS = sorted(path for path in BENCHMARKS.glob("*/*.py") if "__main__" in path.read_text(encoding="utf-8"))


def texts() -> dict[Path, str]:
    """Return every document and benchmark; a path may be broken off nowhere."""
    documents = [path for path in ROOT.glob("**/*.md") if ".venv" not in path.parts]
    return {path: path.read_text(encoding="utf-8") for path in [*documents, *BENCHMARKS.glob("*/*.py")]}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_benchmark_starts_from_the_root(program, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(program.relative_to(ROOT)), "--help"])
    monkeypatch.syspath_prepend(str(program.parent))  # as `python benchmarks/ROOM/QUESTION.py` has it
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(program), run_name="__main__")
    assert ended.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_benchmarks_and_results_that_texts_name_are_there():
    named = {
        (path.relative_to(ROOT), name.rstrip("."))
        for path, text in texts().items()
        for name in re.findall(r"\bbenchmarks/[\w./-]*[\w/]", text)
        if not name.startswith("benchmarks/ROOM")
    }
    assert len(named) > 60
    assert sorted(f"{path}: {name}" for path, name in named if not (ROOT / name).exists()) == []


def test_every_result_is_named_by_a_text():
    everything = "\n".join(texts().values())
    alone = []
    for file in RESULTS.glob("**/*.json*"):
        if file.name.startswith("."):
            continue
        name = file.relative_to(ROOT).as_posix()
        folders = [f"{folder}/" for folder in Path(name).parents if len(folder.parts) > 3]
        neighbor = f"{file.parent.relative_to(ROOT).as_posix()}/"
        spoken = name in everything or any(f"{folder}" in everything for folder in folders)
        if not spoken and not (neighbor in everything and re.search(rf"[`, (\[]{re.escape(file.name)}", everything)):
            alone.append(name)
    assert sorted(alone) == []


def test_every_result_of_a_benchmark_says_by_which_command_it_was_measured():
    for room in ("speed", "quality", "parity", "rival"):
        for file in (RESULTS / room).glob("*.json"):
            for name, run in read_runs(file).items():
                assert run.get("command") or run.get("commands"), f"{file.name}: {name}"


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return measuring_parser("Why?", "benchmarks/speed/why.py").parse_args(["--out", str(tmp_path / "results")])


def test_results_lie_beside_the_benchmarks_in_rooms_of_the_same_names(monkeypatch):
    monkeypatch.chdir(ROOT)
    options = measuring_parser("Why?", "benchmarks/speed/why.py").parse_args([])
    assert options.out == RESULTS / "speed"


def test_a_run_takes_the_place_of_the_one_of_its_name_and_leaves_the_others(options, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["why.py", "--count", "3", "--out", "elsewhere"])
    write_run(options, {"seconds": 2}, "small")
    write_run(options, {"seconds": 9}, "large")
    file = write_run(options, {"seconds": 1, "command": "as it was"}, "small")
    runs = json.loads(file.read_text(encoding="utf-8"))
    assert file == options.out / "why.json"
    assert list(runs) == ["small", "large"]
    assert (runs["small"]["seconds"], runs["small"]["command"]) == (1, "as it was")
    assert runs["large"]["command"] == "python why.py --count 3"
    assert {"commit", "date", "hardware", "torch"} <= set(runs["large"])
    assert [path.name for path in options.out.iterdir()] == ["why.json"]


def test_a_run_is_called_as_asked_or_after_what_ran(options):
    options.device = "cpu"
    assert run_name(options) == "cpu"
    assert run_name(options, "large") == "large"
    options.name = "mine"
    assert run_name(options, "large") == "mine"
