"""Addresses of meshes: what stands in a `data:` address, and what hosts that are allowed give for an http(s) one.

No address is followed anywhere else: no redirects, no private networks, no other schemes, no proxies.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import time
import urllib.parse
from collections.abc import Collection
from pathlib import PurePosixPath

MEDIA_TYPES = {
    "model/gltf-binary": ".glb",
    "model/gltf+json": ".gltf",
    "model/obj": ".obj",
    "model/ply": ".ply",
    "model/stl": ".stl",
    "model/off": ".off",
    "application/x-shape-codes": ".safetensors",
}
"""Media type -> suffix. OBJ, STL and glTF have registered ones; the others are called after them."""
MEDIA_TYPE_OF = {suffix: kind for kind, suffix in MEDIA_TYPES.items()}
_PIECE = 2**16
_PORTS = {"http": 80, "https": 443}


class TooManyBytesError(ValueError):
    """What an address leads to is larger than it may be."""


def read_data_url(url: str) -> tuple[bytes, str]:
    """Return bytes and suffix of a `data:` address.

    Raises:
        ValueError: it is none, its media type is unknown, or its base64 is damaged.
    """
    head, comma, text = url.partition(",")
    kind, *parameters = head.removeprefix("data:").split(";")
    suffix = MEDIA_TYPES.get(kind.strip().lower())
    if not comma or suffix is None:
        raise ValueError(
            f"an address of a mesh begins with data:MEDIA/TYPE;base64, where the media type is one of "
            f"{', '.join(MEDIA_TYPES)}; this one begins with {url[:60]!r}"
        )
    if "base64" not in (parameter.strip().lower() for parameter in parameters):
        raise ValueError("the data of a mesh's address must be base64: data:model/gltf-binary;base64,...")
    try:
        return base64.b64decode(re.sub(r"\s", "", text), validate=True), suffix
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the base64 of a mesh's address is damaged: {error}") from error


def fetch(url: str, hosts: Collection[str], *, most_bytes: int, seconds: float) -> tuple[bytes, str]:
    """Return bytes and suffix of what an http(s) address gives.

    The host's name is resolved once, and that very address is connected to.

    Raises:
        ValueError: its host is not among `hosts` or lies in a private network, it gives no file of a known kind, too
            much, or nothing in time.
    """
    parts = urllib.parse.urlsplit(url)
    host, scheme = (parts.hostname or "").lower(), parts.scheme.lower()
    if scheme not in _PORTS or host not in hosts:
        allowed = f"http(s) addresses of {', '.join(sorted(hosts))} are" if hosts else "no other ones are"
        raise ValueError(
            f"addresses that begin with {url[:60]!r} are not fetched: send the mesh itself as a data: address, or "
            f"upload it to /v1/files ({allowed} allowed here)"
        )
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address with a user's name or password is not fetched")
    port, deadline = parts.port or _PORTS[scheme], time.monotonic() + seconds
    target = urllib.parse.urlunsplit(("", "", urllib.parse.quote(parts.path or "/", safe="/%"), parts.query, ""))
    try:
        with contextlib.ExitStack() as stack:
            connection = _connect(host, port, scheme, seconds)
            stack.callback(connection.close)
            connection.request("GET", target, headers={"Host": parts.netloc, "Accept-Encoding": "identity"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise ValueError(f"{host} answers {answer.status}; redirects are not followed")
            kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
            suffix = MEDIA_TYPES.get(kind) or PurePosixPath(parts.path).suffix.lower()
            return _read(answer, most_bytes, deadline), suffix
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"{host} can't be read: {error or type(error).__name__}") from error


def _connect(host: str, port: int, scheme: str, seconds: float) -> http.client.HTTPConnection:
    """Connect to the first public address of a host. Raises a ValueError where it has a private one."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not all(is_public(address) for address in addresses):
        raise ValueError(f"{host} lies in a private network, where nothing is fetched from")
    stream = socket.create_connection((addresses[0], port), timeout=seconds)
    if scheme == "https":
        stream = ssl.create_default_context().wrap_socket(stream, server_hostname=host)
    connection = http.client.HTTPConnection(host, port)
    connection.sock = stream
    return connection


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_global and not ip.is_multicast


def _read(answer: http.client.HTTPResponse, most_bytes: int, deadline: float) -> bytes:
    parts, left = [], most_bytes
    while part := answer.read1(_PIECE):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise TooManyBytesError(f"the file at this address has more than {most_bytes:,} bytes")
        if time.monotonic() > deadline:
            raise ValueError("the file at this address does not come in time")
    return b"".join(parts)
