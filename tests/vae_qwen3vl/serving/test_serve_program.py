"""The program: a process that serves, is asked to end, and ends."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from live_server import chat, mesh_part, program, text, until
from vae_qwen3vl.commands.main import main
from vae_qwen3vl.serving.metrics import Metrics


def test_it_serves_with_a_key_and_at_the_end_finishes_what_runs_and_refuses_what_is_new(tiny_folder, tmp_path, mug):
    with program(tiny_folder, tmp_path) as (server, client):
        serves_and_ends(server, client, mug)


def serves_and_ends(server, client, mug):
    ask = chat(mesh_part(mug), text("What is it?"), max_tokens=3)
    assert httpx.post(client.base_url.join("/v1/encode"), json={}, trust_env=False).status_code == 401
    first = client.post("/v1/chat/completions", json=ask)
    assert first.status_code == 200
    long = chat(text("Hi"), max_tokens=350)
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(client.post, "/v1/chat/completions", json=long) for _ in range(4)]
        until(lambda: "chats_running 4.0" in client.get("/metrics").text or all(one.done() for one in running))
        # To all of its processes, as service managers do it.
        os.killpg(server.pid, signal.SIGTERM)
        refused = []

        def is_refused() -> bool:
            try:
                refused.append(client.post("/v1/chat/completions", json=ask).status_code)
            except httpx.TransportError:
                refused.append(0)
            return refused[-1] in (503, 0)

        until(is_refused)
        assert {one.result().status_code for one in running} == {200}
    assert server.wait(60) == 0
    assert not Path(f"/proc/{server.pid}").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_language_model_computes_in_the_dtype_that_is_asked_for(tiny_folder, monkeypatch, dtype):
    served = []
    monkeypatch.setattr("vae_qwen3vl.serving.service.Service", lambda model, *_, **__: served.append(model))
    monkeypatch.setattr("vae_qwen3vl.serving.server.run", lambda load, settings, _: load(settings, Metrics()))
    files = ["--vl_model", tiny_folder / "vl", "--projector_ckpt", tiny_folder / "projector.safetensors"]
    files += ["--vae_ckpt", tiny_folder / "vae" / "model.safetensors"]
    assert main(["serve", "--device", "cpu", "--dtype", dtype, *map(str, files)]) == 0
    assert {weight.dtype for weight in served[0].vl_model.parameters()} == {getattr(torch, dtype)}


def test_what_cant_be_served_is_one_line(tmp_path, capsys):
    assert main(["serve", "--api_key_file", str(tmp_path / "none")]) == 2
    assert "the file of keys" in capsys.readouterr().err
    assert main(["serve", "--mesh_seconds", "0"]) == 2
    assert "--mesh_seconds must be a number above 0" in capsys.readouterr().err
    assert main(["serve", "--host", "no-such-host.invalid"]) == 2
    assert "can't be listened on" in capsys.readouterr().err
