"""The batches of a run, step by step, from wherever an epoch stands, and on the device that computes.

Knows data and settings; nothing of models and losses.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from sdf_vqvae.utils.runtime import StopRequest, worker_seeds
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.loading import BucketSampler, worker_options
from vae_qwen3vl.training.run_data import AlignmentData, Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainingBatches:
    """The training items of a run, joined to batches, of which this process has its part.

    Args:
        data: what to learn from.
        config: sizes, seed and worker processes.
        accelerator: devices and processes.
    """

    def __init__(self, data: AlignmentData, config: AlignmentConfig, accelerator: Accelerator) -> None:
        self.data, self.config, self.accelerator = data, config, accelerator
        self.codebook = None if data.codebook is None else data.codebook.to(accelerator.device)
        self.sampler = BucketSampler(
            data.lengths,
            config.batch_size,
            seed=config.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            limited=data.limited,
        )

    @cached_property
    def loader(self) -> DataLoader[Any]:
        """Batches of one epoch after another; its processes live as long as the run."""
        return DataLoader(
            self.data.train,
            batch_sampler=self.sampler,
            collate_fn=self.data.collate,
            pin_memory=self.accelerator.device.type == "cuda",  # whence a GPU takes it several times as fast
            generator=worker_seeds(self.config.seed),
            **worker_options(self.config.num_workers),
        )

    @property
    def steps_an_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return math.ceil(len(self.sampler) / self.config.gradient_accumulation_steps)

    def of_epoch(self, epoch: int, done: int, stopping: StopRequest) -> Iterator[list[Batch]]:
        """Yield the batches of one step after another.

        Args:
            epoch: its number.
            done: batches of it that were yielded before, by this run or the one that it goes on with.
            stopping: gets the signal that ended the worker processes, if one did; then there are no more steps.
        """
        if hasattr(self.data.train, "set_epoch"):
            self.data.train.set_epoch(epoch)
        self.sampler.set_epoch(epoch, done)
        batches = iter(self.loader)
        while parts := self._of_step(batches, stopping):
            yield parts

    def _of_step(self, batches: Iterator[Batch], stopping: StopRequest) -> list[Batch]:
        try:
            return list(itertools.islice(batches, self.config.gradient_accumulation_steps))
        except RuntimeError:  # of a signal to all of a program's processes, those that read data die at once
            if not stopping.received or self.accelerator.num_processes > 1:
                raise
            stopping.signal = stopping.received
            return []

    def on_device(self, batch: Batch) -> Batch:
        """Return a batch as the model takes it: vectors are looked up here, for they are most of what would move."""
        moved = _moved(batch, self.accelerator.device)
        if "codes_3d" in moved:
            if self.codebook is None:
                raise ValueError("batches have codes_3d without their vectors, but AlignmentData has no codebook")
            moved["feats_3d"] = F.embedding(moved.pop("codes_3d"), self.codebook)  # [M, D]
        return moved


def _moved(batch: Mapping[str, Any], device: torch.device) -> Batch:
    pinned = device.type == "cuda"  # elsewhere the copy might not wait for the source
    return {
        name: _moved(value, device) if isinstance(value, Mapping) else value.to(device, non_blocking=pinned)
        for name, value in batch.items()
    }
