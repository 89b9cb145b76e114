"""One more token for each of many rows: on CUDA as a graph, all of whose kernels are launched at once.

A step of a language model is hundreds of kernels that take microseconds each; launching one by one takes longer than
they do. A graph always reads and writes the same memory and has fixed shapes, so there is one for each power of two
of rows and for few numbers of places; idle rows write into slots that nobody has. It is captured when it is first
needed, in a fraction of a second. Knows tensors; knows nothing of models, chats or shapes.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.utils.errors import brief
from vae_qwen3vl.generation.kv_cache import STEP, SlotCache, power_of_two

logger = logging.getLogger(__name__)

Compute = Callable[[Tensor, int], Tensor]
"""From int64 `[3, rows]` = (token, places filled, position) and how many places are read to logits `[rows, V]`."""
_MOST_GRAPHS = 32
_CAPTURING = threading.Lock()
"""PyTorch captures one graph at a time in a process."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """A captured step, and where it reads and writes."""

    given: Tensor
    """int64 `[3, rows]`, in memory that a copy to the device need not wait for."""
    inputs: Tensor
    """int64 `[3, rows]`, on the device."""
    logits: Tensor
    """`[rows, V]`."""
    likeliest: Tensor
    """int64 `[rows]`."""
    replay: Callable[[], object]


class Decoder:
    """Computes the logits of the next token of the first rows of a cache.

    Args:
        compute: what is computed; it writes into `cache`.
        cache: where keys and values lie. Graphs are captured anew when its buffers have moved.
        device: of all of it.
        graphs: capture and replay graphs; else every step is computed as it is written.
    """

    def __init__(self, compute: Compute, cache: SlotCache, device: torch.device, *, graphs: bool) -> None:
        self.graphs = graphs
        self._compute, self._cache, self._device = compute, cache, device
        self._captured: OrderedDict[tuple[int, int], _Graph] = OrderedDict()
        self._moved = -1
        self._pool: Any = None

    def step(
        self, tokens: Sequence[int], lengths: Sequence[int], positions: Sequence[int]
    ) -> tuple[Tensor, list[int]]:
        """Compute one more token for each row.

        Args:
            tokens: the last ones.
            lengths: how many places each row has filled before them.
            positions: theirs.

        Returns:
            Logits `[rows, V]`, which the next step may overwrite, and the likeliest token of each row.
        """
        given = torch.tensor([tokens, lengths, positions])
        longest = max(lengths) + 1
        if not self.graphs:
            logits = self._compute(given.to(self._device), longest)
            return logits, logits.argmax(-1).tolist()
        rows = len(tokens)
        logits, likeliest = self._replay(given, power_of_two(rows), _places_read(longest))
        return logits[:rows], likeliest[:rows].tolist()

    def _replay(self, given: Tensor, rows: int, longest: int) -> tuple[Tensor, Tensor]:
        """Take a step of so many rows, and capture it if it is the first like it."""
        self._cache.reserve(rows, longest)
        if self._moved != self._cache.moved:
            self._captured.clear()
            self._moved = self._cache.moved
            self._pool = None  # what all of a pool's graphs have left can't be captured into
        graph = self._captured.get((rows, longest))
        if graph is None:
            # Computed as it is written: libraries load their kernels now, which can't be captured.
            padded = torch.nn.functional.pad(given, (0, rows - given.shape[1]))
            inputs = padded.to(self._device)
            logits = self._compute(inputs, longest)
            likeliest = logits.argmax(-1)
            self._capture(inputs, longest)
            return logits, likeliest
        self._captured.move_to_end((rows, longest))
        graph.given.zero_()
        graph.given[:, : given.shape[1]] = given
        graph.inputs.copy_(graph.given, non_blocking=True)
        graph.replay()
        return graph.logits, graph.likeliest

    def _capture(self, inputs: Tensor, longest: int) -> None:
        """Capture the step of such inputs; where that can't be, all steps are computed as they are written."""

        def work() -> tuple[Tensor, Tensor]:
            logits = self._compute(inputs, longest)
            return logits, logits.argmax(-1)

        try:
            replay, (logits, likeliest), self._pool = captured(work, self._device, self._pool)
        except RuntimeError as error:
            self.graphs = False
            self._captured.clear()
            logger.warning("a step can't be captured as a CUDA graph and is slower: %s", brief(_cause(error)))
            return
        given = torch.zeros(inputs.shape, dtype=torch.long, pin_memory=self._device.type == "cuda")
        self._captured[inputs.shape[1], longest] = _Graph(
            given=given, inputs=inputs, logits=logits, likeliest=likeliest, replay=replay
        )
        while len(self._captured) > _MOST_GRAPHS:
            self._captured.popitem(last=False)


def captured(
    work: Callable[[], tuple[Tensor, ...]], device: torch.device, pool: Any
) -> tuple[Callable[[], object], tuple[Tensor, ...], Any]:
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
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile: what they do is no part of the graph and does not end it.
    with (
        _CAPTURING,
        torch.cuda.graph(graph, pool=pool, stream=_capture_stream(device), capture_error_mode="thread_local"),
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


def _places_read(longest: int) -> int:
    """Return how many places a graph reads: multiples of a step that grows with them."""
    step = max(STEP, power_of_two(longest) // 8)
    return -(-longest // step) * step
