"""The stream of fields that are made from meshes as they are drawn."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField, voxelize_batch
from sdf_vqvae.training.mesh_draws import MeshDraws, Prepared, prepare
from sdf_vqvae.training.streams import Field, loader_options, random_symmetry
from sdf_vqvae.utils.errors import brief

logger = logging.getLogger(__name__)

_TOGETHER = 32
"""Meshes that are voxelized in one go."""
_NEWS = 0.5
"""Share of the latest error in the running one."""


class MeshStream:
    """Fields of meshes, voxelized on the device as they are drawn and each used a few times from a buffer.

    Each use turns the field by another of the 48 symmetries of the grid, which are exact on voxels. A mesh that
    can't be voxelized, or has too many voxels, is logged once and another is drawn instead; shapes made by rule are
    chosen so that they have few enough.

    Args:
        draws: the meshes.
        resolution: grid side R.
        band: half width of the band in voxels.
        device: where to voxelize and keep the buffer.
        echo: uses of a field, on average, before it has been replaced.
        buffer: fields kept.
        by_error: fields of the buffer are drawn in proportion to (running error)^by_error, as `learn` is told it. One
            that has not been rebuilt yet counts as the mean of the others. 0: all alike.
        max_points: largest number of voxels of an object.
        rank: this process draws the numbers `rank`, `rank + world_size`, ...
        world_size: number of processes.
        workers: processes that read and normalize.
    """

    def __init__(
        self,
        draws: MeshDraws,
        *,
        resolution: int,
        band: float,
        device: torch.device,
        echo: int = 4,
        buffer: int = 2048,
        by_error: float = 0.0,
        max_points: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        self.draws, self.resolution, self.band, self.max_points = draws, resolution, band, max_points
        self.device, self.workers = device, workers
        self.echo, self.size = echo, buffer
        self.rank, self.world_size = rank, world_size
        self.generator = torch.Generator().manual_seed(draws.seed * 1009 + rank)
        self.kept: list[tuple[int, Field]] = []
        self.by_error = by_error
        self.errors = torch.full((buffer,), math.nan, dtype=torch.float64)
        """Running error of what is kept, NaN where it is not known yet."""
        self._untold: list[tuple[int, int]] = []
        """Place and number of what was drawn and whose errors are not known yet."""
        self.next_number = rank
        self.uses = 0
        self._incoming: Iterator[Prepared] | None = None
        self._warned: set[str] = set()

    @property
    def epoch(self) -> float:
        """Meshes drawn here, times the processes, over the meshes there are."""
        return self.next_number / len(self.draws.cumulated)

    @property
    def learn(self) -> Callable[[Sequence[float]], None] | None:
        """Takes the errors of all objects drawn since it was last called; None where draws don't go by errors."""
        return self._learn if self.by_error else None

    def _learn(self, errors: Sequence[float]) -> None:
        for (place, number), error in zip(self._untold, errors, strict=True):
            if self.kept[place][0] == number and math.isfinite(error):
                before = float(self.errors[place])
                self.errors[place] = error if math.isnan(before) else before + _NEWS * (error - before)
        self._untold = []

    def _choose(self) -> int:
        if not self.by_error:
            return int(torch.randint(len(self.kept), (1,), generator=self.generator))
        errors = self.errors[: len(self.kept)]
        known = ~errors.isnan()
        mean = float(errors[known].mean()) if bool(known.any()) else 1.0
        weights = torch.where(known, errors, mean).clamp(min=1e-9) ** self.by_error
        place = int(torch.multinomial(weights, 1, generator=self.generator))
        self._untold.append((place, self.kept[place][0]))
        return place

    def draw(self, count: int) -> list[Field]:
        """Return the next objects. Raises a ValueError where no mesh can be used."""
        objects = []
        if len(self.kept) < self.size:
            self._refill()  # the buffer fills while training has begun
        for _ in range(count):
            if self.uses >= self.echo * _TOGETHER:
                self._refill()
                self.uses = 0
            self.uses += 1
            _, (index, sdf) = self.kept[self._choose()]
            objects.append((random_symmetry(index, self.resolution, self.generator), sdf))
        return objects

    def state(self) -> dict[str, Any]:
        """Return which draws are in the buffer, what comes next, and the generator."""
        return {
            "next_number": self.next_number,
            "uses": self.uses,
            "kept": [number for number, _ in self.kept],
            "errors": [None if math.isnan(e) else e for e in self.errors[: len(self.kept)].tolist()],
            "generator": self.generator.get_state().tolist(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Voxelize the buffer's draws again and go on."""
        self.next_number = int(state["next_number"])
        self.uses = int(state["uses"])
        self.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))
        self.kept = []
        for prepared in self._loader([int(number) for number in state["kept"]]):
            self.kept += self._voxelized(prepared)
        for place, error in enumerate(state["errors"]):
            self.errors[place] = math.nan if error is None else error
        self._incoming = None

    def _refill(self) -> None:
        for _ in range(100):
            if self._incoming is None:
                self._incoming = iter(self._loader(_Numbers(self.next_number, self.world_size)))
            prepared = next(self._incoming)
            self.next_number += _TOGETHER * self.world_size
            new = self._voxelized(prepared)
            for item in new:
                if len(self.kept) < self.size:
                    self.kept.append(item)
                else:
                    place = int(torch.randint(len(self.kept), (1,), generator=self.generator))
                    self.kept[place] = item
                    self.errors[place] = math.nan
            if new:
                return
        raise ValueError(f"none of {100 * _TOGETHER} meshes drawn could be voxelized; the log says why")

    def _loader(self, numbers: Any) -> DataLoader:
        return DataLoader(
            self.draws,
            batch_size=_TOGETHER,
            sampler=numbers,
            collate_fn=prepare,
            prefetch_factor=4 if self.workers else None,
            **loader_options(self.workers, self.draws.seed),
        )

    def _voxelized(self, prepared: Prepared) -> list[tuple[int, Field]]:
        for name, reason in prepared.failed.items():
            self._warn(name, reason)
        fields = self._made(prepared.made) + self._meshes(prepared)
        fields.sort(key=lambda item: prepared.order.index(item[0]))
        few = self.max_points
        for number, (index, _) in fields:
            if few is not None and len(index) > few:
                self._warn(f"draw {number}", f"{len(index)} voxels, more than {few}")
        return [item for item in fields if few is None or len(item[1][0]) <= few]

    def _made(self, numbers: list[int]) -> list[tuple[int, Field]]:
        """Return the fields of shapes made by rule."""
        made = []
        for number in numbers:
            shape = self.draws.shape(number, self.resolution, band=self.band, most=self.max_points)
            index, distance = shape.field(self.resolution, band=self.band, device=self.device)
            made.append((number, (index.to(torch.int16), distance.to(torch.float16))))
        return made

    def _meshes(self, prepared: Prepared) -> list[tuple[int, Field]]:
        if not prepared.numbers:
            return []
        counts = prepared.sizes.T.tolist()
        parts = list(
            zip(prepared.vertices.split(counts[0]), prepared.faces.split(counts[1]), prepared.watertight, strict=True)
        )
        fields: list[tuple[int, Field]] = []
        for number, field in zip(prepared.numbers, self._fields(prepared.numbers, parts), strict=True):
            if isinstance(field, str):
                self._warn(f"draw {number}", field)
            else:
                fields.append((number, (field.index.to(torch.int16), field.distance.to(torch.float16))))
        return fields

    def _fields(self, numbers: list[int], parts: list[tuple[Tensor, Tensor, bool]]) -> Sequence[VoxelField | str]:
        try:
            return voxelize_batch(parts, resolution=self.resolution, band=self.band, device=self.device)
        except ValueError as error:
            if len(parts) == 1:
                return [brief(error)]
            # One of them has no voxel: find out which.
            return [f for n, part in zip(numbers, parts, strict=True) for f in self._fields([n], [part])]

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("%s left out: %s", name, reason)


class _Numbers:
    """The numbers start, start + step, ... without end (a loader's sampler)."""

    def __init__(self, start: int, step: int) -> None:
        self.start = start
        self.step = step

    def __iter__(self) -> Iterator[int]:
        number = self.start
        while True:
            yield number
            number += self.step
