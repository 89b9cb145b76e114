"""A mesh, a small real tokenizer and a tiny real language model for the programs, and how they are run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trimesh

from tiny_tokenizer import saved_with_a_surface
from vae_qwen3vl.commands.main import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys) -> Run:
    """Run a command line; return its exit code and what it printed on the two outputs."""

    def run_main(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run_main


@pytest.fixture(scope="session")
def mesh_file(tmp_path_factory) -> Path:
    """A box of 2 x 1 x 1 that stands away from the origin."""
    box = trimesh.creation.box((2.0, 1.0, 1.0))
    box.apply_translation((10.0, 0.0, -5.0))
    path = tmp_path_factory.mktemp("mesh") / "box.glb"
    box.export(path)
    return path


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory, mesh_file) -> Path:
    return saved_with_a_surface(mesh_file, tmp_path_factory.mktemp("vae"))


@pytest.fixture
def language_files(tmp_path, tokenizer, make_vl) -> list[str]:
    """Flags of a tiny language model and of a projector for it."""
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    folder, projector = tmp_path / "vl", tmp_path / "projector.safetensors"
    vl = make_vl("qwen2_vl")
    vl.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen3VLWith3DBranch(str(folder), latent_dim=4, use_vl_model=vl).save_projector(projector, prompt="What is it?")
    return ["--vl_model", str(folder), "--projector_ckpt", str(projector)]


@pytest.fixture
def codes_file(tmp_path, mesh_file, tokenizer_file, run) -> Path:
    path = tmp_path / "box.safetensors"
    assert run("encode", mesh_file, "-o", path, "--vae_ckpt", tokenizer_file)[0] == 0
    return path
