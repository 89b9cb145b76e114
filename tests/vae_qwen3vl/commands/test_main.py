"""The program: each command on a small real tokenizer and a tiny real language model, and how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trimesh

from sdf_vqvae.codes.pipeline import encode_field, voxelize_for
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.extras import EXTRAS
from tiny_tokenizer import SMALL_ARGS
from vae_qwen3vl.commands.main import COMMANDS, GROUPS, main

pytest.importorskip("transformers")


def test_encode_writes_the_codes_that_the_library_gives(codes_file, mesh_file, tokenizer_file):
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    vae = load_vae_from_config(None, tokenizer_file, "cpu")
    expected, found = encode_field(vae, voxelize_for(vae, mesh_file)), ShapeCodes.load(codes_file)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.coords, expected.coords)
    assert found.vae_hash == vae.fingerprint()


def test_encode_reports_json(tmp_path, mesh_file, tokenizer_file, run):
    path = tmp_path / "c.safetensors"
    code, out, _ = run("encode", mesh_file, "-o", path, "--vae_ckpt", tokenizer_file, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["codes"] == len(ShapeCodes.load(path).codes)
    assert report["faces"] == 12
    assert [stage["name"] for stage in report["stages"]] == ["voxelize", "encode"]


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl"])
def test_decode_writes_a_mesh_in_source_units(tmp_path, codes_file, tokenizer_file, suffix, run):
    path = tmp_path / f"rebuilt.{suffix}"
    code, out, _ = run("decode", codes_file, "-o", path, "--vae_ckpt", tokenizer_file, "--json")
    mesh = trimesh.load_mesh(path)
    assert code == 0
    assert len(mesh.faces) == json.loads(out)["faces"] > 0
    assert mesh.bounds[0] == pytest.approx([9.0, -0.5, -5.5], abs=0.7)
    assert mesh.bounds[1] == pytest.approx([11.0, 0.5, -4.5], abs=0.7)


def test_describe_says_the_same_about_a_mesh_and_its_codes(
    mesh_file, codes_file, tokenizer_file, language_files, run
):
    flags = ["--vae_ckpt", tokenizer_file, *language_files, "--max_new_tokens", "5", "--json"]
    answers = [json.loads(run("describe", shape, *flags)[1]) for shape in (mesh_file, codes_file)]
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["prompt"] == "What is it?"
    assert 0 < answers[0]["tokens_3d"] <= answers[0]["codes"]


def test_describe_asks_the_prompt(codes_file, tokenizer_file, language_files, run):
    flags = ["--vae_ckpt", tokenizer_file, *language_files, "--max_new_tokens", "2", "--json"]
    _, out, _ = run("describe", codes_file, *flags, "--prompt", "How many legs?")
    assert json.loads(out)["prompt"] == "How many legs?"


def test_demo_leaves_codes_mesh_picture_and_result(tmp_path, mesh_file, tokenizer_file, language_files, run):
    out_dir = tmp_path / "out" / "box"
    code, out, err = run("demo", mesh_file, "-o", out_dir, "--vae_ckpt", tokenizer_file, *language_files)
    assert code == 0, err
    assert {p.name for p in out_dir.iterdir()} == {
        "codes.safetensors",
        "reconstruction.glb",
        "comparison.png",
        "result.json",
    }
    result = json.loads((out_dir / "result.json").read_text())
    stages = [stage["name"] for stage in result["stages"]]
    assert stages == ["load models", "voxelize", "encode", "describe", "decode", "surface", "picture"]
    assert all(stage["seconds"] >= 0 and stage["peak_host_bytes"] > 0 for stage in result["stages"])
    for word in ("voxels", "codes", "3D tokens", "description", "rebuilt mesh", "picture", *stages):
        assert word in out


def test_doctor_names_versions_backends_and_remedies(run, monkeypatch):
    monkeypatch.setitem(EXTRAS, "web", ("no_such_library_anywhere",))
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code == (1 if report["problems"] else 0)
    assert report["versions"]["torch"] == torch.__version__
    assert report["backends"]["cpu"] == "numba"
    assert report["remedies"]["web"] == "pip install 'vae-qwen3vl[web]'"


def test_doctor_prints_a_line_a_finding(run):
    _, out, _ = run("doctor")
    assert "tokenizer " in out
    assert "smollm2-135m" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode", "nowhere.glb", "-o", "c.safetensors"], "nowhere.glb does not exist"),
        (["encode", "nowhere.glb", "-o", "c.npz"], "a codes file ends in .safetensors"),
        (["decode", "nowhere.safetensors", "-o", "m.glb"], "nowhere.safetensors"),
        (["decode", "nowhere.safetensors", "-o", "m.fbx"], "--output m.fbx"),
        (["describe", "nowhere.ply"], "nowhere.ply does not exist"),
        (["demo", "nowhere.ply", "-o", "out"], "nowhere.ply does not exist"),
        (
            ["encode", "nowhere", "-o", "codes"],
            "nowhere does not exist: give a mesh, a field file, or a folder of them",
        ),
        (["convert", "nowhere", "-o", "signed"], "nowhere does not exist: give a field file, or a folder of them"),
        (["demo", ".", "-o", "out"], "is a folder, and demo takes one mesh"),
        (["train", "--data_dir", "."], "make some with `vae-qwen3vl voxelize` (meshes) or `vae-qwen3vl ct` (scans)"),
        (["doctor", "--lm_wheel", "nowhere.whl"], "nowhere.whl"),
        (["smoke-test", "--quick", "--vae_config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, run, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert err.startswith(f"vae-qwen3vl {arguments[0]}: error: ")


def test_codes_of_another_tokenizer_are_refused(tmp_path, codes_file, run):
    torch.manual_seed(1)
    save_vae(SparseSDFVQVAE(VAEConfig.from_args(SMALL_ARGS)), tmp_path)
    other = tmp_path / "model.safetensors"
    code, _, err = run("decode", codes_file, "-o", tmp_path / "m.glb", "--vae_ckpt", other)
    assert code == 2
    assert "the codes were made by the VAE" in err
    assert not (tmp_path / "m.glb").exists()


def test_the_shipped_projector_is_not_put_on_another_language_model(codes_file, tokenizer_file, language_files, run):
    code, _, err = run("describe", codes_file, "--vae_ckpt", tokenizer_file, *language_files[:2])
    assert code == 2
    assert "give --projector_ckpt" in err


def test_without_a_command_the_overview_is_an_error(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err == run("--help")[1] == run("-h")[1] == run("help")[1]


def test_an_unknown_command_is_told_the_nearest(run):
    assert run("desribe", "chair.glb") == (
        2,
        "",
        "vae-qwen3vl: error: there is no command 'desribe'; did you mean describe? (vae-qwen3vl --help has them)\n",
    )
    assert run("xyzzy")[2] == ("vae-qwen3vl: error: there is no command 'xyzzy' (vae-qwen3vl --help has them)\n")


def test_the_package_is_the_program():
    asked = [sys.executable, "-m", "vae_qwen3vl", "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("vae-qwen3vl ")
    assert f"torch {torch.__version__}" in done.stdout


# -- help --------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "numpy", "scipy", "trimesh", "transformers", "numba", "igl", "PIL", "accelerate", "yaml", "ray")
ASK_ALL = """
import contextlib, io, json, sys
from vae_qwen3vl.__main__ import main

