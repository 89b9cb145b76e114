"""A generator of one's own: trained from scratch on a folder of meshes, asked for an object, and for half of one."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import creation
import numpy as np
import pytest
import torch
import trimesh

import tiny_sentence_model
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.utils.measurements import read_runs
from vae_qwen3vl.creation.known import box_region, read_box
from vae_qwen3vl.creation.octree import dense

pytest.importorskip("accelerate")
pytest.importorskip("transformers")

BOXES = {"a table": (1.0, 0.2, 0.8), "a lamp": (0.2, 1.0, 0.2), "a chair": (0.6, 0.9, 0.6)}


@pytest.fixture(scope="module")
def meshes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meshes")
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file", "captions"])
        for words, sides in BOXES.items():
            trimesh.creation.box(sides).export(folder / f"{words[2:]}.ply")
            table.writerow([f"{words[2:]}.ply", words])
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, meshes, tokenizer_file) -> Path:
    """The run folder of a generator that learned three boxes for seconds, on the CPU."""
    from vae_qwen3vl.commands.main import main

    folder = tmp_path_factory.mktemp("trained")
    sentences = tiny_sentence_model.save(folder / "sentences")
    encode = ["encode", meshes, "-o", folder / "codes", "--vae_ckpt", tokenizer_file, "--up", "y"]
    train = ["train-generator", "--data_dir", folder / "codes", "--output_dir", folder / "run", "--device", "cpu"]
    train += ["--sentence_model", sentences, "--width", "32", "--where_blocks", "1", "--what_blocks", "1"]
    train += ["--dropout", "0", "--epochs", "200", "--batch_size", "3", "--lr", "8e-3", "--val_samples", "0"]
    for command in (encode, train):
        assert main(list(map(str, command))) == 0
    return folder / "run"


def test_words_make_the_object_they_were_learned_with(trained, meshes, tokenizer_file, tmp_path, run):
    words, wanted = "a table", tmp_path / "wanted.safetensors"
    assert run("encode", meshes / "table.ply", "-o", wanted, "--vae_ckpt", tokenizer_file, "--up", "y")[0] == 0
    flags = ["--generator", trained, "--vae_ckpt", tokenizer_file, "--device", "cpu", "--json"]
    flags += ["--guidance", "1", "--temperature", "0", "--order_noise", "0"]
    code, out, err = run("create", words, "-o", tmp_path / "made.glb", *flags)
    assert code == 0, err
    (made,) = json.loads(out)["made"]
    own, found = ShapeCodes.load(wanted), ShapeCodes.load(made["codes"])
    both, either = (
        combine(dense(own.coords, 8), dense(found.coords, 8)).sum()
        for combine in (torch.logical_and, torch.logical_or)
    )
    assert both / either > 0.8
    assert len(trimesh.load_mesh(made["output"]).faces) == made["faces"] > 0
    assert Path(made["picture"]).stat().st_size > 0


def test_the_same_seed_makes_the_same_files_and_a_count_makes_more(trained, tokenizer_file, tmp_path, run):
    flags = ["--generator", trained, "--vae_ckpt", tokenizer_file, "--device", "cpu", "--json", "--steps", "3"]
    _, out, _ = run("create", "a lamp", "-o", tmp_path / "two.ply", "--count", "2", "--seed", "5", *flags)
    first, second = json.loads(out)["made"]
    assert first["seed"] >= 5
    assert second["seed"] > first["seed"]
    assert (Path(first["output"]).name, Path(second["output"]).name) == ("two_1.ply", "two_2.ply")
    run("create", "a lamp", "-o", tmp_path / "again.ply", "--seed", str(second["seed"]), *flags)
    one, other = (ShapeCodes.load(path) for path in (second["codes"], tmp_path / "again.safetensors"))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.coords, other.coords)


@pytest.mark.parametrize("how", [["--keep", "bottom"], ["--vary", "0.4"]])
def test_what_is_kept_of_an_object_is_kept(how, trained, meshes, tokenizer_file, tmp_path, run):
    flags = ["--vae_ckpt", tokenizer_file, "--up", "y", "--device", "cpu"]
    assert run("encode", meshes / "chair.ply", "-o", tmp_path / "own.safetensors", *flags)[0] == 0
    more = ["--generator", trained, "--words", "a chair", "--steps", "4"]
    code, out, err = run("complete", meshes / "chair.ply", *how, "-o", tmp_path / "new.glb", *more, *flags)
    assert code == 0, err
    assert "new.glb" in out
    own, new = (ShapeCodes.load(tmp_path / name) for name in ("own.safetensors", "new.safetensors"))
    assert (new.center, new.scale) == (own.center, own.scale)
    if how[0] == "--keep":
        region = box_region(read_box(how[1]), own.coords, 8)
        assert torch.equal(dense(own.coords, 8) & region, dense(new.coords, 8) & region)


def test_without_a_generator_one_line_says_how_to_get_one(meshes, tmp_path, run):
    for command in (["create", "a chair"], ["complete", meshes / "chair.ply", "--keep", "top"]):
        code, out, err = run(*command, "-o", tmp_path / "made.glb")
        assert (code, out) == (2, "")
        (line,) = err.splitlines()
        assert "no generator is shipped" in line
        assert "vae-qwen3vl train-generator --data_dir CODES" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["create", "x", "-o", "made.txt"], "a mesh file ends in one of"),
        (["create", "x", "-o", "made.glb", "--generator", "nowhere"], "there is no generator in nowhere"),
        (["create", "x", "-o", "made.glb", "--steps", "0"], "--steps must be an integer of at least 1"),
        (["complete", "x.glb", "-o", "made.glb", "--keep", "middle"], "a box is one of left, right"),
        (["train-generator"], "no data: give --data_dir CODES"),
        (["train-generator", "--data_dir", "nowhere"], "is no folder of codes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, said, tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]


# -- the benchmark ------------------------------------------------------------------------------------------------


def test_measures_of_made_objects_are_what_their_formulas_say():
    exact = np.eye(8)
    assert creation.r_precision(exact, 1, 8) == 1
    assert creation.r_precision(np.roll(exact, 1, axis=1), 1, 8) == 0  # another caption is always first
    assert creation.r_precision(np.zeros((8, 8)), 3, 5) == 1  # four ties count as two places before it
    assert creation.r_precision(np.zeros((8, 8)), 2, 5) == 0
    random = np.random.default_rng(0)
    real = [random.random((40, 3)) + 10 * number for number in range(4)]
    same = creation.set_measures(*(creation.distances(real, real) for _ in range(3)))
    assert same["coverage"] == 1
    assert same["mmd"] == 0
    assert same["one_nna"] == 0  # each object's nearest one is its twin of the other set
    one = [real[0] + 0.01] * 4
    stuck = creation.set_measures(
        creation.distances(one, real), creation.distances(one, one), creation.distances(real, real)
    )
    assert stuck["coverage"] == 0.25
    shifted = creation.chamfer(real[0], real[0] + [1000, 0, 0])
    assert shifted == pytest.approx(2 * 1000**2, rel=0.01)


def test_the_benchmark_runs_on_a_generator_of_ones_own(trained, tokenizer_file, tmp_path, monkeypatch, capsys):
    words = ["--generator", trained, "--codes", trained.parent / "codes", "--train_codes", trained.parent / "codes"]
    words += ["--vae_ckpt", tokenizer_file, "--count", "3", "--points", "64", "--steps", "2", "--no_matcher"]
    monkeypatch.setattr(sys, "argv", list(map(str, ["creation.py", *words, "--device", "cpu", "--out", tmp_path])))
    creation.main()
    assert "one_nna" in capsys.readouterr().out
    numbers = read_runs(tmp_path / "creation.json")["cpu"]
    assert 0 <= numbers["closed"] <= 1
    assert numbers["objects"] == 3
    assert numbers["seconds"] > 0
