"""A server with a tiny model, on loopback; and requests to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

import tiny_models
from live_server import NAME, Live, until
from tiny_tokenizer import saved_with_a_surface
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.server import Server, listen
from vae_qwen3vl.serving.service import Service
from vae_qwen3vl.serving.settings import ServerSettings, ShapeLimits


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """Files of a tiny model: `vl`, `projector.safetensors`, and a tokenizer of shapes whose meshes have a surface."""
    folder = tmp_path_factory.mktemp("tiny")
    vl = tiny_models.build_vl("qwen2_vl")
    vl.save_pretrained(folder / "vl")
    tiny_models.build_tokenizer().save_pretrained(folder / "vl")
    saved_with_a_surface(repository / "examples" / "mug.glb", folder / "vae")
    torch.manual_seed(5)
    model = Qwen3VLWith3DBranch(str(folder / "vl"), latent_dim=4, use_vl_model=vl)
    model.save_projector(folder / "projector.safetensors", prompt="What is it?")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Qwen3VLWith3DBranch:
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.describer import load_describer

    vae = load_vae_from_config(None, tiny_folder / "vae" / "model.safetensors", "cpu")
    parts = tiny_folder / "vl", tiny_folder / "projector.safetensors"
    model = load_describer(vae, *parts, device="cpu", dtype="float32")  # answers are compared
    model.max_3d_tokens = 64
    return model


@pytest.fixture(scope="session")
def live(tiny_model: Qwen3VLWith3DBranch) -> Iterator[Live]:
    """The server, on a port of its own."""
    settings = ServerSettings(model_name=NAME, mesh_workers=1, idle_seconds=2.0, request_seconds=60.0)
    pause = [0.0]
    layer = tiny_model.vl_model.model.language_model.layers[0]
    layer.register_forward_pre_hook(lambda *_: time.sleep(pause[0]) if pause[0] else None)
    metrics = Metrics()
    gate = Gate(settings, (), metrics)
    service = Service(tiny_model, settings, ShapeLimits(), metrics)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = Server(service, gate)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until(lambda: server.started or not thread.is_alive(), 300)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield Live(url=url, service=service, gate=gate, client=client, pause=pause)
        gate.closing = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def chair(repository: Path) -> bytes:
    return (repository / "examples" / "chair.glb").read_bytes()


@pytest.fixture(scope="session")
def mug(repository: Path) -> bytes:
    return (repository / "examples" / "mug.glb").read_bytes()
