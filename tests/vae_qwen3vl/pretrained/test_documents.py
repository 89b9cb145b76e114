"""What docs/transformers.md shows works as it stands there, from top to bottom."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from vae_qwen3vl.commands.main import main
from vae_qwen3vl.language.default_model import default_lm_folder

PAGE = Path(__file__).resolve().parents[3] / "docs" / "transformers.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_snippet_and_command_runs(repository, tmp_path, monkeypatch, capsys) -> None:
    if default_lm_folder() is None:
        pytest.skip("the default language model is not on this machine")
    for library in ("torchao", "datasets"):
        pytest.importorskip(library)
    shutil.copytree(repository / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks].count("python") >= 5
    for language, body in blocks:
        if language == "python":
            exec(compile(body, PAGE.name, "exec"), {})
            continue
        for line in body.splitlines():
            assert main(shlex.split(line, comments=True)[1:]) == 0, line
    said = capsys.readouterr().out
    assert "chair" in said.lower()
    assert (tmp_path / "rebuilt.glb").stat().st_size > 1000
    size = sum(file.stat().st_size for file in (tmp_path / "by_name").rglob("*") if file.is_file())
    assert f"{size / 1e6:.0f} MB" in PAGE.read_text(encoding="utf-8")
    assert (tmp_path / "trained" / "projector.safetensors").is_file()
