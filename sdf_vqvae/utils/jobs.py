"""Many items through a few workers: processes of this machine, or of a Ray cluster.

An item that fails costs itself alone, a worker that dies costs nothing but time, and a full disk stops the run.
Knows nothing of what the items are.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args

from sdf_vqvae.utils.errors import is_out_of_memory, one_line

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]
ENGINES: tuple[str, ...] = get_args(Engine)
DIED_TWICE = "the worker process died twice"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_TRIES = 2
_MOST_STARTS = 3
"""A worker that dies so often before its first item is not started again."""
_SECONDS_TO_END = 10.0

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item], Result]
MakeWorker = Callable[[str], Work[Item, Result]]


@dataclass(frozen=True, kw_only=True)
class Done(Generic[Result]):
    """What became of one item."""

    number: int
    """Position of the item, from 0."""
    result: Result | None
    """What the worker returned; None if the item failed."""
    error: str
    """Why the item failed, in one line; empty if it did not."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a pool reports of one of its workers (for the pools of this package)."""

    worker: int
    kind: str
    """`ready`, `result`, `failed`, `full` (the disk), `unusable` (no item can be worked on) or `died`."""
    payload: Any = None


class Pool(Protocol):
    """Workers that hold one item each. `run_jobs` decides who gets which."""

    def start(self, worker: int) -> None:
        """Start a worker, or the successor of one that died; it reports `ready`."""

    def give(self, worker: int, item: Any) -> None:
        """Hand an item to a worker that is ready."""

    def events(self) -> list[Event]:
        """Wait until something happens."""

    def close(self) -> None:
        """End all workers."""


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


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that the disk (or the user's share of it) is full."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        # safetensors has errors of its own, with the system's words.
        if getattr(found, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(found):
            return True
        found = found.__cause__ or found.__context__
    return False


# -- in a worker -------------------------------------------------------------------------------------------------


def attempt(work: Work[Item, Result], item: Item) -> tuple[str, Any]:
    """Work on one item; return the kind and payload of an event."""
    try:
        return "result", work(item)
    except ImportError as error:
        return "unusable", (ImportError, one_line(error))
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if disk_is_full(error):
            return "full", one_line(error)
        if is_out_of_memory(error):
            return "failed", f"out of memory: {one_line(error)}"
        if isinstance(error, RuntimeError):
            raise  # a defect of the program
        return "failed", one_line(error)


def prepare(
    receive: Callable[[], MakeWorker[Any, Any]], device: str
) -> tuple[Work[Any, Any] | None, tuple[str, Any]]:
    """Receive a `make_worker` and make a worker; return it, and the kind and payload of an event."""
    import torch

    try:
        return receive()(device), ("ready", None)
    except (ValueError, OSError, ImportError, MemoryError, torch.OutOfMemoryError) as error:
        kind = next((kind for kind in (ValueError, ImportError) if isinstance(error, kind)), OSError)
        return None, ("unusable", (kind, one_line(error)))


def _worker_process(device: str, threads: int, pipe: Connection) -> None:
    """Work until the other end of the pipe says None or falls silent."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's, which then closes the pipe
    torch.set_num_threads(threads)
    work, event = prepare(pipe.recv, device)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the main process was killed
        pipe.send(event)
        while work is not None and (message := pipe.recv()) is not None:
            pipe.send(attempt(work, message[0]))


# -- the main process --------------------------------------------------------------------------------------------


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
    pool: Pool
    if engine == "ray":
        from sdf_vqvae.utils.ray_pool import RayPool

        pool = RayPool(make_worker, workers, devices)
    else:
        pool = _ProcessPool(make_worker, workers, devices)
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


class _ProcessPool:
    """Processes of this machine, each at the end of a pipe."""

    def __init__(self, make_worker: Any, workers: int, devices: tuple[str, ...]) -> None:
        import torch

        self._make_worker = make_worker
        self._devices = devices
        self._threads = max(1, torch.get_num_threads() // workers)
        self._context = multiprocessing.get_context("spawn")  # CUDA and threads don't survive a fork
        self._processes: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._ready: set[int] = set()

    def start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        device = self._devices[worker % len(self._devices)]
        process = self._context.Process(target=_worker_process, args=(device, self._threads, theirs), daemon=True)
        process.start()
        theirs.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has just died: `events` will tell
            ours.send(self._make_worker)
        self._processes[worker] = (process, ours)

    def give(self, worker: int, item: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._processes[worker][1].send((item,))

    def events(self) -> list[Event]:
        pipes = {pipe: worker for worker, (_, pipe) in self._processes.items()}
        over = wait(list(pipes))
        found = []
        for pipe, worker in pipes.items():
            if pipe not in over:
                continue
            try:
                kind, payload = pipe.recv()
            except (EOFError, ConnectionResetError):
                kind, payload = "died", self._cause_of_death(worker)
            if kind == "ready":
                self._ready.add(worker)
            found.append(Event(worker=worker, kind=kind, payload=payload))
        return found

    def _cause_of_death(self, worker: int) -> str:
        process, pipe = self._processes.pop(worker)
        self._ready.discard(worker)
        pipe.close()
        process.join()
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        for worker, (process, pipe) in self._processes.items():
            if worker in self._ready:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    pipe.send(None)
            else:  # it holds no item
                process.kill()
        deadline = time.monotonic() + _SECONDS_TO_END
        for process, pipe in self._processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self._processes.clear()
