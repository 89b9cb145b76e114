"""The stream of fields that were prepared as files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.training.streams import Field, loader_options, random_symmetry


class FieldStream:
    """Prepared field files of a dataset folder, each once an epoch in a new order.

    Args:
        fields: the dataset.
        device: where the fields go.
        seed: seed of the orders.
        symmetries: turn each use by one of the 48 symmetries of the grid.
        rank: this process takes every `world_size`-th object, from the `rank`-th.
        world_size: number of processes.
        workers: processes that read.
    """

    def __init__(
        self,
        fields: FieldFolder,
        *,
        device: torch.device,
        seed: int,
        symmetries: bool = False,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        if len(fields) < world_size:
            raise ValueError(f"{fields.folder} has {len(fields)} objects, fewer than the {world_size} processes")
        self.fields, self.symmetries = fields, symmetries
        self.device, self.seed, self.workers = device, seed, workers
        self.rank, self.world_size = rank, world_size
        self.learn = None
        self.position = 0
        self.generator = torch.Generator().manual_seed(seed * 1009 + rank)
        self._incoming: Iterator[tuple[Tensor, Tensor]] | None = None

    @property
    def epoch(self) -> float:
        """Objects read here over those that an epoch gives this process."""
        return self.position / (len(self.fields) // self.world_size)

    def draw(self, count: int) -> list[Field]:
        """Return the next objects. Raises a ValueError if a file is damaged."""
        if self._incoming is None:
            self._incoming = iter(
                DataLoader(
                    _FieldFiles(self.fields),
                    batch_size=None,
                    sampler=_Shuffled(len(self.fields), self.seed, self.position, self.rank, self.world_size),
                    **loader_options(self.workers, self.seed),
                )
            )
        objects = []
        for _ in range(count):
            index, sdf = next(self._incoming)
            self.position += 1
            index, sdf = index.to(self.device), sdf.to(self.device)
            if self.symmetries:
                index = random_symmetry(index, self.fields.resolution, self.generator)
            objects.append((index, sdf))
        return objects

    def state(self) -> dict[str, Any]:
        """Return how many objects were read, and the generator."""
        return {"position": self.position, "generator": self.generator.get_state().tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after that many objects."""
        self.position = int(state["position"])
        self.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
        self._incoming = None


class _FieldFiles(Dataset):
    def __init__(self, fields: FieldFolder) -> None:
        self.fields = fields

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        field = self.fields[number]
        return field.index.to(torch.int16), field.sdf


class _Shuffled:
    """Numbers 0..count-1 in a new order each epoch, those of one rank, from a position on, without end."""

    def __init__(self, count: int, seed: int, position: int, rank: int, world_size: int) -> None:
        self.count, self.seed, self.position = count, seed, position
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[int]:
        share = self.count // self.world_size
        position = self.position
        while True:
            order = np.random.default_rng((self.seed, position // share)).permutation(self.count)
            yield int(order[self.rank + (position % share) * self.world_size])
            position += 1
