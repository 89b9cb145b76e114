"""Processes that read data for a `DataLoader`."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from typing import Any


def reading_processes(count: int, modules: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` with so many worker processes that live as long as it does.

    They are forked from a server without CUDA or threads, which imports PyTorch once for all of them and for later
    loaders of the same program: spawned one after another, each took seconds, on a machine of twelve a minute in all.

    Args:
        count: processes; 0 reads in this one.
        modules: what they need, imported by the server.
    """
    if not count:
        return {"num_workers": 0}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return {
        "num_workers": count,
        "multiprocessing_context": context,
        "persistent_workers": True,
        "worker_init_fn": _end_with_the_program,
    }


def _end_with_the_program(_number: int) -> None:
    """Watch, in a worker, over the program that it reads for: killed, it can't tell its workers to end.

    PyTorch looks at a worker's parent process, which here is the server, and that one lives as long as its workers.
    """
    program = multiprocessing.parent_process()

    def watch() -> None:
        if program is not None:
            program.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
