"""The server as its clients see it: OpenAI's own client, curl, and clients that misbehave."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch
import trimesh

from live_server import NAME, chat, mesh_part, text, until
from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.generation.answer import Sampling

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client(live) -> openai.OpenAI:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="not needed", max_retries=0) as client:
        yield client


def error_of(response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# -- the official client -----------------------------------------------------------------------------------------


def test_the_official_client_asks_about_a_mesh_at_once_and_as_a_stream(live, client, mug):
    messages = chat(mesh_part(mug), text("What is it?"))["messages"]
    whole = client.chat.completions.create(model=NAME, messages=messages, max_tokens=12)
    usage = {"include_usage": True}
    stream = list(
        client.chat.completions.create(
            model=NAME, messages=messages, max_completion_tokens=12, stream=True, stream_options=usage
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    codes = live.service.reader.read(mug, ".glb")
    here = [{"role": "user", "content": [{"type": "3d"}, {"type": "text", "text": "What is it?"}]}]
    assert said == whole.choices[0].message.content
    assert said == live.service.engine.submit(here, [codes], Sampling(max_new_tokens=12)).text()
    assert whole.choices[0].finish_reason in ("length", "stop")
    assert stream[-1].usage.total_tokens == whole.usage.total_tokens > 12
    assert stream[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert 0 < whole.choices[0].mean_probability <= 1 and whole.choices[0].confidence is None
    assert stream[-2].choices[0].mean_probability == pytest.approx(whole.choices[0].mean_probability, rel=1e-3)
    assert [model.id for model in client.models.list()] == [client.models.retrieve(NAME).id] == [NAME]


def test_several_meshes_several_turns_and_uploads(client, mug, chair):
    upload = client.files.create(file=("a chair.glb", chair), purpose="user_data")
    assert (upload.bytes, upload.filename) == (len(chair), "a chair.glb")
    shape = {"type": "file", "file": {"file_id": upload.id}}
    messages = chat(mesh_part(mug), shape, text("Which is larger?"))["messages"]
    first = client.chat.completions.create(model=NAME, messages=messages, max_tokens=4)
    messages += [first.choices[0].message.model_dump(exclude_unset=True), {"role": "user", "content": "Why?"}]
    second = client.chat.completions.create(model=NAME, messages=messages, max_tokens=4)
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert [file.id for file in client.files.list()] == [upload.id]
    assert client.files.content(upload.id).read() == chair
    assert client.files.delete(upload.id).deleted
    with pytest.raises(openai.NotFoundError, match="expired, was deleted or is another key's"):
        client.chat.completions.create(model=NAME, messages=messages)


def test_drawing_with_a_seed_is_repeatable(client):
    def draw(seed: int) -> str:
        answer = client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "Hi"}], temperature=1.5, seed=seed, max_tokens=8
        )
        return str(answer.choices[0].message.content)

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_what_a_client_leaves_open_is_as_by_default(live):
    ask = chat(text("Hi"), max_tokens=8)
    open_ones = dict.fromkeys(("temperature", "top_p", "seed", "stop", "n", "stream", "max_completion_tokens"))
    one, other = (live.client.post(CHAT, json=body).json()["choices"] for body in (ask, ask | open_ones))
    assert one == other


def test_stop_words_end_an_answer(client):
    ask = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stop = whole[4:6]
    cut = client.chat.completions.create(**ask, stop=[stop]).choices[0]
    assert (cut.finish_reason, cut.message.content) == ("stop", whole[: whole.index(stop)].rstrip())


def test_errors_reach_the_official_client_as_its_own(live, client, mug):
    def ask(*content, **more):
        return client.chat.completions.create(**{**chat(*content), **more})

    with pytest.raises(openai.NotFoundError, match="only 'tiny'"):
        ask(text("Hi"), model="gpt-4o")
    with pytest.raises(openai.UnprocessableEntityError, match="is not a readable GLB file"):
        ask(mesh_part(b"glTF"))
    with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content\.0: Input tag 'image_url'"):
        ask({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}})
    with pytest.raises(openai.BadRequestError, match="600 tokens to answer with are more than the 512"):
        ask(text("Hi"), max_tokens=600)
    with pytest.raises(openai.BadRequestError, match=r"tools: Extra inputs are not permitted"):
        ask(text("Hi"), tools=[])
    with live.told(max_body=1), pytest.raises(openai.APIStatusError, match="larger than 1 MiB") as refused:
        ask(mesh_part(bytes(3 * 2**20)))
    assert refused.value.status_code == 413


# -- curl --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_uploads_asks_and_rebuilds(live, repository, tmp_path):
    def curl(*words: str) -> bytes:
        command = ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", *words]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout

    lamp = repository / "examples" / "lamp.glb"
    name = json.loads(curl("-F", f"file=@{lamp}", f"{live.url}/v1/files"))["id"]
    shape = {"type": "file", "file": {"file_id": name}}
    json_type = ("-H", "Content-Type: application/json", "-d")
    body = json.dumps(chat(shape, text("What is it?"), max_tokens=3, stream=True))
    lines = curl("-N", f"{live.url}{CHAT}", *json_type, body).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(line.startswith("data: ") for line in lines[:-1])
    mesh = curl(f"{live.url}/v1/decode", *json_type, json.dumps({"input": shape, "format": "ply"}))
    assert len(trimesh.load(io.BytesIO(mesh), file_type="ply").faces) > 100
    live.client.delete(f"/v1/files/{name}")


def test_the_documents_snippets_run(live, repository, monkeypatch, capsys, tmp_path):
    page = (repository / "docs" / "server.md").read_text(encoding="utf-8").replace("http://127.0.0.1:8000", live.url)
    page = page.replace("smollm2-135m", NAME)
    monkeypatch.chdir(repository)
    (python,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(python, "server.md", "exec"), {})
    assert capsys.readouterr().out.strip()
    shell = next(block for block in re.findall(r"```bash\n(.*?)```", page, re.S) if "curl" in block)
    upload, ask, rebuild = re.split(r"\n(?=curl)", shell)
    name = json.loads(run_shell(upload))["id"]
    assert json.loads(run_shell(ask.replace("file-...", name)))["object"] == "chat.completion"
    run_shell(rebuild.replace("file-...", name).replace("rebuilt.glb", str(tmp_path / "rebuilt.glb")))
    assert len(trimesh.load(tmp_path / "rebuilt.glb", force="mesh").faces) > 100
    live.client.delete(f"/v1/files/{name}")


def run_shell(command: str) -> bytes:
    environment = {**os.environ, "no_proxy": "*"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=True, timeout=60, env=environment)
    return done.stdout


# -- codes -------------------------------------------------------------------------------------------------------


def test_codes_come_back_as_numbers_and_as_an_address_that_decodes_to_the_same_mesh(live, mug, tmp_path):
    encoded = live.client.post("/v1/encode", json={"input": mesh_part(mug, up="z")}).json()
    codes = live.service.reader.read(mug, ".glb", "z")
    assert encoded["codes"] == codes.codes.tolist()
    assert encoded["coords"] == codes.coords.tolist()
    assert (encoded["up"], encoded["up_from"], encoded["scale"]) == ("z", "--up", codes.scale)
    by_codes = {"type": "mesh_url", "mesh_url": {"url": encoded["url"]}}
    one, other = (
        live.client.post("/v1/decode", json={"input": part, "format": "obj"})
        for part in (by_codes, mesh_part(mug, up="z"))
    )
    assert one.status_code == 200
    assert one.headers["content-type"] == "model/obj"
    assert one.content == other.content
    (tmp_path / "c.safetensors").write_bytes(base64.b64decode(encoded["url"].partition(",")[2]))
    assert torch.equal(ShapeCodes.load(tmp_path / "c.safetensors").codes, codes.codes)
    finer = live.client.post("/v1/decode", json={"input": by_codes, "voxel_resolution": 512})
    assert finer.status_code == 422
    assert "512" in error_of(finer)["message"]


# -- refusals ----------------------------------------------------------------------------------------------------


def test_a_body_that_is_not_called_json_is_told_how(live):
    for content, kind in ((b"{}", "application/x-www-form-urlencoded"), (b'{"model": "tiny"}', ""), (b"", "")):
        response = live.client.post(CHAT, content=content, headers={"Content-Type": kind} if kind else {})
        assert response.status_code == 400
        assert "Content-Type: application/json" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v2", None, 404, "Not Found"),
        ("GET", CHAT, None, 405, "Method Not Allowed"),
        ("POST", CHAT, b"{", 400, "the body is no JSON"),
        ("POST", CHAT, b"[" * 100_000, 400, "body"),
        ("POST", CHAT, b"\xff", 400, "body"),
        ("POST", CHAT, b'{"model":"tiny","messages":[]}', 400, "messages: List should have at least 1 item"),
        ("POST", CHAT, b'{"model":"tiny","messages":[{"role":"tool","content":""}]}', 400, "messages.0.role"),
        ("POST", CHAT, b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}', 400, "content"),
        ("POST", CHAT, b'{"model":"tiny","messages":[{"role":"assistant","content":"x"}]}', 400, "must begin with"),
        ("POST", CHAT, b'{"model":"tiny","n":2,"messages":[{"role":"user","content":"x"}]}', 400, "n: "),
        ("POST", CHAT, b'{"model":"tiny","temperature":NaN,"messages":[{"role":"user","content":"x"}]}', 400, "temp"),
        ("POST", "/v1/encode", b'{"input":{"type":"text","text":"x"}}', 400, "input: Input tag 'text'"),
        ("POST", "/v1/encode", b'{"input":{"type":"mesh_url","mesh_url":{"url":"http://[::1"}}}', 422, "IPv6"),
        ("POST", "/v1/encode", b'{"input":{"type":"file","file":{"file_id":"../../etc/passwd"}}}', 404, "no upload"),
        ("GET", "/v1/files/file-0", None, 404, "there is no upload 'file-0'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_openais_form(live, method, path, body, status, said):
    response = live.client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert said in error_of(response)["message"]


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.org/a.glb",
        "file:///etc/passwd",
        "ftp://example.org/a.glb",
        "//example.org/a.glb",
        "data:text/html;base64,AAAA",
        "data:model/gltf-binary,AAAA",
        "data:model/gltf-binary;base64,A",
    ],
)
def test_addresses_are_refused(live, url):
    response = live.client.post("/v1/encode", json={"input": {"type": "mesh_url", "mesh_url": {"url": url}}})
    assert response.status_code == 422
    assert "mesh" in error_of(response)["message"]


def test_limits_of_a_chat_are_refusals(live, mug):
    many = [mesh_part(mug)] * 9
    for body, said in (
        (chat(*many), "9 objects are more than the 8"),
        (chat(text("x" * 40_000)), "40,000 characters of text"),
        (chat(text("x " * 600)), "doesn't fit into this model's 512"),
    ):
        response = live.client.post(CHAT, json=body)
        assert response.status_code == 400
        assert said in error_of(response)["message"]


def test_a_mesh_beyond_a_limit_is_413_with_the_remedy(live, chair):
    reader = live.service.reader
    before, reader.limits = reader.limits, type(reader.limits)(max_faces=5)
    try:
        response = live.client.post("/v1/encode", json={"input": mesh_part(chair, up="x")})
    finally:
        reader.limits = before
    assert (response.status_code, error_of(response)["code"]) == (413, "mesh_too_large")
    assert "simplify it" in error_of(response)["message"]


# -- load, and clients that go or stay -----------------------------------------------------------------------------


def test_what_doesnt_fit_the_queue_is_429_and_everything_else_is_answered(live):
    engine = live.service.engine
    before, engine.max_waiting = engine.max_waiting, 2
    try:
        with live.slowed(0.05), ThreadPoolExecutor(48) as pool:
            asked = [pool.submit(live.client.post, CHAT, json=chat(text("Hi"), max_tokens=6)) for _ in range(48)]
            answers = [one.result() for one in asked]
    finally:
        engine.max_waiting = before
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert error_of(refused)["code"] == "queue_full"
    bodies = [answer.json() for answer in answers if answer.status_code == 200]
    assert len({body["id"] for body in bodies}) == len(bodies)
    assert len({body["choices"][0]["message"]["content"] for body in bodies}) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_when_the_client_goes_its_chat_is_cancelled(live, stream):
    engine = live.service.engine
    request = json.dumps(chat(text("Hi"), max_tokens=400, stream=stream)).encode()
    host, port = live.url.removeprefix("http://").split(":")
    with live.slowed(0.05):
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
            until(lambda: engine.load().active)
        until(lambda: not engine.load().active, 10)  # 400 tokens would take 20 s at least


def test_time_is_limited(live):
    with live.slowed(0.1), live.told(request_seconds=0.5):
        whole = live.client.post(CHAT, json=chat(text("Hi"), max_tokens=100))
        stream = live.client.post(CHAT, json=chat(text("Hi"), max_tokens=100, stream=True)).text
    assert whole.status_code == 504
    assert "ask for fewer tokens" in error_of(whole)["message"]
    last = json.loads(stream.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["code"] == "timeout"


@pytest.mark.parametrize("begin", [b"", b"POST /v1/enc", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
def test_a_client_that_says_nothing_is_hung_up_on(live, begin):
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.settimeout(30)
        connection.sendall(begin)
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    assert time.monotonic() - started < 20


def test_a_body_that_never_ends_is_cut_off(live):
    host, port = live.url.removeprefix("http://").split(":")
    with live.told(request_seconds=0.2), socket.create_connection((host, int(port))) as connection:
        connection.settimeout(30)
        connection.sendall(b"POST /v1/encode HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(20).startswith(b"HTTP/1.1 408")
    until(lambda: live.gate.bytes == 0)


def test_chunked_bodies_are_counted_too(live):
    def chunks():
        for _ in range(40):
            yield bytes(2**16)

    with live.told(max_body=1):
        response = live.client.post("/v1/encode", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert error_of(response)["code"] == "body_too_large"
    until(lambda: live.gate.bytes == 0)


def test_health_and_numbers(live):
    assert live.client.get("/health").json() == {"status": "ok", "model": NAME}
    assert live.client.get("/health/live").status_code == 200
    page = live.client.get("/metrics").text
    assert 'vae_qwen3vl_requests_total{endpoint="/health",status="200"}' in page
    assert "process_resident_memory_bytes" in page
    threads = threading.active_count()
    assert threads < 60
