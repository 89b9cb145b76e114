"""Where a program runs and how it leaves files behind: device, seeds, logs, atomic writes.

Knows nothing of shapes, codes or language, so that every other module can lean on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import re
import resource
import secrets
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

logger = logging.getLogger(__name__)

_STEM = 150
"""Characters of a file's name that its temporary one keeps; with the rest it stays below the usual 255."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp(\..*)?")


def resolve_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to run on: the one given, else CUDA where present, else the CPU.

    Raises:
        ValueError: `device` is no device, or names a CUDA device on a machine without one.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {str(device)!r} is unknown; use cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but PyTorch sees no CUDA GPU; use 'cpu'")
    return chosen


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix) that replaces `path` only if the block succeeds.

    A program that dies inside the block leaves an earlier file untouched and no half-written one. The temporary file
    is new, under a name that can't be foreseen, so nothing is ever written through a link; a link at `path` itself is
    replaced, and what it points to stays as it is. The file can be read by whom the umask lets, whatever wrote it
    (safetensors makes files that their owner alone can read).

    Raises:
        OSError: the folder can't be made, `path` is a folder, or the disk is full; the message names `path`.
    """
    target = Path(path)
    try:
        if target.parent.exists() and not target.parent.is_dir():
            raise OSError(f"{target.parent} is a file, not a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OSError("it is a folder")
        temporary = target.with_name(f".{target.stem[:_STEM]}.{secrets.token_hex(8)}.tmp{target.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        try:
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(stat.S_IMODE(mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        named = OSError(f"{target} cannot be written: {error.strerror or error}")
        named.errno = error.errno  # a full disk is known by it
        raise named from error


def remove_temporaries(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files that killed programs left in a folder, and return how many there were.

    To be called where no other program writes into the folder.
    """
    left = [file for file in Path(folder).iterdir() if _TEMPORARY.fullmatch(file.name) and file.is_file()]
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other programs that ask the same from writing into a folder; the lock ends with the process.

    Raises:
        OSError: another program holds the folder, or it can't be written to.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(Path(folder) / ".lock", wait=False))
        except AlreadyLockedError as error:
            raise OSError(f"another program is writing to {folder}: let it end, or choose another folder") from error
        yield


class AlreadyLockedError(OSError):
    """Another process holds a lock."""


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock, as a file that is there only meanwhile.

    The system releases it even if the process dies; a file that was left so is taken over. Whoever holds the lock
    removes the file, so a process that waited for it looks whether the file it got is still the one at `path`.

    Args:
        path: the file; its folder exists.
        wait: until another process releases it.

    Raises:
        AlreadyLockedError: another process holds it, and `wait` is False.
        OSError: the file can't be made.
    """
    lock = Path(path)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyLockedError(f"{lock} is held by another process") from error
            except OSError as error:  # file systems without locks
                logger.warning("%s cannot be locked (%s): let no second program use it", lock, error.strerror)
                break
            if _is_at(lock, file.fileno()):
                break
            file.close()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def worker_seeds(seed: int) -> torch.Generator:
    """Return the generator of a loader's own (its `generator`).

    Every pass over a loader draws a seed for its workers. From the generator that dropout and codes draw from, a run
    that goes on in the middle of a pass would take one number more than a run in one part.
    """
    return torch.Generator().manual_seed(seed)


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
    """Records the cost of named stages: `with watch("encode"): ...`, then `watch.costs`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.costs: list[StageCost] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time one stage; CUDA work started inside is waited for."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
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
