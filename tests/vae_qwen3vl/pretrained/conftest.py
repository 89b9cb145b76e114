"""Small whole models: a language model of two layers, projector, adapters, and a tokenizer of shapes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trimesh

import tiny_models
import tiny_tokenizer
from sdf_vqvae.model.checkpoint import load_vae_from_config
from vae_qwen3vl.model import Qwen3VLWith3DBranch

pytest.importorskip("transformers")
KINDS = ["qwen2_vl", "qwen3_vl"]


@pytest.fixture(autouse=True)
def no_trainer_left():
    """Transformers' trainers leave Accelerate's state in the process, where runs of other kinds would meet it."""
    yield
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def meshes(tmp_path_factory) -> dict[str, Path]:
    """Mesh files: a ball and a box."""
    folder = tmp_path_factory.mktemp("meshes")
    made = {"ball": trimesh.creation.icosphere(2), "box": trimesh.creation.box((3, 1, 2))}
    for name, mesh in made.items():
        mesh.export(folder / f"{name}.glb")
    return {name: folder / f"{name}.glb" for name in made}


@pytest.fixture(scope="session")
def shape_vae(tmp_path_factory, meshes):
    """A tokenizer of random weights whose codes decode to a surface."""
    weights = tiny_tokenizer.saved_with_a_surface(meshes["ball"], tmp_path_factory.mktemp("vae"))
    return load_vae_from_config(None, weights, "cpu")


@pytest.fixture(scope="session")
def language_models(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Folders of both kinds, as they come from a hub."""
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp("lm") / kind
        tiny_models.build_vl(kind).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def make_branch(shape_vae, language_models):
    """Make a model of its parts, the same each time; adapters are trained ones."""

    def make(kind: str = "qwen2_vl", lora: bool = True, **settings) -> Qwen3VLWith3DBranch:
        torch.manual_seed(5)
        settings = {"projector_num_layers": 2, "merge": 2, "shape_tokens": 1, "max_3d_tokens": 40, **settings}
        branch = Qwen3VLWith3DBranch(language_models[kind], shape_vae, **settings)
        branch.prompt = "What is it?"
        if lora:
            branch.add_lora(r=2, alpha=4)
            for name, value in branch.vl_model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(value, std=0.2)
        return branch.eval()

    return make


@pytest.fixture(scope="session")
def saved(tmp_path_factory, make_branch, shape_vae, tokenizer) -> dict[str, SimpleNamespace]:
    """Both kinds: the parts (`branch`) and the folder that was made of them."""
    from vae_qwen3vl.pretrained import ShapeVLForConditionalGeneration, ShapeVLProcessor

    made = {}
    for kind in KINDS:
        branch, folder = make_branch(kind), tmp_path_factory.mktemp("saved") / kind
        ShapeVLForConditionalGeneration.from_branch(branch).save_pretrained(folder)
        ShapeVLProcessor(tokenizer, vae=shape_vae).save_pretrained(folder)
        made[kind] = SimpleNamespace(branch=branch, folder=folder)
    return made


@pytest.fixture(params=KINDS)
def both(request, saved) -> SimpleNamespace:
    """`branch` and `folder` of one kind."""
    return saved[request.param]


@pytest.fixture(scope="session")
def shape_processor(saved):
    """The processor of a folder."""
    from vae_qwen3vl.pretrained import ShapeVLProcessor

    return ShapeVLProcessor.from_pretrained(saved["qwen2_vl"].folder, device="cpu")


@pytest.fixture(scope="session")
def ball(shape_processor, meshes):
    """Codes."""
    return shape_processor.encode_mesh(meshes["ball"])


@pytest.fixture(scope="session")
def box(shape_processor, meshes):
    return shape_processor.encode_mesh(meshes["box"])


@pytest.fixture(scope="session")
def ask():
    """Write a user's turn: text as it is, anything else as a mesh."""

    def turn(*content) -> list[dict]:
        parts = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "mesh", "mesh": p} for p in content]
        return [{"role": "user", "content": parts}]

    return turn