said = {}
for name in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    said[name] = [out.getvalue(), sorted(set(sys.argv[2:]) & set(sys.modules))]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, list]:
    """What `--help` of each command says, and which heavy libraries are there afterwards; of the overview as ``."""
    asked = [sys.executable, "-c", ASK_ALL, json.dumps(["", *COMMANDS]), *HEAVY]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_answers_without_a_heavy_library(helps, name):
    said, heavy = helps[name]
    assert said.startswith(f"usage: vae-qwen3vl {name or 'COMMAND'}")
    assert heavy == []


def test_the_overview_has_every_command_once_with_what_it_does(helps):
    overview = helps[""][0]
    for group, commands in GROUPS.items():
        assert f"\n{group}:\n" in overview
        for name, (_, about) in commands.items():
            assert overview.count(f"\n  {name:<17}{about}\n") == 1
    assert len(COMMANDS) == sum(map(len, GROUPS.values()))


def test_every_job_is_a_command():
    assert set(COMMANDS) == {
        *("voxelize", "ct", "encode", "decode", "describe", "train-tokenizer", "train", "eval", "evaluate"),
        *("convert", "checkpoint", "make-questions", "make-plain-text", "doctor", "demo", "smoke-test"),
        *("serve", "app", "index", "search", "pack-model", "export"),
        *("create", "complete", "train-generator"),
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_examples_that_it_takes(helps, name):
    said = helps[name][0]
    assert "examples:" in said
    assert "--verbose" in said


# -- completion --------------------------------------------------------------------------------------------------

COMPLETE = """
source completion.bash
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
_shtab_vae_qwen3vl
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def completion(tmp_path_factory) -> Path:
    """A folder with the script for bash, a mesh, a text and a folder."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("completion")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["completion", "bash"]) == 0
    (folder / "completion.bash").write_text(out.getvalue())
    (folder / "chair.glb").touch()
    (folder / "codes").mkdir()
    return folder


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["enc"], {"encode"}),
        (["make-"], {"make-questions", "make-plain-text"}),
        (["encode", "--thr"], {"--threshold_factor"}),
        (["train", "--use"], {"--use_lora", "--use_3d_pos", "--use_gradient_checkpointing"}),
        (["encode", "cha"], {"chair.glb"}),
        (["encode", "chair.glb", "-o", "c"], {"chair.glb", "codes", "completion.bash"}),
        (["train", "--data_dir", "c"], {"codes"}),
        (["train", "--config", "ch"], {"chair.glb"}),
        (["train", "--positions", ""], {"mrope", "sequential"}),
        (["voxelize", "--format", "t"], {"trellis500k"}),
        (["ct", "--mesh_format", "p"], {"ply"}),
        (["completion", ""], {"bash", "zsh"}),
    ],
)
def test_bash_completes_commands_options_choices_and_files(completion, words, completed):
    asked = ["bash", "-c", COMPLETE, "bash", "vae-qwen3vl", *words]
    done = subprocess.run(asked, cwd=completion, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert {word.rstrip("/ ") for word in done.stdout.splitlines() if word.strip()} == completed


def test_zsh_takes_the_script(tmp_path, capsys):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef vae-qwen3vl")
    assert all(name in script for name in COMMANDS)
    if shutil.which("zsh") is None:
        pytest.skip("there is no zsh")
    (tmp_path / "_vae-qwen3vl").write_text(script)
    done = subprocess.run(["zsh", "-n", "_vae-qwen3vl"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
