"""Benchmarks start where documents say, and documents, benchmarks and results name each other."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import trimesh

import tiny_tokenizer as tiny
from sdf_vqvae.model.checkpoint import save_vae
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


def test_choices_of_a_tokenizer_start_from_a_coarser_one(tmp_path, monkeypatch):
    """Each variant trains on the CPU, from one filled buffer, and its row is on file."""
    monkeypatch.chdir(ROOT)
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    for number in range(3):
        trimesh.creation.box((1, 0.5 + 0.1 * number, 0.4)).export(meshes / f"box{number}.ply")
    save_vae(tiny.vae(resolution=4, field={**tiny.args()["field"], "resolution": 32}), tmp_path / "coarse")
    document = json.loads((ROOT / "configs/vae/sdf_vqvae_512.json").read_text(encoding="utf-8"))
    document["models"]["vqvae"]["args"] |= tiny.args(resolution=4, num_embeddings=64, **tiny.PATCHES)
    document["models"]["vqvae"]["args"] |= {"level_channels": [16, 32], "level_blocks": [1, 1]}
    document["dataset"]["args"] |= {"resolution": 64, "shares": {"made:thin": 0.3}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(document), encoding="utf-8")
    program = BENCHMARKS / "quality/tokenizer_choices.py"
    words = ["--pack", meshes, "--vae_config", config, "--start", tmp_path / "coarse/model.safetensors"]
    words += ["--variants", "base,one_level_more,no_made_thin,by_error", "--max_seconds", "0.5", "--buffer", "16"]
    words += ["--held_out", "1", "--workers", "0", "--batch_size_per_gpu", "2", "--device", "cpu", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", list(map(str, [program, *words])))
    changes = runpy.run_path(str(program))
    changes["STARTED"]["one_level_more"][0].update(level_channels=(8, 16, 32), level_blocks=(1, 1, 1))
    changes["STARTED"]["no_made_thin"][1]["shares"] = {}
    changes["main"]()
    rows = read_runs(tmp_path / "tokenizer_choices.json")["cpu"]["rows"]
    assert [row["variant"] for row in rows] == ["base", "one_level_more", "no_made_thin", "by_error"]
    assert [len(row["children_missed"]) for row in rows] == [2, 3, 2, 2]
    assert all(row["steps"] > 0 and 0 < row["near_error_voxels"] < 3 for row in rows)
