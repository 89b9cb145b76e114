"""The page on a port of this machine, until it is interrupted; and which examples it offers."""

from __future__ import annotations

import socket as sockets
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from sdf_vqvae.geometry.formats.registry import READABLE
from vae_qwen3vl.page import ASSETS

if TYPE_CHECKING:
    from fastapi import FastAPI

_MOST_EXAMPLES = 24
_SECONDS_TO_START, _SECONDS_TO_FINISH = 1, 5


def example_meshes(folder: Path | None = None) -> list[Path]:
    """Return the meshes directly in a folder, by name; of our own where none is given.

    Raises:
        ValueError: there is no such folder, or no mesh in it.
    """
    where = ASSETS / "examples" if folder is None else folder
    if folder is not None and not where.is_dir():
        raise ValueError(f"--examples {folder} is not a folder")
    meshes = sorted(path for path in where.glob("*") if path.suffix.lower() in READABLE and path.is_file())
    if folder is not None and not meshes:
        raise ValueError(f"--examples {folder} holds no mesh ({', '.join(READABLE)})")
    return meshes[:_MOST_EXAMPLES]


def listen(host: str, port: int) -> sockets.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        ValueError: the port can't be had.
    """
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    try:
        return sockets.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ValueError(f"{host}:{port} can't be listened on ({error}): choose another --port") from error


def address_of(socket: sockets.socket) -> str:
    """Return what to type into a browser on this machine."""
    host, port = socket.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def serve(app: FastAPI, socket: sockets.socket, *, open_browser: bool = False, verbose: bool = False) -> None:
    """Serve an application until the process is interrupted or terminated.

    Args:
        app: the page.
        socket: listens already.
        open_browser: open the page in this machine's browser.
        verbose: log every request.
    """
    import uvicorn

    level = "info" if verbose else "warning"
    config = uvicorn.Config(app, log_level=level, timeout_graceful_shutdown=_SECONDS_TO_FINISH)
    if open_browser:
        threading.Timer(_SECONDS_TO_START, webbrowser.open, (address_of(socket),)).start()
    uvicorn.Server(config).run(sockets=[socket])
