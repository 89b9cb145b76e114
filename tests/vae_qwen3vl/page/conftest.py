"""A workbench of tiny networks, the page on a port, and a browser that looks at it."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trimesh

import tiny_models
import tiny_search
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from tiny_tokenizer import saved_with_a_surface
from vae_qwen3vl.generation.engine import Engine
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.page.workbench import Limits, Workbench
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.search import ShapeIndex
from vae_qwen3vl.search.indexing import index_dataset


@pytest.fixture(scope="session")
def meshes(tmp_path_factory) -> Path:
    """A folder with a ball (GLB, so y is up) and a tall block that stands along z (OBJ)."""
    folder = tmp_path_factory.mktemp("meshes")
    trimesh.creation.icosphere(subdivisions=3, radius=2.0).export(folder / "ball.glb")
    trimesh.creation.box((1, 2, 6)).export(folder / "tall block.obj")
    return folder


@pytest.fixture(scope="session")
def weights(meshes, tmp_path_factory) -> Path:
    """Of a tokenizer whose meshes have a surface, beside its `config.json`."""
    return saved_with_a_surface(meshes / "ball.glb", tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="session")
def index(weights, meshes, tmp_path_factory) -> ShapeIndex:
    """An index of the meshes, made of their files."""
    folder = tmp_path_factory.mktemp("search")
    head = tiny_search.saved(folder, load_vae(weights).fingerprint())
    settings = EncodeSettings(
        source=meshes, output=folder / "index", vae_ckpt=weights, vae_config=weights.parent / "config.json"
    )
    assert index_dataset(settings, *head).objects == 2
    return ShapeIndex.open(folder / "index")


def load_vae(weights: Path) -> SparseSDFVQVAE:
    return load_vae_from_config(weights.parent / "config.json", weights, "cpu")


@pytest.fixture(scope="session")
def bench(tokenizer, weights, index) -> Iterator[Workbench]:
    vae = load_vae(weights)
    torch.manual_seed(5)
    model = Qwen3VLWith3DBranch(
        vae_model=vae, use_vl_model=tiny_models.build_vl("qwen2_vl"), projector_num_layers=2, merge=2
    )
    engine = Engine(model.eval(), Processor3D(tokenizer))
    engine.start()
    yield Workbench(vae, engine, Limits(faces=60_000, tokens=12), index=index)
    engine.close(finish=False)


class Reached(list):
    """Addresses that this process connected to, beside its own machine."""

    def __call__(self, event: str, arguments: tuple) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            host = str(arguments[1][0])
            if host not in ("127.0.0.1", "::1", "localhost"):
                self.append(host)


@pytest.fixture(scope="session")
def reached() -> Reached:
    found = Reached()
    sys.addaudithook(found)
    return found


@pytest.fixture(scope="session")
def address(bench, meshes, reached) -> Iterator[str]:
    """Where the page is."""
    pytest.importorskip("gradio")
    import uvicorn

    from vae_qwen3vl.page.app import make_app
    from vae_qwen3vl.page.hosting import address_of, example_meshes, listen

    app = make_app(bench, example_meshes(meshes), max_upload_mb=1)
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]}, daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not server.started and time.monotonic() < until:
            time.sleep(0.05)
        assert server.started
        yield address_of(socket)
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, where the machine has it.

    While it runs, the thread's event loop is its own, so it ends with the module: other tests need theirs.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
        running = playwright.chromium.launch(executable_path=program, args=flags)
        yield running
        running.close()
