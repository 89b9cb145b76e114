"""Processes that read data: how they start, what they share, and how they hear of a run's epochs."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vae_qwen3vl.data.texts import Text

_READ_ONCE = ["vae_qwen3vl.training.run_data"]


class SharedEpoch:
    """An epoch's number in shared memory, so that worker processes that live through a run hear of the next one."""

    def __init__(self) -> None:
        self._number = torch.zeros((), dtype=torch.long).share_memory_()

    def __int__(self) -> int:
        return int(self._number)

    def set(self, epoch: int) -> None:
        """Begin an epoch."""
        self._number.fill_(epoch)


class SharedTexts:
    """The texts of many objects in one block of memory that all processes share.

    As Python objects they would be copied into every worker, one worker after another: seconds each for 200,000.
    """

    def __init__(self, texts: Mapping[str, Sequence[Text]]) -> None:
        pieces = [
            json.dumps([[text.answer, text.conversation, text.kind] for text in own], ensure_ascii=False).encode()
            for own in texts.values()
        ]
        self._places = {name: number for number, name in enumerate(texts)}
        self._ends = torch.tensor([0, *map(len, pieces)]).cumsum(0)
        self._bytes = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.uint8)

    def __getitem__(self, name: str) -> list[Text]:
        """Return the texts of an object."""
        place = self._places[name]
        block = self._bytes[self._ends[place] : self._ends[place + 1]].numpy().tobytes()
        return [
            Text(answer=answer, conversation=None if turns is None else tuple(turns), kind=kind)
            for answer, turns, kind in json.loads(block)
        ]


def worker_options(count: int) -> dict[str, Any]:
    """Return the arguments of a `DataLoader` with so many worker processes that live as long as it does.

    They are forked from a server without CUDA or threads, which imports PyTorch once for all of them and for later
    loaders of the same program: spawned one by one, each took seconds.
    """
    if not count:
        return {"num_workers": 0}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_READ_ONCE)
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
