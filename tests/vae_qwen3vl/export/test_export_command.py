"""The program: a checkpoint, a request about a mesh, and how it fails."""

from __future__ import annotations

import json

import pytest
import torch
import trimesh
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny_tokenizer import saved_with_a_surface
from vae_qwen3vl.commands.main import main


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "box.glb"
    trimesh.creation.box((2.0, 1.0, 1.0)).export(path)
    return path


@pytest.fixture(scope="module")
def vae_ckpt(tmp_path_factory, mesh):
    return saved_with_a_surface(mesh, tmp_path_factory.mktemp("vae"))


@pytest.fixture(params=["llama"])
def family(request) -> str:
    return request.param


@pytest.fixture
def flags(tmp_path, vl_model, tokenizer, vae_ckpt):
    """Flags of a language model, a tokenizer and a projector with these settings."""

    def make(**settings) -> list[str]:
        from vae_qwen3vl.model import Qwen3VLWith3DBranch

        folder, projector = tmp_path / "vl", tmp_path / "projector.safetensors"
        vl_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings = {"latent_dim": 4, "positions": "sequential", **settings}
        model = Qwen3VLWith3DBranch(str(folder), use_vl_model=vl_model, **settings)
        model.save_projector(projector, prompt="a chair?")
        return ["--vl_model", folder, "--projector_ckpt", projector, "--vae_ckpt", vae_ckpt]

    return make


@pytest.fixture
def run(capsys):
    def run(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["export", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_a_checkpoint_a_gguf_file_and_requests_about_a_mesh(run, flags, tmp_path, mesh, vae_ckpt):
    plain = tmp_path / "plain"
    code, out, err = run(plain, *flags(), "--gguf", "f16", "--dtype", "bfloat16", "--json")
    assert code == 0, err
    about = json.loads(out)
    assert about["written"] == [str(plain), str(plain / "model-f16.gguf")]
    assert (plain / "model-f16.gguf").stat().st_size > 10_000
    assert (about["architecture"], about["dtype"]) == ("LlamaForCausalLM", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(plain, dtype="auto").dtype == torch.bfloat16
    assert (plain / "model.safetensors").stat().st_mode == (plain / "config.json").stat().st_mode

    asking = [plain, "--prompt_of", mesh, "--vae_ckpt", vae_ckpt]
    chat, ids = (json.loads(run(*asking, *more)[1]) for more in ([], ["--completion", "--max_new_tokens", "9"]))
    tokenizer = AutoTokenizer.from_pretrained(plain)
    assert tokenizer.apply_chat_template(chat["messages"], add_generation_prompt=True)["input_ids"] == ids["prompt"]
    assert chat["messages"][0]["content"].endswith("<|shape_end|>a chair?")
    assert (chat["max_tokens"], ids["max_tokens"]) == (64, 9)
    other = json.loads(run(*asking, "--prompt", "a red robot?")[1])
    assert other["messages"][0]["content"].endswith("<|shape_end|>a red robot?")


def test_embeddings_for_a_projector_of_merged_tokens(run, flags, tmp_path, mesh, vae_ckpt):
    merged = flags(merge=2, positions="mrope")
    code, _, err = run(tmp_path / "plain", *merged)
    assert code == 2
    assert "merge 2" in err
    assert "--objects prompt_embeds" in err
    code, _, err = run(tmp_path / "plain", *merged, "--objects", "prompt_embeds")
    assert code == 0
    code, out, _ = run(tmp_path / "plain", "--prompt_of", mesh, "--vae_ckpt", vae_ckpt)
    (part,) = json.loads(out)["messages"][0]["content"]
    assert part["type"] == "prompt_embeds"
    code, _, err = run(tmp_path / "plain", "--prompt_of", mesh, "--vae_ckpt", vae_ckpt, "--completion")
    assert code == 2
    assert "no tokens but embeddings" in err


def test_a_folder_that_is_no_export_is_told(run, tmp_path, mesh, vae_ckpt):
    code, _, err = run(tmp_path, "--prompt_of", mesh, "--vae_ckpt", vae_ckpt)
    assert code == 2
    assert "is no exported checkpoint" in err
