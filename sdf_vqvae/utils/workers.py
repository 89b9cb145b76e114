"""What pools of workers have in common: what they report, and how a worker takes an item.

Knows neither who hands the items out (`jobs`) nor where the workers are (`process_pool`, `ray_pool`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sdf_vqvae.utils.errors import is_out_of_memory, one_line

_FULL = (errno.ENOSPC, errno.EDQUOT)

Item = TypeVar("Item")
Result = TypeVar("Result")
Work = Callable[[Item], Result]
MakeWorker = Callable[[str], Work[Item, Result]]


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a pool reports of one of its workers."""

    worker: int
    kind: str
    """`ready`, `result`, `failed`, `full` (the disk), `unusable` (no item can be worked on) or `died`."""
    payload: Any = None


class Pool(Protocol):
    """Workers that hold one item each. `jobs.run_jobs` decides who gets which."""

    def start(self, worker: int) -> None:
        """Start a worker, or the successor of one that died; it reports `ready`."""

    def give(self, worker: int, item: Any) -> None:
        """Hand an item to a worker that is ready."""

    def events(self) -> list[Event]:
        """Wait until something happens."""

    def close(self) -> None:
        """End all workers."""


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


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that the disk (or the user's share of it) is full."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        # safetensors has errors of its own, with the system's words.
        if getattr(cause, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
