"""Addresses lead to what stands in them, or to hosts that are allowed, and nowhere else."""

from __future__ import annotations

import http.server
import threading

import pytest

from vae_qwen3vl.serving import links
from vae_qwen3vl.serving.links import TooManyBytesError, fetch, is_public, read_data_url


class Pages(http.server.BaseHTTPRequestHandler):
    """A few pages."""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1/secret")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "model/stl" if self.path == "/typed" else "text/plain")
        self.end_headers()
        self.wfile.write(bytes(5000) if self.path == "/large.glb" else self.path.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(url: str, *hosts: str) -> tuple[bytes, str]:
    return fetch(url, hosts, most_bytes=1000, seconds=5.0)


def test_hosts_must_be_named():
    with pytest.raises(ValueError, match="not fetched: send the mesh itself as a data: address"):
        get("https://example.org/a.glb")
    with pytest.raises(ValueError, match=r"addresses of other\.org are allowed here"):
        get("https://example.org/a.glb", "other.org")
    with pytest.raises(ValueError, match="not fetched"):
        get("https://example.org@evil.org/a.glb", "example.org")
    with pytest.raises(ValueError, match="user's name or password"):
        get("https://me:secret@example.org/a.glb", "example.org")


def test_private_networks_are_refused_even_where_the_host_is_named(site):
    with pytest.raises(ValueError, match="localhost lies in a private network"):
        get(f"{site}/a.glb", "localhost")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1%eth0",
                "0.0.0.0", "100.64.0.1", "224.0.0.1", "fd00::1"]
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def test_a_host_that_is_named_is_read_without_redirects_and_to_a_size(site, monkeypatch):
    monkeypatch.setattr(links, "is_public", lambda _: True)
    assert get(f"{site}/a%20b.glb", "localhost") == (b"/a%20b.glb", ".glb")
    assert get(f"{site}/typed", "localhost") == (b"/typed", ".stl")
    with pytest.raises(ValueError, match="answers 302; redirects are not followed"):
        get(f"{site}/away", "localhost")
    with pytest.raises(TooManyBytesError, match="more than 1,000 bytes"):
        get(f"{site}/large.glb", "localhost")
    with pytest.raises(ValueError, match="localhost can't be read"):
        get("http://localhost:9/a.glb", "localhost")


def test_data_addresses():
    assert read_data_url("data:model/obj;charset=utf-8;base64,diAw") == (b"v 0", ".obj")
    with pytest.raises(ValueError, match="must be base64"):
        read_data_url("data:model/obj,v 0")
    with pytest.raises(ValueError, match=r"one of model/gltf-binary, .*begins with 'data:image/png"):
        read_data_url("data:image/png;base64,AAAA")
    with pytest.raises(ValueError, match="damaged"):
        read_data_url("data:model/obj;base64,d\u00fc")
