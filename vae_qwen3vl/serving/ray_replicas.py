"""The same application as replicas of Ray Serve: on the GPUs of a machine, or the nodes of a cluster.

Knows Ray, which is imported when it is asked for. Each replica has a model, processes that read meshes and limits of
its own; Ray shares the requests among them and restarts what dies. What concerns all of them at once (the end, and
what was counted) is asked of each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from sdf_vqvae.utils.ray_pool import connect, imported_ray, joins_a_cluster
from sdf_vqvae.utils.runtime import keep_memory_level
from vae_qwen3vl.serving.app import make_app
from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.metrics import Metrics, page_of_all
from vae_qwen3vl.serving.service import Service
from vae_qwen3vl.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_NAME = "vae-qwen3vl"
_ENDS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_SAY = 10.0
"""What replicas may take to answer what all are asked; one that does not is left out."""
_LOUD = ("ray", "ray.serve")


class Replica:
    """One of the processes.

    Args:
        load: makes its service.
        settings: the server's.
        keys: API keys that are let in.
    """

    def __init__(
        self, load: Callable[[ServerSettings, Metrics], Service], settings: ServerSettings, keys: tuple[str, ...]
    ) -> None:
        self._metrics = Metrics()
        self._gate = Gate(settings, keys, self._metrics)
        keep_memory_level()
        self._service = load(settings, self._metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray's name for it
        return make_app(self._service, self._gate, self._counted_by_all)

    def close(self) -> int:
        """Refuse what is new, and return how many requests run."""
        self._gate.closing = True
        return self._gate.running

    def counted(self) -> tuple[str, bytes]:
        """Return the replica's name and what it counted."""
        from ray import serve

        return serve.get_replica_context().replica_id.unique_id, self._metrics.page()

    async def _counted_by_all(self) -> bytes:
        from ray import serve

        answers = serve.get_deployment_handle(_NAME, _NAME).broadcast("counted")
        pages = await answers.results_async(timeout_s=_SECONDS_TO_SAY, return_exceptions=True)
        return page_of_all(dict(page for page in pages if not isinstance(page, BaseException)))


def run_replicas(
    load: Callable[[ServerSettings, Metrics], Service],
    settings: ServerSettings,
    keys: tuple[str, ...],
    device: str | None = None,
) -> None:
    """Serve until the process is asked to end: what runs is finished first, unless it is asked again.

    On a cluster that runs already (`RAY_ADDRESS`), its nodes need this package and the files that the options name.
    Otherwise one of this machine is started.

    Args:
        load: makes the service of a replica, in its process.
        settings: see there.
        keys: API keys that are let in.
        device: of the models; by default a GPU for each replica where there are any.

    Raises:
        ImportError: Ray Serve is not installed.
        OSError: Ray can't be reached or started, or the replicas can't; Ray's log says why.
        ValueError: there are fewer GPUs than replicas, or the device is one that Ray can't choose.
    """
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device {device}: Ray gives each replica its GPU; say cuda, or cpu")
    ray = imported_ray()
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("--engine ray needs Ray Serve: pip install 'vae-qwen3vl[ray]'", name="ray") from error
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
    with contextlib.ExitStack() as after:
        if joins_a_cluster():
            if settings.replicas > 1 and settings.files_dir is None:
                raise ValueError("--replicas on a cluster needs --files_dir, a folder that all its nodes see")
            connect(settings.replicas)
            ran = bool(serve.status().proxies)
            handle = _start(load, settings, keys, device, 1)
            where = "where this cluster's Ray Serve listens already" if ran else f"on {_address(settings)}"
            again = _wait_for_the_end(handle, settings, where)
            serve.delete(_NAME, _blocking=not again)
            if not ran:
                serve.shutdown()
        else:
            if settings.files_dir is None:
                folder = after.enter_context(tempfile.TemporaryDirectory(prefix="uploads-"))
                settings = replace(settings, files_dir=Path(folder))
            processors = max(1, (os.cpu_count() or 1) // settings.replicas)
            after.callback(ray.shutdown)
            connect(processors * settings.replicas)
            handle = _start(load, settings, keys, device, processors)
            _wait_for_the_end(handle, settings, f"on {_address(settings)}")


def _start(
    load: Callable[[ServerSettings, Metrics], Service],
    settings: ServerSettings,
    keys: tuple[str, ...],
    device: str | None,
    processors: int,
) -> Any:
    """Start the replicas, each with so many processors, and return what all of them are asked by."""
    import ray
    from ray import serve

    gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
    if 0 < gpus < settings.replicas:
        raise ValueError(f"--replicas {settings.replicas}: there are {gpus} GPUs; ask for fewer, or --device cpu")
    replica = serve.deployment(
        serve.ingress()(Replica),
        name=_NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.max_requests,  # so that the gate is what refuses, and with a reason
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        ray_actor_options={"num_cpus": processors, "num_gpus": min(gpus, 1)},
    )
    silence = int(settings.idle_seconds) or 1
    serve.start(http_options={"host": settings.host, "port": settings.port, "keep_alive_timeout_s": silence})
    try:
        handle = serve.run(replica.bind(load, settings, keys), name=_NAME, route_prefix="/")
    except RuntimeError as error:
        about = serve.status().applications[_NAME].deployments[_NAME].message  # its last line is the replica's error
        raise OSError(f"the replicas can't be started: {about.strip().splitlines()[-1]}") from error
    handle.broadcast("counted").results(timeout_s=_SECONDS_TO_SAY)  # so that asking works while all ends, too
    return handle


def _address(settings: ServerSettings) -> str:
    return f"http://{settings.host}:{settings.port}"


def _wait_for_the_end(handle: Any, settings: ServerSettings, where: str) -> bool:
    """Say where it serves, and wait until the process is asked to end, and for what runs then.

    Returns:
        Whether it was asked again meanwhile.
    """
    asked, again = threading.Event(), threading.Event()

    def note(*_: Any) -> None:
        (again if asked.is_set() else asked).set()

    before = {number: signal.signal(number, note) for number in _ENDS}
    try:
        logger.info("serving %s, replicas: %d", where, settings.replicas)
        asked.wait()
        deadline = time.monotonic() + settings.shutdown_seconds
        logger.info("shutting down: %d requests are finished first", _closed(handle))
        while _closed(handle) and time.monotonic() < deadline and not again.wait(0.1):
            pass
        return again.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _closed(handle: Any) -> int:
    """Have all replicas refuse what is new, and return how many requests run in them."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        running = handle.broadcast("close").results(timeout_s=_SECONDS_TO_SAY, return_exceptions=True)
    except TimeoutError:
        return 1  # whoever has no time to say is at work
    except (RayError, RayServeException):
        return 0
    return sum(count for count in running if isinstance(count, int))
