"""What programs say where only the core is installed: the extra to install, in one line, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sdf_vqvae.utils.extras import EXTRAS, extra_of, said_of
from vae_qwen3vl.commands.main import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

HIDDEN = sorted({name for names in EXTRAS.values() for name in names} | {"huggingface_hub", "jinja2", "packaging"})
RUN_ALL = """
import contextlib, importlib, io, json, runpy, sys
from importlib.machinery import PathFinder

hidden, commands = json.loads(sys.argv[1])

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
said = []
for module, *arguments in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if module.endswith(".py"):
                sys.argv = [module, *arguments]
                runpy.run_path(module, run_name="__main__")
            else:
                code = importlib.import_module(module).main(arguments)
        except SystemExit as end:
            code = end.code
    said.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


def commands(repository: Path) -> list[tuple[list[str], str]]:
    """Return programs with what they lack."""
    chair, config = str(repository / "examples" / "chair.glb"), str(repository / "configs" / "3d_align_train.yaml")
    vae = str(repository / "configs" / "vae" / "sdf_vqvae_256.json")
    examples, scripts = str(repository / "examples"), repository / "scripts"
    return [
        (["vae_qwen3vl.commands.main", "describe", chair], "language"),
        (["vae_qwen3vl.commands.main", "demo", chair, "-o", "out"], "language"),
        (["vae_qwen3vl.commands.main", "smoke-test", "--quick"], "language"),
        (["vae_qwen3vl.run_smoke_test"], "language"),
        (["vae_qwen3vl.train_finetune", "--dummy_data"], "language"),
        (["vae_qwen3vl.train_finetune", "--config", config], "language"),
        (["vae_qwen3vl.eval_3d_vl"], "language"),
        (["vae_qwen3vl.commands.main", "make-plain-text", "-o", "texts.jsonl"], "language"),
        ([str(scripts / "run_3d_align_train.py"), "--config", config], "language"),
        ([str(repository / "examples" / "custom_dataset.py")], "language"),
        (
            [
                str(scripts / "train_tokenizer.py"),
                "--vae_config",
                vae,
                "--data_dir",
                examples,
                "--output_dir",
                "tok",
            ],
            "language",
        ),
        (
            [
                "dataset_toolkits.process_m3d_seg_format",
                "--image",
                "a.nii",
                "--label",
                "b.nii",
                "--output_dir",
                "m3d",
            ],
            "medical",
        ),
        (
            [
                *("dataset_toolkits.sdf_voxelize", "--format", "folder", "--input_dir", examples),
                *("--output_dir", "out", "--engine", "ray"),
            ],
            "ray",
        ),
    ]


def test_a_program_that_lacks_an_extra_names_it_in_one_line(repository, tmp_path):
    told = commands(repository)
    arguments = json.dumps([HIDDEN, [command for command, _ in told]])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for (command, extra), (code, out, err) in zip(told, json.loads(done.stdout.splitlines()[-1]), strict=True):
        *others, line = [line for line in err.splitlines() if not line.startswith("INFO")]
        assert (code, out, others) == (2, "", []), command
        assert line.endswith(f": pip install 'vae-qwen3vl[{extra}]'"), command


WITHOUT_CORE = {
    "demo": ["chair.glb", "-o", "out"],
    "doctor": [],
    "smoke-test": ["--quick"],
    "encode": ["chair.glb", "-o", "c.safetensors"],
    "describe": ["chair.glb"],
    "decode": ["c.safetensors", "-o", "m.glb"],
    "create": ["a chair", "-o", "m.glb"],
    "complete": ["chair.glb", "--keep", "bottom", "-o", "m.glb"],
    "export": ["plain"],
    "serve": [],
    "app": [],
    "pack-model": ["-o", "model"],
    "index": ["in", "-o", "out"],
    "search": ["index", "a chair"],
    "voxelize": ["--format", "folder", "--input_dir", "in", "--output_dir", "out"],
    "ct": ["--data_root", "in", "--output_dir", "out"],
    "convert": ["f.npz", "-o", "g.npz"],
    "make-questions": ["pack", "-o", "q.jsonl"],
    "make-plain-text": ["-o", "t.jsonl"],
    "train": ["--dummy_data"],
    "train-generator": ["--data_dir", "codes"],
    "train-tokenizer": ["--vae_config", "a.json", "--data_dir", "in", "--output_dir", "out"],
    "checkpoint": ["a.pt"],
    "eval": [],
    "evaluate": ["in", "-o", "out"],
}
"""A command line of every command."""


def test_without_pytorch_every_command_and_script_says_so_in_one_line(repository, tmp_path):
    assert set(WITHOUT_CORE) == set(COMMANDS)
    asked = [["vae_qwen3vl.__main__", name, *words] for name, words in WITHOUT_CORE.items()]
    asked += [["vae_qwen3vl.__main__", "--version"]]
    faces = {"vae_qwen3vl.train_finetune": "train", "vae_qwen3vl.eval_3d_vl": "eval"}
    faces |= {"vae_qwen3vl.run_smoke_test": "smoke-test", "dataset_toolkits.sdf_voxelize": "voxelize"}
    faces |= {"dataset_toolkits.process_m3d_seg_format": "ct"}
    asked += [[face, *WITHOUT_CORE[name]] for face, name in faces.items()]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, json.dumps([["torch"], asked])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for command, (code, out, err) in zip(asked, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert (code, out, err.count("\n")) == (2, "", 1), command
        assert "error: a library can't be loaded (" in err
        assert "torch" in err
        assert err.endswith("): pip install vae-qwen3vl\n")


def test_extras_bring_what_they_are_said_to_bring(repository):
    declared = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    packages = {"yaml": "pyyaml", "mkdocs": "mkdocs-material"}
    packages |= {"python_multipart": "python-multipart", "prometheus_client": "prometheus-client"}
    for extra, names in EXTRAS.items():
        brought = {Requirement(line).name for line in declared["optional-dependencies"][extra]}
        assert {packages.get(name, name) for name in names} <= brought
    assert set(EXTRAS) == set(declared["optional-dependencies"]) - {"dev"}


def test_a_library_of_no_extra_is_named_with_the_way_to_get_it():
    assert extra_of("transformers.models") == "language"
    said = said_of(ModuleNotFoundError("No module named 'numba.core'", name="numba.core"))
    assert said.startswith("numba is not installed")
    assert "pip install vae-qwen3vl" in said
    assert said_of(ImportError("libcudart.so:\n no such file")) == "libcudart.so: no such file"
