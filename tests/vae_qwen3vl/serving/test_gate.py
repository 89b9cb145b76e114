"""What every request passes, before any application: keys, sizes, shutdown, time."""

from __future__ import annotations

import asyncio

import anyio
import httpx
import pytest
from starlette.responses import JSONResponse

from vae_qwen3vl.serving.gate import Gate, GateMiddleware
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.server import KEYS_VARIABLE, read_keys
from vae_qwen3vl.serving.settings import ServerSettings

KEYS = ("first-key-of-the-server", "second-key-of-the-server")


async def application(scope, receive, send) -> None:
    """Answers with the size of the body and whose it is; waits where it is told to."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await anyio.sleep(float(scope["query_string"] or 0))
    await JSONResponse({"size": size, "owner": scope["state"]["owner"]})(scope, receive, send)


def ask(gate: Gate, *requests: dict) -> list[httpx.Response]:
    """Send requests at once."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(GateMiddleware(application, gate))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await asyncio.gather(
                *(client.request(**{"method": "POST", "url": "/", **one}) for one in requests)
            )

    return asyncio.run(send())


def gate_of(keys=(), **settings) -> Gate:
    return Gate(ServerSettings(**settings), keys, Metrics())


def bearer(key: str) -> dict:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def test_keys_let_in_and_tell_their_holders_apart():
    first, second, wrong, none, basic = ask(
        gate_of(KEYS), *map(bearer, (*KEYS, "another")), {}, {"headers": {"Authorization": f"Basic {KEYS[0]}"}}
    )
    assert [answer.status_code for answer in (first, second, wrong, none, basic)] == [200, 200, 401, 401, 401]
    assert first.json()["owner"] != second.json()["owner"]
    assert KEYS[0] not in first.text
    assert none.json()["error"]["code"] == "invalid_api_key"
    assert none.headers["www-authenticate"] == "Bearer"


def test_health_is_open_and_numbers_are_not():
    statuses = [answer.status_code for answer in ask(gate_of(KEYS), {"url": "/health"}, {"url": "/metrics"})]
    assert statuses == [200, 401]


def test_a_server_that_ends_refuses_what_is_new_and_still_says_that_it_lives():
    gate = gate_of()
    gate.closing = True
    new, live, ready = ask(gate, {}, {"url": "/health/live"}, {"url": "/health"})
    assert [new.status_code, live.status_code, ready.status_code] == [503, 200, 503]
    assert new.headers["retry-after"] == "5"
    assert new.json()["error"]["code"] == "shutting_down"


def test_bodies_are_bounded_one_by_one_and_together():
    gate = gate_of(max_body=1, max_bodies=2)
    large, whole = bytes(2**20 + 1), bytes(2**20)
    assert [answer.status_code for answer in ask(gate, {"content": large}, {"content": whole})] == [413, 200]
    answers = ask(gate, *[{"content": whole, "url": "/?0.2"}] * 3)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    assert gate.bytes == gate.running == 0


def test_too_many_requests_at_a_time_are_429():
    answers = ask(gate_of(max_requests=2), *[{"url": "/?0.2"}] * 3)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429]
    assert "retry-after" in max(answers, key=lambda answer: answer.status_code).headers


def test_a_request_that_takes_too_long_is_504(monkeypatch):
    monkeypatch.setattr("vae_qwen3vl.serving.gate._GRACE_SECONDS", 0.0)
    (late,) = ask(gate_of(request_seconds=0.1), {"url": "/?30"})
    assert late.status_code == 504


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEYS[0]}\n\n  {KEYS[1]}\n")
    monkeypatch.setenv(KEYS_VARIABLE, f"{KEYS[1]},a-third-key-0123456789")
    assert set(read_keys(file)) == {*KEYS, "a-third-key-0123456789"}
    file.write_text("# none\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(file)
    file.write_text("short\n")
    with pytest.raises(ValueError, match=r"at least 16 characters .*; one of 5 was given"):
        read_keys(file)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="--max_bodies 1 must be at least --max_body 64"):
        ServerSettings(max_bodies=1)
    with pytest.raises(ValueError, match="--replicas needs --engine ray"):
        ServerSettings(replicas=2)
