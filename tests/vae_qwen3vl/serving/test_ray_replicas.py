"""The program as replicas of Ray Serve: one application, whichever of them answers, and an end that loses nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import httpx
import openai
import psutil
import pytest

from live_server import KEY, NAME, chat, mesh_part, program, text, until
from vae_qwen3vl.commands.main import main
from vae_qwen3vl.serving.metrics import Metrics, page_of_all

LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


needs_ray_serve = pytest.mark.skipif(
    not all(map(find_spec, ("ray", "grpc"))), reason="Ray Serve is not installed: pip install 'vae-qwen3vl[ray]'"
)


@needs_ray_serve
@pytest.mark.slow
def test_two_replicas_are_one_server_and_finish_what_runs(tiny_folder, tmp_path, mug, repository):
    with program(tiny_folder, tmp_path, "--engine", "ray", "--replicas", "2") as (server, client):
        answers_in_openais_form(client, mug)
        answers_curl(client, repository / "examples" / "mug.glb")
        finds_an_upload_whichever_replica_answers(client, mug)
        refuses_as_one_process_does(client)
        stops_writing_when_the_client_goes_away(client)
        processes = psutil.Process(server.pid).children(recursive=True)
        listens = [one for each in processes for one in each.net_connections("tcp") if one.status == "LISTEN"]
        # Ray Serve has replicas speak with each other through a port that is open, and asks for a token there.
        assert len([one for one in listens if one.laddr.ip not in LOOPBACK]) <= 2 < len(listens)
        finishes_what_runs(server, client)
        assert not psutil.wait_procs(processes, timeout=20)[1]
    log = (tmp_path / "log").read_text()
    own = ("INFO serving on ", "INFO shutting down")  # Ray may say something at its end, too
    said = [line for line in log.splitlines() if line.startswith(own)]
    assert len(said) == 2, log
    assert said[0].startswith(own[0]) and said[1].startswith(own[1]), log


def answers_in_openais_form(client, mug):
    own = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key=KEY, http_client=httpx.Client(trust_env=False))
    assert [model.id for model in own.models.list()] == [NAME]
    ask = chat(mesh_part(mug), text("What is it?"), max_tokens=8)
    whole = own.chat.completions.create(**ask)
    assert whole.usage.completion_tokens == 8
    pieces = [chunk.choices[0].delta.content or "" for chunk in own.chat.completions.create(**ask, stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 4


def answers_curl(client, mesh):
    curl = shutil.which("curl")
    if curl is None:
        return
    command = [curl, "-s", "--noproxy", "*", "-H", f"Authorization: Bearer {KEY}"]
    said = subprocess.run([*command, "-F", f"file=@{mesh}", f"{client.base_url}/v1/files"], capture_output=True)
    assert re.search(rb'"id":"file-[0-9a-f]{24}","filename":"mug.glb"', said.stdout)


def finds_an_upload_whichever_replica_answers(client, mug):
    sent = client.post("/v1/files", files={"file": ("mug.glb", mug)}).json()["id"]
    ask = chat({"type": "file", "file": {"file_id": sent}}, text("What is it?"), max_tokens=8)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/chat/completions", json=ask), range(16)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in answers}) == 1
    page = client.get("/metrics").text
    chats = re.findall(r'requests_total{endpoint="/v1/chat/completions",replica="(.+)",status="200"} (\S+)', page)
    assert len(dict(chats)) == 2, "both have answered"
    assert sum(float(count) for _, count in chats) == 18
    assert page.count("# TYPE vae_qwen3vl_requests_total counter") == 1


def refuses_as_one_process_does(client):
    assert httpx.get(client.base_url.join("/v1/models"), trust_env=False).status_code == 401
    for request, status, code in (
        ({"url": "/v1/chat/completions", "content": b"{"}, 400, "json_invalid"),
        ({"url": "/v1/chat/completions", "json": chat(text("Hi"), model="other")}, 404, "model_not_found"),
        ({"url": "/v1/encode", "json": {"input": mesh_part(b"no mesh")}}, 422, "mesh_unreadable"),
        ({"url": "/v1/files", "files": {"file": ("big.glb", bytes(65 << 20))}}, 413, "body_too_large"),
    ):
        answer = client.post(**request, headers={"Content-Type": "application/json"} if "content" in request else {})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def stops_writing_when_the_client_goes_away(client):
    long = chat(text("Hi"), max_tokens=400, stream=True)
    before = written(client)
    with client.stream("POST", "/v1/chat/completions", json=long) as stream:
        assert next(stream.iter_lines()).startswith("data: ")
    until(
        lambda: all(
            float(count) == 0 for count in re.findall(r"chats_running{.+} (\S+)", client.get("/metrics").text)
        )
    )
    assert written(client) - before < 400


def written(client):
    return sum(map(float, re.findall(r"completion_tokens_total{.+} (\S+)", client.get("/metrics").text)))


def finishes_what_runs(server, client):
    long = chat(text("Hi"), max_tokens=400)
    with ThreadPoolExecutor(16) as pool:
        running = [pool.submit(client.post, "/v1/chat/completions", json=long) for _ in range(16)]
        until(lambda: re.search(r"chats_running{.+} [1-9]", client.get("/metrics").text))
        os.kill(server.pid, signal.SIGTERM)
        refused, deadline = set(), time.monotonic() + 30
        while not all(one.done() for one in running) and time.monotonic() < deadline:
            refused.add(client.get("/v1/models").status_code)
        answers = [one.result() for one in running]
    assert 503 in refused
    assert refused <= {200, 503}
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {400}
    assert server.wait(60) == 0


def test_what_ray_cant_do_is_one_line(capsys):
    assert main(["serve", "--engine", "ray", "--device", "cuda:1"]) == 2
    assert "Ray gives each replica its GPU" in capsys.readouterr().err


def test_the_numbers_of_several_stand_in_one_page():
    pages = {}
    for name, count in (("a", 1), ("b", 2)):
        metrics = Metrics()
        metrics.requests.labels("/health", 200).inc(count)
        metrics.seconds.labels("/health").observe(count)
        pages[name] = metrics.page()
    page = page_of_all(pages).decode()
    assert 'vae_qwen3vl_requests_total{endpoint="/health",replica="a",status="200"} 1.0' in page
    assert 'vae_qwen3vl_requests_total{endpoint="/health",replica="b",status="200"} 2.0' in page
    assert 'vae_qwen3vl_request_seconds_bucket{endpoint="/health",le="1.0",replica="a"} 1.0' in page
    assert page.count("# TYPE vae_qwen3vl_request_seconds histogram") == 1
