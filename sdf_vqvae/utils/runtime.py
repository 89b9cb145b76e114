"""Where a program runs: device, seeds, logs, requests to stop, and what its stages cost.

Knows nothing of shapes, codes or language, so that every other module can lean on it; PyTorch is imported when it is
needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdf_vqvae.utils.progress import waiting

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to run on: the one given, else CUDA where present, else the CPU.

    Raises:
        ValueError: `device` is no device, or names a CUDA device on a machine without one.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {str(device)!r} is unknown; use cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but PyTorch sees no CUDA GPU; use 'cpu'")
    return chosen


def made_current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a GPU the current one for a while: Triton launches on that."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def worker_seeds(seed: int) -> torch.Generator:
    """Return the generator of a loader's own (its `generator`).

    Every pass over a loader draws a seed for its workers. From the generator that dropout and codes draw from, a run
    that goes on in the middle of a pass would take one number more than a run in one part.
    """
    import torch

    return torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Stop Python's search for cycles inside the block, as a context or a decorator.

    Where libraries are imported and models loaded, everything that is made stays: the search looks at a million
    objects again and again, frees nothing and takes a quarter of the time.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()


@dataclass(kw_only=True)
class StopRequest:
    """Whether this process was asked to end."""

    received: int = 0
    """Number of the signal that this process got, or 0."""
    signal: int = 0
    """Number of the signal that all processes go by since they last agreed, or 0."""

    def agree(self, progress: float, device: torch.device) -> float:
        """Return the first process's progress, and take over a signal that any process got.

        Clocks differ, and a signal may reach one process alone, but all must stop at the same step. All processes of
        a distributed run call this together.
        """
        import torch.distributed

        if not torch.distributed.is_initialized():
            self.signal = self.received
            return progress
        told = [progress if torch.distributed.get_rank() == 0 else 0.0, float(self.received)]
        common = torch.tensor(told, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(common, op=torch.distributed.ReduceOp.MAX)
        self.signal = int(common[1])
        return float(common[0])


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yield what SIGTERM and SIGINT (Ctrl-C) set inside the block, so that a loop can end in order.

    They end the process no more, but the second one does, as it would have outside. In another thread than the main
    one, where signals can't be caught, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def remember(number: int, _frame: object) -> None:
        request.received = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        restore()


def usable_cores() -> int:
    """Return how many cores this process may use, as far as the system says it; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_M_ARENA_MAX = -8


def release_memory() -> None:
    """Give the system back what this process has freed; where the allocator is not glibc's nothing happens."""
    if (allocator := _glibc()) is not None:
        allocator.malloc_trim(0)


def keep_memory_level(every: float = 10.0) -> None:
    """Keep this process from growing with what passes through it. For the start of a process that serves.

    What large objects took, glibc's allocator keeps: in an arena for every thread, between whatever lives on. Here
    all threads take memory from one arena, and every so many seconds what is free goes back to the system. To get
    large objects from the system each time instead would cost a third more of the processor's time.
    """
    if (allocator := _glibc()) is None:
        return
    allocator.mallopt(_M_ARENA_MAX, 1)

    def release() -> None:
        while True:
            time.sleep(every)
            release_memory()

    threading.Thread(target=release, name="memory", daemon=True).start()


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") else None


def rank() -> int:
    """Return this process's rank as torchrun and accelerate set it (0 outside a distributed run)."""
    return int(os.environ.get("RANK", "0"))


def setup_logging(verbose: bool = False) -> None:
    """Send log records of rank 0 to standard error; other ranks report errors only."""
    level = logging.DEBUG if verbose else logging.INFO
    logging.basicConfig(
        level=level if rank() == 0 else logging.ERROR, stream=sys.stderr, format="%(levelname)s %(message)s"
    )


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch (CPU and CUDA)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (libraries that use the global generator must be reproducible too)
    torch.manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Wall time and peak memory of one stage of a program."""

    name: str
    seconds: float
    peak_host_bytes: int
    """Largest resident set of the process so far (it never falls)."""
    peak_device_bytes: int
    """Largest CUDA allocation during the stage; 0 on a CPU."""


class Stopwatch:
    """Records the cost of named stages, and tells of long ones: `with watch("encode"): ...`, then `watch.costs`.

    Args:
        device: where the work is done.
        stages: how many there will be, to be told which one is at work.
    """

    def __init__(self, device: torch.device, stages: int | None = None) -> None:
        self.device, self.stages, self.begun = device, stages, 0
        self.costs: list[StageCost] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage; CUDA work started inside is waited for."""
        import torch

        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        self.begun += 1
        of = f" ({self.begun} of {self.stages})" if self.stages else ""
        with waiting(f"{name}{of}"):
            yield
        if on_cuda:
            torch.cuda.synchronize(self.device)
        seconds = round(time.perf_counter() - start, 4)
        device_peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else 0
        self.costs.append(
            StageCost(
                name=name,
                seconds=seconds,
                peak_host_bytes=peak_host_bytes(),
                peak_device_bytes=device_peak,
            )
        )


def peak_host_bytes() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
