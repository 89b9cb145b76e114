"""A server that runs in a test's process, and what tests ask of it."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.service import Service

NAME = "tiny"
"""What it calls its model."""


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
