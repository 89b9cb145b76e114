"""A server that runs in a test's process, and what tests ask of it."""

from __future__ import annotations

import base64
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.service import Service

NAME = "tiny"
"""What it calls its model."""
KEY = "a-key-of-this-very-test"
"""What lets in to the program."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """A server that runs in this process, and its parts."""

    url: str
    service: Service
    gate: Gate
    client: httpx.Client
    pause: list[float]
    """Seconds that each step of the language model takes longer."""

    @contextlib.contextmanager
    def told(self, **settings: Any) -> Iterator[None]:
        """Change settings for a while."""
        before = self.gate.settings
        self.gate.settings = self.service.settings = replace(before, **settings)
        try:
            yield
        finally:
            self.gate.settings = self.service.settings = before

    @contextlib.contextmanager
    def slowed(self, seconds: float) -> Iterator[None]:
        """Have each step of the language model take longer for a while."""
        self.pause[0] = seconds
        try:
            yield
        finally:
            self.pause[0] = 0.0


@contextlib.contextmanager
def program(model: Path, place: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """Run the program `serve` with a tiny model, and yield it with a client that has its key.

    Args:
        model: see the fixture `tiny_folder`.
        place: folder for its keys and its log.
        options: more of its options.
    """
    (place / "keys").write_text(KEY + "\n")
    command = [sys.executable, "-m", "vae_qwen3vl", "serve", "--port", "0", "--model_name", NAME]
    command += ["--vl_model", model / "vl", "--projector_ckpt", model / "projector.safetensors"]
    command += ["--vae_ckpt", model / "vae" / "model.safetensors", "--api_key_file", place / "keys"]
    command += ["--mesh_workers", "1", "--device", "cpu", *options]
    with open(place / "log", "w+") as log, subprocess.Popen(command, stderr=log, start_new_session=True) as server:
        try:

            def said() -> re.Match[str] | None:
                assert server.poll() is None, (place / "log").read_text()
                return re.search(r"serving on ([^\s,]+)", (place / "log").read_text())

            until(said, 300)
            headers = {"Authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=said()[1], headers=headers, trust_env=False, timeout=120) as client:
                yield server, client
        finally:
            server.kill()


def mesh_part(data: bytes, kind: str = "model/gltf-binary", **more: str) -> dict[str, Any]:
    """Return a mesh as a part of a message."""
    return {"type": "mesh_url", "mesh_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}", **more}}


def chat(*content: Any, **more: Any) -> dict[str, Any]:
    """Return the body of a chat of one turn."""
    return {"model": NAME, "messages": [{"role": "user", "content": list(content)}], **more}


def text(words: str) -> dict[str, str]:
    """Return words as a part of a message."""
    return {"type": "text", "text": words}


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)
