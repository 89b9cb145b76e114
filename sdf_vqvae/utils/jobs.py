"""Many items through a few workers: processes of this machine, or of a Ray cluster.

An item that fails costs itself alone, a worker that dies costs nothing but time, and a full disk stops the run.
Knows nothing of what the items are.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, get_args

from sdf_vqvae.utils.process_pool import ProcessPool
from sdf_vqvae.utils.ray_pool import RayPool
from sdf_vqvae.utils.workers import Event, Item, MakeWorker, Pool, Result, attempt

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
ENGINES: tuple[str, ...] = get_args(Engine)
_POOLS: dict[str, type[ProcessPool | RayPool]] = {"local": ProcessPool, "ray": RayPool}
DIED_TWICE = "the worker process died twice"
_MOST_TRIES = 2
_MOST_STARTS = 3
"""A worker that dies so often before its first item is not started again."""


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Result]):
    """What became of one item."""

    number: int
    """Position of the item, from 0."""
    result: Result | None
    """What the worker returned; None if the item failed."""
    error: str
    """Why the item failed, in one line; empty if it did not."""


def run_jobs(
    make_worker: MakeWorker[Item, Result],
    items: Iterable[Item],
    *,
    workers: int = 1,
    devices: Sequence[str] = ("cpu",),
    engine: str = "local",
) -> Generator[Done[Result], None, None]:
    """Run items through workers and yield what became of each, in order of completion.

    A ValueError, OSError or lack of memory is the item's: its reason is recorded and the rest goes on. A worker that
    dies costs no other item: what it held is tried once more in a new worker, then recorded as failed.

    With one local worker on one device everything happens in this process. Otherwise worker i is a process of its own
    on `devices[i % len(devices)]`; the cores of the machine are divided among local workers.

    Closing the iterator (`contextlib.closing`) ends the workers, after what they have in hand.

    `engine="ray"` puts the workers on a Ray cluster: the one at `RAY_ADDRESS`, or one on this machine. They are
    actors that are handed an item each. Ray Data's `map_batches` survives lost workers too, but repeats the item that
    kills them without end, and reads all items before the first starts.

    Args:
        make_worker: called with the device once in each worker process; returns what is called with each item. It
            and the items are pickled.
        items: drawn as they are needed, no more than there are workers.
        workers: how many work at once.
        devices: `cpu`, `cuda`, `cuda:1` and so on.
        engine: `local` or `ray`.

    Raises:
        ValueError: an argument is out of range, or `make_worker` refuses with one.
        OSError: the disk is full, or workers can't be started.
        ImportError: a library is missing that a worker or the engine needs.
    """
    if workers < 1:
        raise ValueError(f"the number of workers must be at least 1, got {workers}")
    if not devices:
        raise ValueError("no device to work on was given; use cpu, cuda or cuda:1")
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is unknown; use {' or '.join(ENGINES)}")
    if engine == "local" and workers == 1 and len(devices) == 1:
        return _in_this_process(make_worker, items, devices[0])
    return _in_a_pool(make_worker, items, workers, tuple(devices), engine)


def devices_for(gpu_count: int | None = None) -> tuple[str, ...]:
    """Return the devices of this machine to work on.

    Args:
        gpu_count: so many GPUs; None or -1 for all there are, or the CPU where there is none; 0 for the CPU.

    Raises:
        ValueError: there are fewer GPUs.
    """
    import torch

    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu_count is None or gpu_count == -1:
        gpu_count = present
    if not 0 <= gpu_count <= present:
        raise ValueError(f"{gpu_count} GPUs were asked for, but PyTorch sees {present}; -1 takes what there is")
    return tuple(f"cuda:{number}" for number in range(gpu_count)) or ("cpu",)


def _in_this_process(
    make_worker: MakeWorker[Item, Result], items: Iterable[Item], device: str
) -> Generator[Done[Result], None, None]:
    work = make_worker(device)
    for number, item in enumerate(items):
        kind, payload = attempt(work, item)
        if kind == "unusable":
            raise payload[0](payload[1])
        if kind == "full":
            raise _disk_full(payload, number)
        yield _done(number, kind, payload)


def _in_a_pool(
    make_worker: MakeWorker[Item, Result],
    items: Iterable[Item],
    workers: int,
    devices: tuple[str, ...],
    engine: str,
) -> Generator[Done[Result], None, None]:
    pool: Pool = _POOLS[engine](make_worker, workers, devices)
    try:
        yield from _Schedule(pool, workers).run(items)
    finally:
        pool.close()


@dataclass(frozen=True)
class _Task:
    number: int
    item: Any
    tries: int = 1


class _Schedule:
    """Hands items out to the workers of a pool until all are done."""

    def __init__(self, pool: Pool, workers: int) -> None:
        self.pool = pool
        self.idle: list[int] = []
        self.at_work: dict[int, _Task] = {}
        self.again: deque[_Task] = deque()
        self.starts = [0] * workers
        """How often a worker was started since it last was ready."""
        self.full = ""
        """What was said when the disk was full. Nothing is handed out after; what is at work ends first."""
        self.done = 0

    def run(self, items: Iterable[Any]) -> Iterator[Done[Any]]:
        fresh = (_Task(number, item) for number, item in enumerate(items))
        for worker in range(len(self.starts)):
            self._start(worker)
        while True:
            while self.idle and not self.full:
                task = self.again.popleft() if self.again else next(fresh, None)
                if task is None:
                    break
                worker = self.idle.pop()
                self.at_work[worker] = task
                self.pool.give(worker, task.item)
            if not self.at_work and (self.idle or self.full):
                break  # workers that are still starting would find nothing to do
            for event in self.pool.events():
                ended = self._ended(event)
                if ended is not None:
                    self.done += 1
                    yield ended
        if self.full:
            raise _disk_full(self.full, self.done)

    def _start(self, worker: int, after: str = "") -> None:
        if self.starts[worker] == _MOST_STARTS:
            raise OSError(
                f"worker processes die as they start ({after}): is there memory for {len(self.starts)}, and does the "
                "main program run under `if __name__ == '__main__':`?"
            )
        self.starts[worker] += 1
        self.pool.start(worker)

    def _ended(self, event: Event) -> Done[Any] | None:
        """Take note of an event; return what it says of an item that is over with."""
        if event.kind == "unusable":
            raise event.payload[0](event.payload[1])
        task = self.at_work.pop(event.worker, None)
        if event.kind == "died":
            logger.warning("a worker died (%s); a new one takes its place", event.payload)
            self._start(event.worker, event.payload)
            if task is None:
                return None
            if task.tries < _MOST_TRIES:
                self.again.append(_Task(task.number, task.item, task.tries + 1))
                return None
            return Done(number=task.number, result=None, error=f"{DIED_TWICE} ({event.payload})")
        self.starts[event.worker] = 0
        self.idle.append(event.worker)
        if event.kind == "full":
            self.full = event.payload
        if event.kind in ("ready", "full") or task is None:
            return None
        return _done(task.number, event.kind, event.payload)


def _done(number: int, kind: str, payload: Any) -> Done[Any]:
    failed = kind == "failed"
    return Done(number=number, result=None if failed else payload, error=payload if failed else "")


def _disk_full(message: str, done: int) -> OSError:
    error = OSError(
        f"the disk is full ({message}); the {done:,} items that were done before are kept. Make room and run the "
        "same command again: it goes on from there"
    )
    error.errno = errno.ENOSPC
    return error
