"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import pytest

from vae_qwen3vl.commands.main import make_parser

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(README.read_text(encoding="utf-8")) if name == language]


def shipped_tokenizer() -> bool:
    return (resources.files("sdf_vqvae") / "weights" / "model.safetensors").is_file()


def test_readme_stays_short():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.parametrize(
    "line", [line for body in blocks("bash") for line in body.splitlines() if line.startswith("vae-qwen3vl ")]
)
def test_every_command_line_is_understood(line):
    make_parser().parse_args(shlex.split(line, comments=True)[1:])


def test_make_targets_exist(repository):
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for body in blocks("bash"):
        for target in re.findall(r"^make (\w+)", body, re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_exist(repository):
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (repository / target).exists(), target


@pytest.mark.slow
@pytest.mark.skipif(not shipped_tokenizer(), reason="needs the shipped tokenizer weights")
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs vae-qwen3vl[language]")
@pytest.mark.parametrize("code", blocks("python"), ids=["short", "classes"])
def test_python_snippets_run(code, default_lm, repository, tmp_path, monkeypatch):
    shutil.copytree(repository / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
