"""The command `evaluate` as a user runs it: folders in, tables and a page out, errors in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import trimesh

from sdf_vqvae.evaluation.rebuild import ROWS
from tiny_tokenizer import measured_args
from vae_qwen3vl.commands.main import main


@pytest.fixture
def run(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., CompletedProcess[str]]:
    """The command, in the repository's folder and in this process: what it returned, printed and said."""

    def run_here(*options: str) -> CompletedProcess[str]:
        monkeypatch.chdir(repository)
        capfd.readouterr()
        try:
            code = main(["evaluate", *options])
        except SystemExit as left:  # of argparse
            code = int(left.code or 0)
        return CompletedProcess(options, code, *capfd.readouterr())

    return run_here


@pytest.fixture(scope="module")
def small_config(tmp_path_factory) -> str:
    """A small tokenizer of random weights."""
    path = tmp_path_factory.mktemp("vae") / "config.json"
    path.write_text(json.dumps({"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": measured_args()}}}))
    return str(path)


def test_a_folder_of_meshes_is_measured_and_goes_on(run, tmp_path, small_config):
    folder, out = tmp_path / "meshes", tmp_path / "out"
    folder.mkdir()
    trimesh.creation.icosphere().export(folder / "ball.ply")
    (folder / "broken.ply").write_bytes(b"ply\nno mesh")
    options = (str(folder), "-o", str(out), "--vae_config", small_config, "--samples", "2000", "--device", "cpu")
    done = run(*options, "--json", "--pictures", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["objects"] == 2
    assert [f["id"] for f in found["failures"]][-1] == "broken.ply"
    ceiling = found["subsets"]["watertight"]["ceiling"]
    assert ceiling["fscore@0.01"]["mean"] > 0.99 and ceiling["volume_iou"]["mean"] > 0.95
    assert found["subsets"]["all"]["ceiling"]["fscore@0.01"]["mean"] == pytest.approx(
        ceiling["fscore@0.01"]["mean"] / 2, abs=1e-4
    )
    assert found["codes"]["median"] > 50
    assert {"settings.json", "objects.jsonl", "summary.json", "report.html"} <= {p.name for p in out.iterdir()}
    before = (out / "objects.jsonl").read_bytes()
    again = run(*options)
    assert again.returncode == 0, again.stderr
    assert (out / "objects.jsonl").read_bytes() == before
    for words in (
        "ceiling",
        "continuous",
        "discrete",
        "S-IoU",
        "failed: broken.ply",
        "codebook of 128",
        "chamfer_l1",
    ):
        assert words in again.stdout
    other = run(*options[:-4], "--samples", "77", "--device", "cpu")
    assert other.returncode == 2
    assert "another samples (2000, now 77)" in other.stderr
    assert len(other.stderr.strip().splitlines()) <= 2  # a warning of random weights, and the error


def test_two_tokenizers_are_compared_on_the_same_objects(run, tmp_path, small_config):
    folder = tmp_path / "meshes"
    folder.mkdir()
    trimesh.creation.icosphere().export(folder / "ball.ply")
    trimesh.creation.box((1, 2, 3)).export(folder / "box.ply")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"models": {"vqvae": {"name": "SparseSDFVQVAE", "args": measured_args(128)}}}))
    options = (str(folder), "--samples", "2000", "--pictures", "0", "--device", "cpu")
    assert run(*options, "-o", str(tmp_path / "a"), "--vae_config", small_config).returncode == 0
    here = ("-o", str(tmp_path / "b"), "--vae_config", str(other), "--against", str(tmp_path / "a"))
    done = run(*options, *here, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    compared = json.loads((tmp_path / "b" / "against.json").read_text())
    assert compared == found["against"]
    theirs = json.loads((tmp_path / "a" / "summary.json").read_text())
    bins = {name for name in theirs["subsets"] if name.startswith("codes")}
    assert bins == {name for name in compared if name.startswith("codes")}  # whatever the codes here
    both = compared["all"]
    for side, subsets in (("here", found["subsets"]), ("there", theirs["subsets"])):
        assert both[side]["chamfer_l1"] == subsets["all"]["discrete"]["chamfer_l1"]
    gap = both["here"]["chamfer_l1"]["mean"] - both["there"]["chamfer_l1"]["mean"]
    assert both["here - there"]["chamfer_l1"]["mean"] == pytest.approx(gap, abs=1e-6)
    table = run(*options, *here)
    assert "here - there" in table.stdout and "F@.001" in table.stdout
    refused = run(*options, "-o", str(tmp_path / "c"), "--vae_config", small_config, "--against", str(folder))
    assert refused.returncode == 2 and "holds no evaluation" in refused.stderr
    file = tmp_path / "a" / "objects.jsonl"
    file.write_text(file.read_text().replace('"ceiling": {"chamfer_l1": 0.', '"ceiling": {"chamfer_l1": 7.'))
    again = run(
        *options, "-o", str(tmp_path / "c"), "--vae_config", small_config, "--ceiling_from", str(tmp_path / "a")
    )
    assert again.returncode == 0, again.stderr
    subsets = json.loads((tmp_path / "c" / "summary.json").read_text())["subsets"]["all"]
    assert subsets["ceiling"]["chamfer_l1"]["mean"] > 7
    assert subsets["discrete"] == theirs["subsets"]["all"]["discrete"]
    refused = run(
        *options, "-o", str(tmp_path / "b"), "--vae_config", str(other), "--ceiling_from", str(tmp_path / "a")
    )
    assert refused.returncode == 2 and "has another ceiling: its tokenizer reads field" in refused.stderr


def test_the_protocol_and_the_help_teach(run):
    protocol = run("--protocol")
    assert protocol.returncode == 0
    for measure in ("chamfer_l1", "fscore@t", "normal_consistency", "volume_iou", "surface_iou", "voxel_iou"):
        assert measure in protocol.stdout
    helped = run("--help")
    assert "--split test" in helped.stdout and "worst case" in helped.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nowhere",), "nowhere does not exist"),
        (("examples", "--split", "test"), "have no split"),
        (("tests",), "holds no mesh"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(run, tmp_path, small_config, options, words):
    done = run(*options, "-o", str(tmp_path), "--vae_config", small_config, "--device", "cpu")
    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_examples_with_the_shipped_tokenizer(repository, tmp_path):
    """Those of few codes: a legged, a thin-walled and a round one."""
    meshes, out = tmp_path / "meshes", tmp_path / "out"
    meshes.mkdir()
    for name in ("chair.glb", "plane.glb", "rocket.glb"):
        shutil.copy(repository / "examples" / name, meshes)
    command = [sys.executable, "-m", "vae_qwen3vl", "evaluate", str(meshes), "-o", str(out), "--samples", "5000"]
    done = subprocess.run(
        [*command, "--pictures", "1", "--json"], cwd=repository, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["objects"] == 3 and not found["failures"]
    means = [found["subsets"]["all"][row]["fscore@0.01"]["mean"] for row in ROWS]
    assert means[0] > 0.95 and means[0] + 0.02 > means[1] and means[1] + 0.02 > means[2] > 0.5
    page = (out / "report.html").read_text()
    assert page.count("data:image/") == 12
    assert len(page) < 1_500_000
