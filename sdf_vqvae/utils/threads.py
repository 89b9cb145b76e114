"""Work on parts of a range in threads: loops compiled by Numba and calls of PyTorch, which don't hold Python's lock.

PyTorch's own threads meet after every operation; these go from their first part to their last by themselves.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

CACHED = 1 << 18
"""Numbers that stay in a core's cache: a megabyte of float32."""


def has_numba() -> bool:
    """Return whether Numba is installed (it follows new versions of Python after some months)."""
    return importlib.util.find_spec("numba") is not None


def in_threads(work: Callable[[int, int], Any], count: int, *, calls_torch: bool = False) -> list[Any]:
    """Call `work(start, stop)` on parts of `range(count)` in as many threads as PyTorch uses; results in order.

    Args:
        work: what is to be done.
        count: end of the range; a short one is worked on in the calling thread.
        calls_torch: `work` calls PyTorch, which then takes one thread in each of these.
    """
    threads = torch.get_num_threads()
    if threads == 1 or count < 2 * threads:
        return [work(0, count)]
    cuts = np.linspace(0, count, 4 * threads + 1).astype(np.int64).tolist()
    # The number that a thread sets is its own, and that of threads which don't exist yet.
    alone: dict[str, Any] = {"initializer": torch.set_num_threads, "initargs": (1,)} if calls_torch else {}
    try:
        with ThreadPoolExecutor(threads, **alone) as pool:
            return list(pool.map(work, cuts[:-1], cuts[1:]))
    finally:
        if calls_torch:
            torch.set_num_threads(threads)


def by_rows(function: Callable[..., Tensor], *inputs: Tensor, width: int) -> Tensor:
    """Return `function(*inputs)`, each of whose rows needs the same row of the inputs alone.

    On a CPU it is called on blocks of rows that stay in the cache, unless gradients are recorded.

    Args:
        function: rows `[n, ...]` of the inputs to rows `[n, C]`.
        inputs: `[N, ...]` each.
        width: columns of the widest tensor on the way.
    """
    count, rows = len(inputs[0]), max(1, CACHED // width)
    plain = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")  # which threads have of their own
    if inputs[0].device.type != "cpu" or plain or count <= rows:
        return function(*inputs)
    first = function(*(t[:rows] for t in inputs))
    out = first.new_empty(count, *first.shape[1:])
    out[:rows] = first

    def work(start: int, stop: int) -> None:
        with torch.inference_mode():
            for begin in range((start + 1) * rows, min((stop + 1) * rows, count), rows):
                out[begin : begin + rows] = function(*(t[begin : begin + rows] for t in inputs))

    in_threads(work, (count - 1) // rows, calls_torch=True)
    return out
