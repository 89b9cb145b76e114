"""The language model's work on a GPU as CUDA graphs, all of whose kernels are launched at once.

A token, or a chat of a few hundred, is a thousand kernels of microseconds each; launching them one by one takes
longer than they do. A graph always reads and writes the same memory and has fixed shapes, so sizes are rounded up to
few sorts, and there is a graph for each sort that is met. It is captured in a fraction of a second. Knows tensors;
knows nothing of models, chats or shapes.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.utils.errors import brief
from vae_qwen3vl.generation.kv_cache import SlotCache, power_of_two

logger = logging.getLogger(__name__)

Results = tuple[Tensor, ...]
_MOST_GRAPHS = 64
_CAPTURING = threading.Lock()
"""PyTorch captures one graph at a time in a process."""


def few_sizes(count: int, step: int) -> int:
    """Return a size that is not below `count`: a multiple of `step`, or of a larger step where it is large."""
    step = max(step, power_of_two(count) // 8)
    return -(-count // step) * step


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """Captured work, and where it reads and writes."""

    inputs: Results
    results: Results
    replay: Callable[[], object]


class Graphs:
    """Does work on tensors as it is written at first, and as graphs when it comes again.

    Args:
        cache: what the work reads and writes beside its inputs. When it has moved, all is captured anew.
        device: of all of it.
        wanted: capture and replay graphs at all.
    """

    def __init__(self, cache: SlotCache, device: torch.device, *, wanted: bool) -> None:
        self.wanted = wanted
        self._cache, self._device = cache, device
        self._captured: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._moved = -1
        self._pool: Any = None

    def run(
        self, sort: Hashable, work: Callable[..., Results], inputs: Sequence[Tensor], *, soon: bool = True
    ) -> Results:
        """Do some work.

        Args:
            sort: work of the same sort does the same on inputs of the same shapes.
            work: takes the inputs on the device.
            inputs: on the CPU or on the device.
            soon: capture it when it comes for the first time, not for the second.

        Returns:
            What it returned, in memory that work of any sort may overwrite.
        """
        if self._moved != self._cache.moved:
            self._captured.clear()
            self._pool = None  # nothing can be captured into a pool that all of its graphs have left
            self._moved = self._cache.moved
        graph = self._captured.get(sort)
        if graph is not None:
            self._captured.move_to_end(sort)
            for place, given in zip(graph.inputs, inputs, strict=True):
                place.copy_(given, non_blocking=True)
            graph.replay()
            return graph.results
        there = tuple(given.to(self._device, non_blocking=True) for given in inputs)
        # Before it is captured, work is done once: libraries load their kernels then, which no graph can hold.
        results = work(*there)
        if self.wanted and (soon or sort in self._seen):
            self._capture(sort, work, there)
        self._seen.add(sort)
        return results

    def _capture(self, sort: Hashable, work: Callable[..., Results], inputs: Results) -> None:
        try:
            replay, results, self._pool = captured(lambda: work(*inputs), self._device, self._pool)
        except RuntimeError as error:
            self.wanted = False
            self._captured.clear()
            logger.warning(
                "the language model can't be captured as CUDA graphs and is slower: %s", brief(_cause(error))
            )
            return
        self._captured[sort] = _Graph(inputs=inputs, results=results, replay=replay)
        if len(self._captured) > _MOST_GRAPHS:
            self._captured.popitem(last=False)


def read(values: Tensor) -> list[Any]:
    """Return values as `tolist` does. Other threads use the GPU while this one waits for them.

    A copy into memory that isn't pinned waits inside the driver, which lets no other thread's copy in meanwhile.
    """
    if values.device.type == "cuda":
        there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(values.device))
        ready.synchronize()
        values = there
    return list(values.tolist())


def captured(
    work: Callable[[], Results], device: torch.device, pool: Any
) -> tuple[Callable[[], object], Results, Any]:
    """Capture a CUDA graph of some work, which must have been done once before.

    Args:
        work: reads and writes the same tensors each time.
        device: of all of them.
        pool: of an earlier capture; graphs of a pool take the same memory in turn.

    Returns:
        What does the work again, the tensors that it then writes, and the pool.

    Raises:
        RuntimeError: the work waits for the device, or does something else that a graph can't hold.
    """
    graph, stream = torch.cuda.CUDAGraph(), _capture_stream(device)
    # A capture that fails leaves its own stream the current one; the one before is current again in any case. Other
    # threads may use the device meanwhile: what they do is no part of the graph and does not end it.
    with (
        _CAPTURING,
        torch.cuda.stream(torch.cuda.current_stream(device)),
        torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
    ):
        results = work()
    return graph.replay, results, graph.pool()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device on which graphs are captured: libraries keep memory for each stream they see."""
    return torch.cuda.Stream(device)


def _cause(error: BaseException) -> BaseException:
    """Return what went wrong first: a capture that was broken off says only that it was."""
    return error if error.__context__ is None else _cause(error.__context__)
