"""What every request passes before the application: shutdown, keys, the size of bodies, time, counting.

An ASGI middleware. Knows nothing of shapes or chats.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Collection

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vae_qwen3vl.serving.errors import ApiError
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.settings import ServerSettings

LIVE = "/health/live"
HEALTH = ("/health", "/health/ready", LIVE)
"""Open without a key."""
_MIB = 2**20
_LINGER_SECONDS = 10.0
"""How long the rest of a body that is too large is still taken in, so that its sender reads why."""
_GRACE_SECONDS = 2.0
"""What the application has beyond a request's time to end it in its own words."""


class Gate:
    """The state of the gate, which a server and its application share.

    Args:
        settings: the limits.
        keys: API keys that are let in; none lets everybody in.
        metrics: where requests are counted.
    """

    def __init__(self, settings: ServerSettings, keys: Collection[str], metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.closing = False
        """Whether new requests are refused, since the server ends."""
        self.running = 0
        """Requests that are worked on."""
        self.bytes = 0
        """Bytes of their bodies."""
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, scope: Scope) -> ApiError | None:
        """Return why a request is refused by its head, if it is; and note whose it is."""
        headers = dict(scope["headers"])
        scope.setdefault("state", {})["owner"] = owner = self._owner(headers.get(b"authorization", b""))
        path, settings = scope["path"], self.settings
        if self.closing and path != LIVE:
            return ApiError(503, "the server is shutting down: ask another one, or come again soon", "shutting_down")
        if owner is None and path not in HEALTH:
            return ApiError(401, "give one of the server's keys: Authorization: Bearer KEY", "invalid_api_key")
        if self.running > settings.max_requests and path not in HEALTH:
            return ApiError(429, "too many requests at a time: come again in a moment", "too_many_requests")
        length = headers.get(b"content-length", b"0")
        return self._check_body(int(length) if length.isdigit() else 0, 0)

    def _check_body(self, size: int, taken: int) -> ApiError | None:
        """Return why a body of a size, of which so many bytes are counted already, is refused, if it is."""
        if size > self.settings.max_body * _MIB:
            return ApiError(
                413,
                f"the body is larger than {self.settings.max_body} MiB: send a smaller mesh, such as a binary glTF "
                "of fewer triangles, or its codes",
                "body_too_large",
            )
        if self.bytes - taken + size > self.settings.max_bodies * _MIB:
            return ApiError(429, "too much is being uploaded: come again in a moment", "too_many_uploads")
        return None

    def _owner(self, header: bytes) -> str | None:
        """Return who holds a key, as a name that doesn't tell it; None for no known key, "" where none is needed."""
        if not self._digests:
            return ""
        scheme, _, key = header.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        # All of them are compared, and in constant time.
        known = sum(hmac.compare_digest(given, digest) for digest in self._digests)
        return given.hex()[:16] if known and scheme.lower() == b"bearer" else None


class GateMiddleware:
    """Lets requests through a gate to the application."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        gate, started = self.gate, time.monotonic()
        passage = _Passage(gate, receive, send)
        gate.running += 1
        gate.metrics.running.inc()
        try:
            with anyio.move_on_after(gate.settings.request_seconds + _GRACE_SECONDS) as limit:
                refused = gate.check(scope)
                if refused is None:
                    await self.app(scope, passage.receive, passage.send)
                else:
                    await passage.linger(refused)
                    await refused.response()(scope, receive, passage.send)
            if limit.cancelled_caught and not passage.status:
                await passage.overdue().response()(scope, receive, passage.send)
        finally:
            gate.running -= 1
            gate.bytes -= passage.taken
            gate.metrics.running.dec()
            gate.metrics.body_bytes.set(gate.bytes)
            endpoint = getattr(scope.get("route"), "path", "other")
            gate.metrics.requests.labels(endpoint, passage.status or 500).inc()
            gate.metrics.seconds.labels(endpoint).observe(time.monotonic() - started)


class _Passage:
    """What goes back and forth of one request."""

    def __init__(self, gate: Gate, receive: Receive, send: Send) -> None:
        self._gate, self._receive, self._send = gate, receive, send
        self.taken = self.status = 0
        self._whole = False

    async def receive(self) -> Message:
        """Pass on a part of the body, counted. Raises an ApiError where it becomes too large."""
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            self.taken += size
            self._gate.bytes += size
            self._gate.metrics.body_bytes.set(self._gate.bytes)
            refused = self._gate._check_body(self.taken, self.taken)
            if refused is not None:
                await self.linger(refused)
                raise refused
        return message

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def linger(self, refused: ApiError) -> None:
        """Take in the rest of a body that is refused for its size, up to a size and a time, and forget it."""
        left = self._gate.settings.max_body * _MIB if refused.status_code in (413, 429) else 0
        with anyio.move_on_after(_LINGER_SECONDS):
            while left > 0 and not self._whole:
                message = await self._receive()
                left -= len(message.get("body", b""))
                self._whole = not message.get("more_body", False)

    def overdue(self) -> ApiError:
        """Return what is said where the time of a request is over."""
        seconds = self._gate.settings.request_seconds
        if not self._whole:
            return ApiError(408, f"the request did not arrive within {seconds:g} s", "request_timeout")
        return ApiError(504, f"the answer takes more than {seconds:g} s: ask for less at a time", "timeout")
