"""The HTTP interface, in OpenAI's form: routes, streams, and errors. What they do is the service's business."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import PurePath
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes
from vae_qwen3vl.answer_confidence import four_digits
from vae_qwen3vl.generation.answer import Answer, Sampling
from vae_qwen3vl.serving.errors import ApiError
from vae_qwen3vl.serving.gate import Gate, GateMiddleware
from vae_qwen3vl.serving.links import MEDIA_TYPE_OF
from vae_qwen3vl.serving.requests import ChatRequest, DecodeRequest, EncodeRequest, SearchRequest
from vae_qwen3vl.serving.service import Service, codes_file
from vae_qwen3vl.serving.shapes import SUFFIXES

DEFAULT_TOKENS = 128
"""Of an answer, where a request says nothing."""
_OWNED_BY = "vae-qwen3vl"


def make_app(service: Service, gate: Gate, counted_by_all: Callable[[], Awaitable[bytes]] | None = None) -> FastAPI:
    """Return the application, which starts and closes the service.

    Args:
        service: does the work.
        gate: what requests pass first.
        counted_by_all: returns the page of numbers where others serve beside this process (default: its own numbers).
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_sync(service.start)
        app.state.started = int(time.time())
        yield
        await run_sync(service.close)

    # No pages that take their scripts from elsewhere; the description alone.
    app = FastAPI(title="vae-qwen3vl", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(GateMiddleware, gate=gate)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(Exception, _apologize)
    for path, answer, methods in (
        ("/health", _ready, ["GET"]),
        ("/health/ready", _ready, ["GET"]),
        ("/health/live", _live, ["GET"]),
        ("/metrics", _metrics, ["GET"]),
        ("/v1/models", _models, ["GET"]),
        ("/v1/models/{name:path}", _model, ["GET"]),
        ("/v1/chat/completions", _chat, ["POST"]),
        ("/v1/encode", _encode, ["POST"]),
        ("/v1/decode", _decode, ["POST"]),
        ("/v1/search", _search, ["POST"]),
        ("/v1/files", _add_file, ["POST"]),
        ("/v1/files", _list_files, ["GET"]),
        ("/v1/files/{name}", _get_file, ["GET"]),
        ("/v1/files/{name}", _delete_file, ["DELETE"]),
        ("/v1/files/{name}/content", _file_content, ["GET"]),
    ):
        app.add_api_route(path, answer, methods=methods, response_model=None)
    app.state.service, app.state.counted_by_all = service, counted_by_all
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


# -- errors ------------------------------------------------------------------------------------------------------


async def _refuse(_request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return error.response()
    assert isinstance(error, HTTPException)
    code = {404: "no_such_page", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    response = ApiError(error.status_code, f"{error.detail}; /openapi.json says what there is", code).response()
    response.headers.update(error.headers or {})
    return response


async def _refuse_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Of what may be one thing or another, the one that went furthest is what was meant.
    deepest = max(error.errors(), key=lambda one: len(one["loc"]))
    if deepest["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", "json_invalid").response()
    if deepest["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        return ApiError(400, "send JSON, with the header Content-Type: application/json", "no_json").response()
    where = [str(place) for place in deepest["loc"][1:] if place != "str" and "[" not in str(place)]
    message = f"{'.'.join(where) or 'the body'}: {deepest['msg']}"
    return ApiError(400, message, deepest["type"], where[0] if where else None).response()


async def _apologize(_request: Request, _error: Exception) -> Response:
    return ApiError(500, "something is wrong with the server; its log says what", "internal_error").response()


# -- the server --------------------------------------------------------------------------------------------------


async def _live() -> Response:
    """Say that the process runs."""
    return JSONResponse({"status": "ok"})


async def _ready(request: Request) -> Response:
    """Say that requests are answered; while the server shuts down the gate says 503."""
    return JSONResponse({"status": "ok", "model": _service(request).name})


async def _metrics(request: Request) -> Response:
    """Return what was counted, in Prometheus' form."""
    ask = request.app.state.counted_by_all
    page = _service(request).metrics.page() if ask is None else await ask()
    return PlainTextResponse(page, media_type="text/plain; version=0.0.4; charset=utf-8")


def _about_model(request: Request) -> dict[str, Any]:
    started = request.app.state.started
    return {"id": _service(request).name, "object": "model", "created": started, "owned_by": _OWNED_BY}


async def _models(request: Request) -> Response:
    """List the one model."""
    return JSONResponse({"object": "list", "data": [_about_model(request)]})


def _check_model(request: Request, name: str) -> None:
    here = _service(request).name
    if name != here:
        raise ApiError(404, f"there is no model {name[:80]!r} here, only {here!r}", "model_not_found", "model")


async def _model(request: Request, name: str) -> Response:
    """Say what there is to say of the model."""
    _check_model(request, name)
    return JSONResponse(_about_model(request))


# -- chats -------------------------------------------------------------------------------------------------------


async def _chat(request: Request, body: ChatRequest) -> Response:
    """Answer a chat about shapes, at once or as a stream."""
    service, started = _service(request), time.monotonic()
    settings = service.settings
    _check_model(request, body.model)
    messages, parts = body.conversation()
    tokens = body.max_completion_tokens or body.max_tokens or min(DEFAULT_TOKENS, settings.max_tokens)
    text = sum(len(part.get("text", "")) for message in messages for part in message["content"])
    for what, count, most, param in (
        ("messages", len(messages), settings.max_messages, "messages"),
        ("objects", len(parts), settings.max_objects, "messages"),
        ("characters of text", text, settings.max_text, "messages"),
        ("tokens to answer with", tokens, settings.max_tokens, "max_completion_tokens"),
    ):
        if count > most:
            raise ApiError(400, f"{count:,} {what} are more than the {most:,} that are taken here", "too_long", param)
    objects = [await service.codes_of(part, _owner(request), "messages") for part in parts]
    sampling = Sampling(
        max_new_tokens=tokens,
        temperature=body.temperature or 0.0,
        top_p=body.top_p or 1.0,
        stop=body.stops(),
        seed=body.seed,
    )
    if body.candidates:
        answer = await service.submit_best(messages, objects, sampling, body.candidates)
    else:
        answer = await service.submit(messages, objects, sampling)
    reply = _Reply(request, service, answer, body, started)
    if not body.stream:
        return await reply.whole()
    return StreamingResponse(reply.events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


class _Reply:
    """An answer on its way to the client."""

    def __init__(self, request: Request, service: Service, answer: Answer, body: ChatRequest, started: float) -> None:
        self.request, self.service, self.answer, self.body = request, service, answer, body
        self.started, self.overdue = started, False
        self.about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": service.name}

    async def whole(self) -> Response:
        """Return the answer when it is whole."""
        text = "".join([piece async for piece in self._pieces()])
        if self.answer.finish_reason == "cancelled":
            return self._too_late().response() if self.overdue else Response(status_code=499)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": self.answer.finish_reason, "logprobs": None}
        choice |= self._sureness()
        return JSONResponse({**self.about, "object": "chat.completion", "choices": [choice], "usage": self._usage()})

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answer as server-sent events."""
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for piece in self._pieces():
                yield self._chunk({"content": piece})
        except (RuntimeError, MemoryError):  # the head of the answer is sent: the client can only be told now
            yield _event(
                ApiError(500, "something is wrong with the server; its log says what", "internal_error").body()
            )
            raise
        if self.answer.finish_reason == "cancelled":
            if self.overdue:
                yield _event(self._too_late().body())
            return
        yield self._chunk({}, self.answer.finish_reason, **self._sureness())
        if self.body.stream_options is not None and self.body.stream_options.include_usage:
            yield _event({**self.about, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    async def _pieces(self) -> AsyncIterator[str]:
        """Yield the answer's text; it is cancelled where the client goes away or its time is over."""
        metrics, loop = self.service.metrics, asyncio.get_running_loop()
        left = self.started + self.service.settings.request_seconds - time.monotonic()
        timer = loop.call_later(left, self._end)
        watch = asyncio.create_task(self._end_with_client())
        metrics.chats.inc()
        first = True
        try:
            async for piece in self.answer:
                if first:
                    metrics.first_token.observe(time.monotonic() - self.started)
                    first = False
                yield piece
        finally:
            self.answer.cancel()
            timer.cancel()
            watch.cancel()
            metrics.chats.dec()
            metrics.prompt_tokens.inc(self.answer.prompt_tokens)
            metrics.completion_tokens.inc(self.answer.completion_tokens)

    def _end(self) -> None:
        self.overdue = True
        self.answer.cancel()

    async def _end_with_client(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self.answer.cancel()

    def _too_late(self) -> ApiError:
        seconds = self.service.settings.request_seconds
        return ApiError(504, f"the answer takes more than {seconds:g} s: ask for fewer tokens", "timeout")

    def _sureness(self) -> dict[str, float | None]:
        sure = {"mean_probability": self.answer.mean_probability, "confidence": self.answer.confidence}
        return {name: four_digits(value) for name, value in sure.items()}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: float | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None, **more}
        return _event({**self.about, "object": "chat.completion.chunk", "choices": [choice]})

    def _usage(self) -> dict[str, Any]:
        read, written = self.answer.prompt_tokens, self.answer.completion_tokens
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": self.answer.cached_tokens},
        }


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


# -- codes -------------------------------------------------------------------------------------------------------


async def _encode(request: Request, body: EncodeRequest) -> Response:
    """Return the codes of a mesh, as numbers and as an address that every other request takes."""
    service = _service(request)
    codes = await service.codes_of(body.input, _owner(request), "input")
    file = await service.aside(codes_file, codes)
    return JSONResponse(
        {
            "object": "shape.codes",
            "url": f"data:{MEDIA_TYPE_OF[CODES_SUFFIX]};base64,{base64.b64encode(file).decode()}",
            "codes": codes.codes.tolist(),
            "coords": codes.coords.tolist(),
            "latent_resolution": codes.latent_resolution,
            "data_resolution": codes.data_resolution,
            "center": codes.center,
            "scale": codes.scale,
            "up": codes.up,
            "up_from": codes.up_from,
            "vae_hash": codes.vae_hash,
        }
    )


async def _decode(request: Request, body: DecodeRequest) -> Response:
    """Return the mesh that codes stand for, as a file."""
    service, suffix = _service(request), f".{body.format}"
    codes = await service.codes_of(body.input, _owner(request), "input")
    file = await service.mesh_of(codes, suffix, body.voxel_resolution)
    headers = {"Content-Disposition": f'attachment; filename="shape{suffix}"'}
    return Response(file, media_type=MEDIA_TYPE_OF[suffix], headers=headers)


async def _search(request: Request, body: SearchRequest) -> Response:
    """Return the objects of the server's index that are most like words, or like a shape."""
    service = _service(request)
    asked: str | ShapeCodes
    if body.query is not None and body.input is None:
        asked = body.query
    elif body.input is not None and body.query is None:
        asked = await service.codes_of(body.input, _owner(request), "input")
    else:
        raise ApiError(400, "give either query (words) or input (a shape)", "invalid_request", "query")
    hits = await service.nearest(asked, body.k)
    return JSONResponse({"object": "list", "data": [{"object": "shape.hit", **asdict(hit)} for hit in hits]})


# -- files -------------------------------------------------------------------------------------------------------


async def _add_file(
    request: Request,
    file: Annotated[UploadFile, File(description="a mesh, or codes")],
    purpose: Annotated[str, Form(max_length=64)] = "user_data",
) -> Response:
    """Keep a mesh, or codes, for later requests."""
    name = PurePath(file.filename or "").name[-200:]
    if PurePath(name).suffix.lower() not in SUFFIXES:
        raise ApiError(400, f"the file's name must end in one of {', '.join(SUFFIXES)}", "unknown_format", "file")
    upload = await _service(request).keep(await file.read(), name, purpose, _owner(request))
    return JSONResponse(upload.to_json())


async def _list_files(request: Request) -> Response:
    """List the uploads of whoever asks."""
    service = _service(request)
    files = [upload.to_json() for upload in await service.aside(service.uploads.of_owner, _owner(request))]
    return JSONResponse({"object": "list", "data": files, "has_more": False})


async def _get_file(request: Request, name: str) -> Response:
    """Say what there is to say of an upload."""
    service = _service(request)
    return JSONResponse((await service.aside(service.upload, name, _owner(request))).to_json())


async def _delete_file(request: Request, name: str) -> Response:
    """Delete an upload."""
    service = _service(request)
    upload = await service.aside(service.upload, name, _owner(request))
    await service.aside(service.uploads.delete, upload)
    return JSONResponse({"id": upload.id, "object": "file", "deleted": True})


async def _file_content(request: Request, name: str) -> Response:
    """Return what was uploaded."""
    service = _service(request)
    upload = await service.aside(service.upload, name, _owner(request))
    content = await service.aside(service.uploads.content, upload)
    if content is None:
        raise ApiError(404, f"the upload {upload.id} was deleted", "no_such_file")
    headers = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    return Response(content, media_type="application/octet-stream", headers=headers)
