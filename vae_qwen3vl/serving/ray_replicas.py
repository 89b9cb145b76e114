"""The same application as replicas of Ray Serve: on the GPUs of a machine, or the nodes of a cluster.

Knows Ray, which is imported when it is asked for. Each replica has a model, processes that read meshes and limits of
its own; Ray shares the requests among them, restarts what dies, and lets what runs finish.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable

import torch
from fastapi import FastAPI

from sdf_vqvae.utils.ray_pool import connect
from vae_qwen3vl.serving.app import make_app
from vae_qwen3vl.serving.gate import Gate
from vae_qwen3vl.serving.metrics import Metrics
from vae_qwen3vl.serving.service import Service
from vae_qwen3vl.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

_NAME = "vae-qwen3vl"
_OF_RAY = 1
"""Processors for Ray's own controller and proxy."""
_ENDS = (signal.SIGTERM, signal.SIGINT)


def run_replicas(load: Callable[[Metrics], Service], settings: ServerSettings, keys: tuple[str, ...]) -> None:
    """Serve until the process is asked to end.

    On a cluster that runs already (`RAY_ADDRESS`), its nodes need this package and the files that the options name.
    Otherwise one of this machine is started.

    Args:
        load: makes the service of a replica, in its process.
        settings: see there.
        keys: API keys that are let in.

    Raises:
        ImportError: Ray Serve is not installed.
        OSError: Ray can't be reached or started.
        RuntimeError: the replicas can't be started; Ray's log says why.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("--engine ray needs Ray Serve: pip install 'vae-qwen3vl[ray]'", name="ray") from error

    def application() -> FastAPI:  # called by each replica
        metrics = Metrics()
        return make_app(load(metrics), Gate(settings, keys, metrics))

    replica = serve.deployment(
        serve.ingress(application)(),
        name=_NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_requests,
        graceful_shutdown_timeout_s=settings.shutdown_seconds,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(torch.cuda.is_available())},
    )
    connect(settings.replicas + _OF_RAY)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in _ENDS}
    try:
        serve.run(replica.bind(), name=_NAME, route_prefix="/")
        logger.info("serving on http://%s:%d, replicas: %d", settings.host, settings.port, settings.replicas)
        ended.wait()
    finally:
        serve.shutdown()
        for number, handler in before.items():
            signal.signal(number, handler)
