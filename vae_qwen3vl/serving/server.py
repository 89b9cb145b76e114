"""Runs the application with uvicorn: connections that time out, and an end that finishes what runs."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdf_vqvae.utils.files import regular_file
from sdf_vqvae.utils.ray_pool import joins_a_cluster
from sdf_vqvae.utils.runtime import keep_memory_level
from vae_qwen3vl.serving.app import make_app
from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.service import Service
from vae_qwen3vl.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "VAE_QWEN3VL_API_KEYS"
_LEAST_KEY = 16
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Return the API keys of a file (a line each; # begins a comment) and of the environment.

    Raises:
        ValueError: the file can't be read or holds none, or a key is short or has spaces.
    """
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    if file is not None:
        lines = regular_file(file, "file of keys").read_text(encoding="utf-8").splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ValueError(f"--api_key_file {file} holds no key: write one a line, such as {secrets.token_hex(16)}")
        keys += found
    for key in keys:
        if len(key) < _LEAST_KEY or any(letter.isspace() for letter in key) or not key.isascii():
            raise ValueError(
                f"an API key has at least {_LEAST_KEY} characters of ASCII and no spaces, such as "
                f"{secrets.token_hex(16)}; one of {len(key)} was given"
            )
    return tuple(dict.fromkeys(keys))


def run(
    load: Callable[[ServerSettings, Metrics], Service], settings: ServerSettings, device: str | None = None
) -> None:
    """Serve until the process is asked to end.

    Args:
        load: makes the service.
        settings: see there.
        device: that the service will be on, for `--engine ray`.

    Raises:
        ValueError: see `read_keys` and `run_replicas`.
        OSError: the address can't be listened on, or meshes can't be read.
    """
    keys, metrics = read_keys(settings.api_key_file), Metrics()
    if not keys and settings.host not in _LOOPBACK:
        logger.warning("whoever reaches %s may use this server: --api_key_file lets only some in", settings.host)
    if settings.engine == "ray":
        from vae_qwen3vl.serving.ray_replicas import run_replicas

        if not joins_a_cluster():  # else it is not here that somebody listens
            with listen(settings.host, settings.port) as listener:
                settings = replace(settings, port=listener.getsockname()[1])
        run_replicas(load, settings, keys, device)
        return
    keep_memory_level()
    gate = Gate(settings, keys, metrics)
    with listen(settings.host, settings.port) as listener:
        Server(load(settings, metrics), gate).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before anything slow begins."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"{host}:{port} can't be listened on: {error.strerror}; --port 0 takes a free one") from error
    return listener


class Server(uvicorn.Server):
    """Uvicorn, whose end begins with a refusal of what is new and waits for what runs."""

    def __init__(self, service: Service, gate: Gate) -> None:
        self._gate, self._close_at = gate, 0.0
        settings = gate.settings
        super().__init__(
            uvicorn.Config(
                make_app(service, gate),
                http=_connection_of(settings.idle_seconds),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=int(settings.idle_seconds) or 1,
                timeout_graceful_shutdown=int(settings.idle_seconds) or 1,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, and say where."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            logger.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end at the first signal; the second one ends at once."""
        if self._gate.closing:
            self.should_exit = self.force_exit = True
            return
        self._gate.closing = True
        self._close_at = time.monotonic() + self._gate.settings.shutdown_seconds
        logger.info("shutting down: %d requests are finished first", self._gate.running)

    async def on_tick(self, counter: int) -> bool:
        """Stop listening when nothing runs any more, or its time is over."""
        if self._gate.closing and (not self._gate.running or time.monotonic() > self._close_at):
            self.should_exit = True
        return await super().on_tick(counter)


def _connection_of(idle_seconds: float) -> type[H11Protocol]:
    """Return the class of a connection that may say nothing for so long."""

    class Connection(H11Protocol):
        """A connection that is closed where its client is silent, or doesn't take the end of an answer.

        Uvicorn bounds the time between two requests, but neither that of a request's head nor that of what is left
        to be sent.
        """

        _timer: asyncio.TimerHandle | None = None
        _was_idle = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._timer is not None:
                self._timer.cancel()

        def _look(self) -> None:
            """Close it where it had nothing to do now and half the time ago; again after half the time."""
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self._was_idle:
                self.transport.abort()
                return
            self._was_idle = idle
            self._timer = self.loop.call_later(idle_seconds / 2, self._look)

    return Connection
