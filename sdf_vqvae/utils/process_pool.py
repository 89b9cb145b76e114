"""Workers in processes of this machine, each at the end of a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from sdf_vqvae.utils.workers import Event, attempt, prepare

_SECONDS_TO_END = 10.0


class ProcessPool:
    """Processes of this machine, on the devices in turn; the cores are divided among them.

    Args:
        make_worker: called with the device in each process.
        workers: their number.
        devices: `cpu`, `cuda:1` and so on.
    """

    def __init__(self, make_worker: Any, workers: int, devices: tuple[str, ...]) -> None:
        import torch

        self._make_worker = make_worker
        self._devices = devices
        self._threads = max(1, torch.get_num_threads() // workers)
        self._context = multiprocessing.get_context("spawn")  # CUDA and threads don't survive a fork
        self._processes: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._ready: set[int] = set()

    def start(self, worker: int) -> None:
        """Start a process, or the successor of one that died."""
        ours, theirs = self._context.Pipe()
        device = self._devices[worker % len(self._devices)]
        process = self._context.Process(target=_worker_process, args=(device, self._threads, theirs), daemon=True)
        process.start()
        theirs.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has just died: `events` will tell
            ours.send(self._make_worker)
        self._processes[worker] = (process, ours)

    def give(self, worker: int, item: Any) -> None:
        """Hand an item to a process."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._processes[worker][1].send((item,))

    def events(self) -> list[Event]:
        """Wait until a process has something to say, or has died."""
        pipes = {pipe: worker for worker, (_, pipe) in self._processes.items()}
        over = wait(list(pipes))
        events = []
        for pipe, worker in pipes.items():
            if pipe not in over:
                continue
            try:
                kind, payload = pipe.recv()
            except (EOFError, ConnectionResetError):
                kind, payload = "died", self._cause_of_death(worker)
            if kind == "ready":
                self._ready.add(worker)
            events.append(Event(worker=worker, kind=kind, payload=payload))
        return events

    def _cause_of_death(self, worker: int) -> str:
        process, pipe = self._processes.pop(worker)
        self._ready.discard(worker)
        pipe.close()
        process.join()
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the processes after what they have in hand; those that take too long are killed."""
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
