"""Workers on a Ray cluster. Knows Ray, which is imported only when a pool is made."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from typing import Any

from sdf_vqvae.utils.workers import Event, attempt, prepare

logger = logging.getLogger(__name__)

_OF_OWN_CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray listen on the loopback interface alone
    "RAY_ENABLE_AUTO_CONNECT": "0",  # when it has ended, none is started by what still asks for it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # it doesn't announce its future
    "RAY_DEDUP_LOGS": "0",
}
"""Settings of a cluster that is started here. Ray reads some of them when it is imported."""


class RayPool:
    """Actors with a CPU each, and with an even share of the GPUs where the devices are GPUs.

    On a cluster that runs already (`RAY_ADDRESS`), its nodes need this package, and the files that the items name at
    the same place. Otherwise a cluster of this machine is started, without dashboard and on the loopback interface.

    Raises:
        ImportError: Ray is not installed.
        ValueError: the cluster has too few GPUs.
    """

    def __init__(self, make_worker: Any, workers: int, devices: tuple[str, ...]) -> None:
        self._ray = ray = imported_ray()
        self._started = not ray.is_initialized()
        if self._started:
            connect(workers)
        self._make_worker = ray.put(make_worker)
        on_gpu = devices[0].startswith("cuda")
        self._gpus = min(1.0, math.floor(1e4 * len(devices) / workers) / 1e4) if on_gpu else 0.0
        present = ray.cluster_resources().get("GPU", 0)
        if on_gpu and present < len(devices):
            raise ValueError(f"{len(devices)} GPUs were asked for, but the Ray cluster has {present:g}")
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, int] = {}

    def start(self, worker: int) -> None:
        """Start an actor. Where the cluster is busy, it waits for a place while others work."""
        # Ray sets CUDA_VISIBLE_DEVICES, so that each actor's GPU is the first it sees.
        actor = self._ray.remote(_Worker).options(num_cpus=1, num_gpus=self._gpus, max_restarts=0)
        self._actors[worker] = actor.remote(self._make_worker, "cuda" if self._gpus else "cpu")
        self._waiting[self._actors[worker].ready.remote()] = worker

    def give(self, worker: int, item: Any) -> None:
        """Hand an item to an actor."""
        self._waiting[self._actors[worker].work.remote(item)] = worker

    def events(self) -> list[Event]:
        """Wait until an actor has something to say, or is lost with its process or its node."""
        over, _ = self._ray.wait(list(self._waiting), num_returns=1)
        return [self._event(self._waiting.pop(reference), reference) for reference in over]

    def _event(self, worker: int, reference: Any) -> Event:
        try:
            kind, payload = self._ray.get(reference)
        except self._ray.exceptions.RayActorError:
            kind, payload = "died", "its actor was lost"
        except self._ray.exceptions.RayTaskError as error:  # a defect, with its traceback
            logger.error("%s", error)
            kind, payload = "died", type(error.cause).__name__
            self._ray.kill(self._actors[worker])
        return Event(worker=worker, kind=kind, payload=payload)

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        for actor in self._actors.values():
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)
        self._actors.clear()
        if self._started:
            self._ray.shutdown()


def joins_a_cluster() -> bool:
    """Return whether `connect` finds a cluster, and starts none."""
    return bool(os.environ.get("RAY_ADDRESS"))


def imported_ray() -> Any:
    """Return Ray, told how a cluster is that it starts here. Raises an ImportError that names the extra."""
    if not joins_a_cluster():
        for name, value in _OF_OWN_CLUSTER.items():
            os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'vae-qwen3vl[ray]'", name="ray") from error
    return ray


def connect(workers: int) -> None:
    """Connect to the cluster at `RAY_ADDRESS`, or start one here. Raises an OSError where neither can be had."""
    # What workers log would be printed to standard output, where programs have their results.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not joins_a_cluster():
        options |= {
            "address": "local",  # not one that happens to run here
            "include_dashboard": False,
            "num_cpus": max(workers, os.cpu_count() or 1),
            "_node_ip_address": "127.0.0.1",
        }
    try:
        imported_ray().init(**options)
    except (ConnectionError, RuntimeError) as error:
        raise OSError(f"Ray cannot be reached or started: {error}") from error


class _Worker:
    """What an actor runs."""

    def __init__(self, make_worker: Any, device: str) -> None:
        self._work, self._event = prepare(lambda: make_worker, device)

    def ready(self) -> tuple[str, Any]:
        return self._event

    def work(self, item: Any) -> tuple[str, Any]:
        assert self._work is not None, "an unusable worker was handed an item"
        return attempt(self._work, item)
