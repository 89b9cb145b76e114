"""The server's application with nothing behind it, and requests to it as files: what fuzzing of bodies starts from.

A file is a path, a line's end, and the body that is sent there. Only the model and what reads meshes are stand-ins;
routes, checks, addresses, uploads and answers are the server's own.
"""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import torch

from live_server import NAME, chat, mesh_part, text
from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.generation.answer import Answer, Sampling
from vae_qwen3vl.serving.app import make_app
from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.service import Service
from vae_qwen3vl.serving.settings import ServerSettings
from vae_qwen3vl.serving.shapes import SUFFIXES
from vae_qwen3vl.serving.uploads import UploadFolder

ANSWERS = {200, 400, 404, 405, 413, 422, 429}
"""What any request may be answered with."""
_EDGE = b"boundary-of-parts"


def bodies() -> list[bytes]:
    """Return requests that are answered, as files."""
    mesh = mesh_part(b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n", "model/off", up="z")
    upload = {"type": "file", "file": {"file_id": "file-" + "0" * 24, "up": "auto"}}
    system = {"role": "system", "content": "Be brief."}
    long = chat(mesh, text("What is it?"), max_completion_tokens=3, temperature=0.5, top_p=0.9, seed=1, stop=["."])
    requests = [
        ("/v1/chat/completions", chat(text("Hi"), stream=True, stream_options={"include_usage": True})),
        ("/v1/chat/completions", {**long, "messages": [system, *long["messages"]], "n": 1}),
        ("/v1/chat/completions", chat(upload, text("Hi"), max_tokens=2)),
        ("/v1/encode", {"input": mesh}),
        ("/v1/decode", {"input": mesh, "format": "ply", "voxel_resolution": 64}),
        ("/v1/search", {"query": "a chair", "k": 3}),
    ]
    parts = (
        b'--%b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="a.off"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\nOFF\r\n--%b--\r\n" % (_EDGE, _EDGE, _EDGE)
    )
    return [f"{path}\n{json.dumps(body)}".encode() for path, body in requests] + [b"/v1/files\n" + parts]


def send(path: Path) -> None:
    """Send a file's body, and check that it is answered or refused in the server's own words."""
    place, _, body = path.read_bytes().partition(b"\n")
    where = place.decode("latin-1")
    kind = f"multipart/form-data; boundary={_EDGE.decode()}" if where == "/v1/files" else "application/json"
    where = where if where.startswith("/v1/") and where.isascii() and where.isprintable() else "/v1/chat/completions"
    try:
        answer = _loop().run_until_complete(_posted(where, body, kind))
    except (ValueError, OSError) as error:  # from within: of a file they would be a refusal
        raise AssertionError(f"the application raises {error!r}") from error
    assert answer.status_code in ANSWERS, f"{answer.status_code}: {answer.text[:200]}"
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def _posted(where: str, body: bytes, kind: str) -> httpx.Response:
    transport = httpx.ASGITransport(_application())
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.post(where, content=body, headers={"Content-Type": kind})


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@functools.cache
def _application() -> Any:
    settings, metrics = ServerSettings(model_name=NAME), Metrics()
    return make_app(_Service(settings, metrics), Gate(settings, (), metrics))


class _Service(Service):
    """The server's work without a model."""

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self.settings, self.metrics, self.name = settings, metrics, NAME
        folder = Path(tempfile.mkdtemp(prefix="uploads-"))
        self.uploads = UploadFolder(folder, most_files=20, most_bytes=2**20, seconds=5)
        self.reader = SimpleNamespace(known=lambda *_: None, read=_read, lost=0)  # type: ignore[assignment]
        self.engine = SimpleNamespace(submit=_submit)  # type: ignore[assignment]
        self.index = None
        self._reading = 0
        self._readers = self._decoders = self._others = anyio.CapacityLimiter(1)

    def _decode(self, codes: ShapeCodes, suffix: str, voxel_resolution: int | None) -> bytes:
        return b""


def _read(data: bytes, suffix: str, up: str | None) -> ShapeCodes:
    if suffix not in SUFFIXES or not data:
        raise ValueError("it is not read")
    coords = torch.zeros((1, 3), dtype=torch.int32)
    return ShapeCodes(
        codes=torch.zeros(1, dtype=torch.int32),
        coords=coords,
        latent_resolution=8,
        data_resolution=32,
        center=(0.0, 0.0, 0.0),
        scale=1.0,
        vae_hash="0" * 64,
    )


def _submit(messages: Sequence[Any], objects: Sequence[ShapeCodes], sampling: Sampling) -> Answer:
    answer = Answer(1)
    answer.add("It is.")
    answer.finish("stop")
    return answer
