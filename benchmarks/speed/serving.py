"""How the server bears load, and whether it bears it for long.

python benchmarks/speed/serving.py --threads 2                 # clients of growing number, batching on and off
python benchmarks/speed/serving.py --soak 30 --name "soak"     # good, bad and slow clients, for minutes

Starts `vae-qwen3vl serve` with the default model on loopback. Load: each client asks again as soon as it is answered;
every chat is a stream about one of five objects, whose codes come with the request, and is answered greedily. Seconds
are those that clients see, from the request's first byte. Soak: beside good requests, damaged meshes and bodies,
clients that go in the middle, that send half a request and that read nothing; every request is accounted for, equal
ones must be answered equally, and the memory of the server and its processes is looked at every ten seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import collections
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sdf_vqvae.utils.measurements import measuring_parser, write_run

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"
OBJECTS = ("chair", "lamp", "mug", "plane", "rocket")
_SECONDS_TO_START = 600
_WATCHED = 10.0


@contextlib.contextmanager
def served(threads: int, *options: str) -> Iterator[tuple[str, int]]:
    """Run a server; yield its address and its process."""
    command = [sys.executable, "-m", "vae_qwen3vl", "serve", "--port", "0", "--model_name", "model", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    said = []
    try:
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"serving on (http://\S+)", line):
                break
        else:
            raise SystemExit("the server does not start:\n" + "".join(said[-20:]))
        subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)  # lest it waits for a reader
        yield found[1], server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(120)
        print(f"the server ended with exit code {code}", flush=True)


def megabytes(process: int, alone: bool = False) -> float:
    """Return the memory of a server and its processes, or of itself alone; what they share counts once."""
    total, left = 0.0, [process]
    while left:
        one = left.pop()
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.M)[1]) / 1024  # type: ignore[index]
            left += [] if alone else map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
    return total


def mesh_part(data: bytes, kind: str = "model/gltf-binary") -> dict[str, Any]:
    """Return a mesh as a part of a message."""
    return {"type": "mesh_url", "mesh_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def chat_about(part: Any, tokens: int, **more: Any) -> dict[str, Any]:
    """Return the body of a chat about an object."""
    content = [part, {"type": "text", "text": "Describe this 3D shape in one sentence."}]
    return {"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": tokens, **more}


def encoded_objects(url: str) -> list[dict[str, Any]]:
    """Return the example meshes as parts that hold their codes."""
    parts = []
    for name in OBJECTS:
        mesh = mesh_part((ROOT / "examples" / f"{name}.glb").read_bytes())
        answer = httpx.post(f"{url}/v1/encode", json={"input": mesh}, timeout=600, trust_env=False).raise_for_status()
        parts.append({"type": "mesh_url", "mesh_url": {"url": answer.json()["url"]}})
    return parts


# -- load --------------------------------------------------------------------------------------------------------


async def stream(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, float, float, str]:
    """Return status, seconds to the first words and to the end, and the text, of a chat as a stream."""
    started, first, text = time.perf_counter(), 0.0, ""
    async with client.stream("POST", CHAT, json={**body, "stream": True}) as answer:
        done = answer.status_code != 200
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                choices = json.loads(line[6:])["choices"]
                piece = choices[0]["delta"].get("content", "") if choices else ""
                first = first or (time.perf_counter() - started if piece else 0.0)
                text += piece
        assert done, "a stream ended without its mark"
        return answer.status_code, first, time.perf_counter() - started, text


async def load(url: str, parts: list[Any], clients: int, requests: int, tokens: int) -> dict[str, Any]:
    """Return what so many clients see, which ask as many requests together."""
    left = iter(range(requests))
    rows: list[tuple[int, float, float, str]] = []
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False, limits=limits) as client:

        async def ask() -> None:
            for number in left:
                rows.append(await stream(client, chat_about(parts[number % len(parts)], tokens)))

        started = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(clients)))
        seconds = time.perf_counter() - started
    good = [row for row in rows if row[0] == 200]
    return {
        "clients": clients,
        "requests": requests,
        "errors": dict(collections.Counter(str(row[0]) for row in rows if row[0] != 200)),
        "requests_per_second": round(len(good) / seconds, 3),
        "seconds_to_first_words": percentiles([row[1] for row in good]),
        "seconds_to_end": percentiles([row[2] for row in good]),
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99."""
    ranked = sorted(values)
    return {f"p{p}": round(ranked[min(len(ranked) - 1, len(ranked) * p // 100)], 3) for p in (50, 95, 99)}


def measured_load(options: argparse.Namespace) -> dict[str, Any]:
    """Return the numbers of all sizes, batching on and off."""
    runs = []
    for batching in (True, False):
        batch = "32" if batching else "1"
        with served(options.threads, "--max_batch", batch, *in_dtype(options)) as (url, process):
            parts = encoded_objects(url)
            asyncio.run(load(url, parts, 1, len(parts), options.tokens))  # warm
            for clients in options.clients:
                requests = max(options.requests, clients)
                numbers = asyncio.run(load(url, parts, clients, requests, options.tokens))
                runs.append({"batching": batching, **numbers, "megabytes": round(megabytes(process))})
                print(json.dumps(runs[-1]), flush=True)
                done = {"threads": options.threads, "tokens": options.tokens, "runs": runs}
                write_run(options, done | about_the_machine(options), _name(options))  # lest a stop lose it
    return done


# -- soak --------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Soak:
    """What clients have seen so far."""

    url: str
    parts: list[Any]
    mesh: bytes
    until: float
    asked: collections.Counter[str] = field(default_factory=collections.Counter)
    seen: collections.Counter[str] = field(default_factory=collections.Counter)
    answers: dict[str, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def expect(self, kind: str, status: int, *allowed: int) -> None:
        """Note what a request was answered; 429 and 503 are always allowed: come again."""
        self.seen[f"{kind} {status}"] += 1
        if status not in (*allowed, 429, 503):
            self.wrong.append(f"{kind}: {status}")

    def same(self, key: str, text: str) -> None:
        """Note an answer that must be the same each time."""
        if self.answers.setdefault(key, text) != text:
            self.wrong.append(f"{key}: {text!r} after {self.answers[key]!r}")


async def good_chat(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Ask about an object, and get the answer once."""
    place = chance.randrange(len(soak.parts))
    answer = await client.post(CHAT, json=chat_about(soak.parts[place], 6))
    soak.expect("chat", answer.status_code, 200)
    if answer.status_code == 200:
        body = answer.json()
        if body["id"] in soak.ids:
            soak.wrong.append(f"{body['id']} came twice")
        soak.ids.add(body["id"])
        soak.same(f"object {place}", body["choices"][0]["message"]["content"])


async def good_stream(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """The same as a stream."""
    place = chance.randrange(len(soak.parts))
    status, _, _, text = await stream(client, chat_about(soak.parts[place], 6))
    soak.expect("stream", status, 200)
    if status == 200:
        soak.same(f"object {place}", text)


async def upload(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Upload a mesh that is new, encode and delete it."""
    data = soak.mesh + chance.randbytes(4)  # behind the end that the header gives
    answer = await client.post("/v1/files", files={"file": ("mug.glb", data)})
    soak.expect("upload", answer.status_code, 200)
    if answer.status_code == 200:
        name = answer.json()["id"]
        answer = await client.post("/v1/encode", json={"input": {"type": "file", "file": {"file_id": name}}})
        soak.expect("encode", answer.status_code, 200)
        if answer.status_code == 200:
            soak.same("codes", json.dumps(answer.json()["codes"]))
        soak.expect("delete", (await client.delete(f"/v1/files/{name}")).status_code, 200)


async def rebuild(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Decode an object."""
    answer = await client.post("/v1/decode", json={"input": soak.parts[2], "format": "stl"})
    soak.expect("decode", answer.status_code, 200)


async def bad_mesh(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Send a damaged mesh."""
    data = bytearray(soak.mesh)
    for _ in range(chance.randrange(1, 9)):
        data[chance.randrange(2000)] ^= 1 << chance.randrange(8)
    answer = await client.post("/v1/encode", json={"input": mesh_part(bytes(data[: chance.randrange(len(data))]))})
    soak.expect("damaged mesh", answer.status_code, 200, 413, 422)


async def bad_body(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Send nonsense."""
    body = chance.choice([b"{", b"[" * 5000, chance.randbytes(200), b'{"model": "model", "messages": [{}]}'])
    answer = await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    soak.expect("nonsense", answer.status_code, 400)


async def go(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Go away in the middle of a stream."""
    body = chat_about(soak.parts[chance.randrange(len(soak.parts))], 200, stream=True)
    async with client.stream("POST", CHAT, json=body) as answer:
        soak.expect("gone", answer.status_code, 200)
        async for _ in answer.aiter_lines():
            break


async def stall(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Send half a request and wait until the server hangs up, or close one half of the connection."""
    host, port = soak.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode()
    )
    writer.write(head[: chance.randrange(len(head) - 3)])
    if chance.random() < 0.5:
        writer.write_eof()
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 120)
    writer.close()
    soak.seen["stalled and hung up on"] += 1


async def read_nothing(soak: Soak, client: httpx.AsyncClient, chance: random.Random) -> None:
    """Ask for a large answer and don't read it."""
    host, port = soak.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    body = json.dumps({"input": soak.parts[2], "format": "obj"}).encode()
    writer.write(f"POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode())
    writer.write(b"Content-Type: application/json\r\n\r\n" + body)
    await asyncio.sleep(30)
    writer.transport.abort()
    soak.seen["read nothing"] += 1


KINDS: dict[Callable[[Soak, httpx.AsyncClient, random.Random], Awaitable[None]], int] = {
    good_chat: 30, good_stream: 30, upload: 6, rebuild: 2, bad_mesh: 10, bad_body: 10, go: 8, stall: 3,
    read_nothing: 1,
}  # fmt: skip
"""What clients do, and how often."""


async def soaked(soak: Soak, process: int, clients: int) -> list[tuple[float, float, float]]:
    """Let clients do what they do until the time is over; return seconds, and the memory of all and of the server."""
    memory: list[tuple[float, float, float]] = []
    began = time.time()

    async def be(number: int) -> None:
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=soak.url, timeout=600, trust_env=False) as client:
            while time.time() < soak.until:
                (work,) = chance.choices(list(KINDS), list(KINDS.values()))
                soak.asked[work.__name__] += 1
                await work(soak, client, chance)
                soak.seen[f"done {work.__name__}"] += 1

    async def watch() -> None:
        while time.time() < soak.until:
            memory.append((time.time() - began, megabytes(process), megabytes(process, alone=True)))
            await asyncio.sleep(_WATCHED)

    await asyncio.gather(watch(), *(be(number) for number in range(clients)))
    return memory


def measured_soak(options: argparse.Namespace) -> dict[str, Any]:
    """Return the account of a soak."""
    with served(options.threads, "--idle_seconds", "15", *in_dtype(options)) as (url, process):
        soak = Soak(
            url=url,
            parts=encoded_objects(url),
            mesh=(ROOT / "examples" / "mug.glb").read_bytes(),
            until=time.time() + 60 * options.soak,
        )
        memory = asyncio.run(soaked(soak, process, options.clients[0]))
        page = httpx.get(f"{url}/metrics", timeout=60, trust_env=False).text
        time.sleep(2 * _WATCHED)
        at_rest = [round(megabytes(process, alone)) for alone in (False, True)]
        lost = {name: soak.asked[name] - soak.seen[f"done {name}"] for name in soak.asked}
    thirds = [[row for row in memory if part <= 3 * row[0] / memory[-1][0] < part + 1] for part in range(3)]
    counted = re.findall(r'requests_total\{endpoint="([^"]+)",status="(\d+)"\} ([\d.]+)', page)
    return {
        "minutes": options.soak,
        "threads": options.threads,
        "clients": options.clients[0],
        "asked": dict(soak.asked),
        "not_answered": {name: count for name, count in lost.items() if count},
        "seen": {name: count for name, count in sorted(soak.seen.items()) if not name.startswith("done ")},
        "counted_by_the_server": {f"{path} {status}": int(float(count)) for path, status, count in counted},
        "wrong": collections.Counter(soak.wrong).most_common(20),
        "chats_with_an_id_of_their_own": len(soak.ids),
        "megabytes": {
            name: {
                "median of each third": [
                    round(statistics.median(row[column] for row in part)) for part in thirds if part
                ],
                "largest": round(max(row[column] for row in memory)),
                "at rest afterwards": at_rest[column - 1],
                "every minute": [round(row[column]) for row in memory[:: round(60 / _WATCHED)]],
            }
            for column, name in ((1, "all processes"), (2, "the server's own"))
        },
    }


def about_the_machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what else the machine did."""
    return {"beside": options.beside, "load_before": options.load_before}


def in_dtype(options: argparse.Namespace) -> list[str]:
    """Return the server's option of the dtype, where one was asked for."""
    return ["--dtype", options.dtype] if options.dtype else []


def _name(options: argparse.Namespace) -> str | None:
    return f"soak{', ' * bool(options.dtype)}{options.dtype or ''}" if options.soak else None


def main() -> None:
    """Measure load, or soak."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--threads", type=int, default=2, help="threads of the server")
    parser.add_argument("--clients", type=int, nargs="+", help="numbers of clients (1 8 32 128; soak: 8)")
    parser.add_argument(
        "--requests", type=int, default=64, help="requests of each number, at least one a client (64)"
    )
    parser.add_argument("--tokens", type=int, default=24, help="of an answer, at most (24)")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="good, bad and slow clients for so long")
    parser.add_argument("--dtype", help="of the language model (default: the server's)")
    parser.add_argument("--beside", default="nothing else", help="what ran on the machine beside it, for the record")
    options = parser.parse_args()
    options.clients = options.clients or ([8] if options.soak else [1, 8, 32, 128])
    options.load_before = round(os.getloadavg()[0], 2)
    numbers = measured_soak(options) if options.soak else measured_load(options)
    numbers |= about_the_machine(options)
    print(json.dumps(numbers, indent=1))
    print(write_run(options, numbers, _name(options)))


if __name__ == "__main__":
    main()
