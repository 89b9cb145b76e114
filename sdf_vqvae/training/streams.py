"""What a trainer draws from: endless, seeded streams of objects that can stop and go on exactly where they were.

A stream hands out distance fields `(index int16 [N, 3], distance float16 [N])` on a device: `mesh_stream` makes them
from meshes as they are drawn, `field_stream` reads prepared files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.reading import reading_processes
from sdf_vqvae.utils.runtime import worker_seeds

Field = tuple[Tensor, Tensor]

_READ_ONCE = ["sdf_vqvae.training.field_stream", "sdf_vqvae.training.mesh_draws"]
"""Modules that every process that reads for a stream needs."""


class Stream(Protocol):
    """What the trainer draws from."""

    @property
    def learn(self) -> Callable[[Sequence[float]], None] | None:
        """Takes the errors of all objects drawn since it was last called; None where draws don't go by errors."""
        ...

    def draw(self, count: int) -> list[Field]:
        """Return the next objects."""
        ...

    def state(self) -> dict[str, Any]:
        """Return plain values from which `restore` goes on."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another stream of the same settings stopped."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        ...


def loader_options(workers: int, seed: int) -> dict[str, Any]:
    """Return how a stream's `DataLoader` reads: by whom, and with a generator that nobody else draws from.

    Args:
        workers: processes (`reading_processes`). 0 reads in this one.
        seed: of the generator.
    """
    return {**reading_processes(workers, _READ_ONCE), "generator": worker_seeds(seed)}


def random_symmetry(index: Tensor, resolution: int, generator: torch.Generator) -> Tensor:
    """Apply one of the 48 symmetries of a cube to voxel indices `[N, 3]`."""
    order = torch.randperm(3, generator=generator)
    mirrored = torch.rand(3, generator=generator) < 0.5
    turned = index[:, order.to(index.device)]
    return torch.where(mirrored.to(index.device), resolution - 1 - turned, turned)


def joined_field(objects: Sequence[Field], resolution: int, device: torch.device) -> SparseTensor:
    """Join objects to one field on a grid of side `resolution`, rows sorted.

    They are sorted and checked here, which waits for the device: before a forward pass is queued, not behind it.

    Raises:
        ValueError: a coordinate outside the grid, or the same voxel twice.
    """
    batch = collate_fields(objects, device)
    given = CoordinateSet(torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1), resolution)
    # Coordinates come back from the keys: on a GPU, to gather rows of four numbers takes ten times as long.
    keys, order = torch.sort(given.keys)
    if bool((keys[1:] == keys[:-1]).any()):
        raise ValueError("a field holds the same voxel twice")
    coordinates = CoordinateSet.of_keys(keys, resolution, given.batch_size)
    return SparseTensor(batch["sparse_sdf"][order], coordinates)


def collate_fields(objects: Sequence[Field], device: torch.device) -> dict[str, Tensor]:
    """Join `(index [N, 3], distance [N])` pairs to a batch dict on a device."""
    numbers = [torch.full((len(sdf),), n, dtype=torch.int32, device=device) for n, (_, sdf) in enumerate(objects)]
    return {
        "sparse_sdf": torch.cat([sdf for _, sdf in objects]).to(device).float()[:, None],
        "sparse_index": torch.cat([index for index, _ in objects]).to(device).int(),
        "batch_idx": torch.cat(numbers),
    }
