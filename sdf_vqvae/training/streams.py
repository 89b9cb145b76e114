"""Endless, seeded streams of training objects that can stop and go on exactly where they were.

A stream hands out distance fields `(index int16 [N, 3], distance float16 [N])` on a device. `MeshStream` makes them
from meshes as they are drawn, with augmentation; `FieldStream` reads prepared files.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import trimesh
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.objects import Place
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField, voxelize_batch
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.runtime import worker_seeds

logger = logging.getLogger(__name__)

Field = tuple[Tensor, Tensor]
_TOGETHER = 32
"""Meshes that are voxelized in one go."""


class Stream(Protocol):
    """What the trainer draws from."""

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


def source_weights(sources: Sequence[str], shares: Mapping[str, float]) -> Tensor:
    """Return how often each object is drawn, by its source: those with a share get it, the others the rest evenly."""
    counts = Counter(sources)
    rest = sum(source not in shares for source in sources)
    left = 1.0 - sum(shares.values())
    return torch.tensor([shares[s] / counts[s] if s in shares else left / rest for s in sources])


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a mesh before it is normalized."""

    rotation: float = 0.0
    """Share of the draws that are turned by a random rotation."""
    stretch: float = 0.0
    """Share of the draws that are scaled along each axis by a factor of its own, 3/4 to 4/3."""


def augmented(mesh: trimesh.Trimesh, how: Augmentation, rng: np.random.Generator) -> trimesh.Trimesh:
    """Return the mesh turned and stretched at random (a new one), or itself."""
    matrix = np.eye(3)
    if rng.random() < how.stretch:
        matrix = np.diag(np.exp(rng.uniform(np.log(0.75), -np.log(0.75), 3)))
    if rng.random() < how.rotation:
        matrix = _rotation(rng.normal(size=4)) @ matrix
    if np.array_equal(matrix, np.eye(3)):
        return mesh
    return trimesh.Trimesh(np.asarray(mesh.vertices) @ matrix.T, mesh.faces, process=False)


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation of a quaternion (w, x, y, z), which need not be of unit length. [3, 3]"""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Normalized meshes, in as few arrays as possible: each costs a file handle between processes."""

    numbers: list[int]
    """The draws that they come from."""
    sizes: Tensor
    """int64 `[B, 2]`: vertices and faces of each."""
    vertices: Tensor
    """float64 `[V, 3]`."""
    faces: Tensor
    """int64 `[F, 3]`, numbered within each mesh."""
    watertight: list[bool]
    failed: dict[str, str]
    """Name -> why it can't be used."""


class MeshDraws(Dataset):
    """Draw number n of a seeded endless sequence, the same whoever asks: a mesh, augmented and normalized.

    Args:
        places: where the meshes lie.
        weights: `[len(places)]`, how often each is drawn.
        augmentation: what is done to them.
        seed: seed of the sequence.
    """

    def __init__(self, places: Sequence[Place], weights: Tensor, augmentation: Augmentation, seed: int) -> None:
        self.places = places
        self.cumulated = np.cumsum(weights.double().numpy())
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, number: int) -> tuple[int, str, tuple[Tensor, Tensor, bool] | str]:
        """Return the number, the mesh's name, and the mesh or why it can't be used."""
        rng = np.random.default_rng((self.seed, number))
        drawn = np.searchsorted(self.cumulated, rng.random() * self.cumulated[-1], side="right")
        place = self.places[int(min(drawn, len(self.cumulated) - 1))]
        try:
            mesh = normalize_mesh(augmented(place.mesh(), self.augmentation, rng))
        except ValueError as error:
            return number, place.name, brief(error)
        return number, place.name, (mesh.vertices, mesh.faces, mesh.watertight)


def prepare(items: Sequence[tuple[int, str, tuple[Tensor, Tensor, bool] | str]]) -> Prepared:
    """Join draws (a loader's `collate_fn`)."""
    usable = [(number, found) for number, _, found in items if not isinstance(found, str)]
    return Prepared(
        numbers=[number for number, _ in usable],
        sizes=torch.tensor([[len(v), len(f)] for _, (v, f, _) in usable], dtype=torch.int64).view(-1, 2),
        vertices=torch.cat([v for _, (v, _, _) in usable] or [torch.empty(0, 3, dtype=torch.float64)]),
        faces=torch.cat([f for _, (_, f, _) in usable] or [torch.empty(0, 3, dtype=torch.int64)]),
        watertight=[closed for _, (_, _, closed) in usable],
        failed={name: found for _, name, found in items if isinstance(found, str)},
    )


class MeshStream:
    """Fields of meshes, voxelized on the device as they are drawn and each used a few times from a buffer.

    Each use turns the field by another of the 48 symmetries of the grid, which are exact on voxels. A mesh that
    can't be voxelized, or has too many voxels, is logged once and another is drawn instead.

    Args:
        draws: the meshes.
        resolution: grid side R.
        band: half width of the band in voxels.
        device: where to voxelize and keep the buffer.
        echo: uses of a field, on average, before it has been replaced.
        buffer: fields kept.
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
        max_points: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        self.draws = draws
        self.resolution = resolution
        self.band = band
        self.device = device
        self.echo = echo
        self.size = buffer
        self.max_points = max_points
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.generator = torch.Generator().manual_seed(draws.seed * 1009 + rank)
        self.kept: list[tuple[int, Field]] = []
        self.next_number = rank
        self.uses = 0
        self._incoming: Iterator[Prepared] | None = None
        self._warned: set[str] = set()

    @property
    def epoch(self) -> float:
        """Meshes drawn here, times the processes, over the meshes there are."""
        return self.next_number / len(self.draws.cumulated)

    def draw(self, count: int) -> list[Field]:
        """Return the next objects. Raises a ValueError where no mesh can be used."""
        found = []
        if len(self.kept) < self.size:
            self._refill()  # the buffer fills while training has begun
        for _ in range(count):
            if self.uses >= self.echo * _TOGETHER:
                self._refill()
                self.uses = 0
            self.uses += 1
            _, (index, sdf) = self.kept[int(torch.randint(len(self.kept), (1,), generator=self.generator))]
            found.append((random_symmetry(index, self.resolution, self.generator), sdf))
        return found

    def state(self) -> dict[str, Any]:
        """Return which draws are in the buffer, what comes next, and the generator."""
        return {
            "next_number": self.next_number,
            "uses": self.uses,
            "kept": [number for number, _ in self.kept],
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
                    self.kept[int(torch.randint(len(self.kept), (1,), generator=self.generator))] = item
            if new:
                return
        raise ValueError(f"none of {100 * _TOGETHER} meshes drawn could be voxelized; the log says why")

    def _loader(self, numbers: Any) -> DataLoader:
        return DataLoader(
            self.draws,
            batch_size=_TOGETHER,
            sampler=numbers,
            num_workers=self.workers,
            collate_fn=prepare,
            multiprocessing_context="spawn" if self.workers else None,
            prefetch_factor=4 if self.workers else None,
            generator=worker_seeds(self.draws.seed),
        )

    def _voxelized(self, prepared: Prepared) -> list[tuple[int, Field]]:
        for name, reason in prepared.failed.items():
            self._warn(name, reason)
        if not prepared.numbers:
            return []
        counts = prepared.sizes.T.tolist()
        parts = list(
            zip(prepared.vertices.split(counts[0]), prepared.faces.split(counts[1]), prepared.watertight, strict=True)
        )
        found: list[tuple[int, Field]] = []
        for number, field in zip(prepared.numbers, self._fields(prepared.numbers, parts), strict=True):
            if isinstance(field, str):
                self._warn(f"draw {number}", field)
            elif self.max_points is not None and len(field.index) > self.max_points:
                self._warn(f"draw {number}", f"{len(field.index)} voxels, more than {self.max_points}")
            else:
                found.append((number, (field.index.to(torch.int16), field.distance.to(torch.float16))))
        return found

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


def random_symmetry(index: Tensor, resolution: int, generator: torch.Generator) -> Tensor:
    """Apply one of the 48 symmetries of a cube to voxel indices `[N, 3]`."""
    order = torch.randperm(3, generator=generator)
    mirrored = torch.rand(3, generator=generator) < 0.5
    turned = index[:, order.to(index.device)]
    return torch.where(mirrored.to(index.device), resolution - 1 - turned, turned)


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
        self.fields = fields
        self.device = device
        self.seed = seed
        self.symmetries = symmetries
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
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
                    num_workers=self.workers,
                    multiprocessing_context="spawn" if self.workers else None,
                    generator=worker_seeds(self.seed),
                )
            )
        found = []
        for _ in range(count):
            index, sdf = next(self._incoming)
            self.position += 1
            index, sdf = index.to(self.device), sdf.to(self.device)
            if self.symmetries:
                index = random_symmetry(index, self.fields.resolution, self.generator)
            found.append((index, sdf))
        return found

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
        self.count = count
        self.seed = seed
        self.position = position
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[int]:
        each = self.count // self.world_size
        position = self.position
        while True:
            order = np.random.default_rng((self.seed, position // each)).permutation(self.count)
            yield int(order[self.rank + (position % each) * self.world_size])
            position += 1


def collate_fields(objects: Sequence[Field], device: torch.device) -> dict[str, Tensor]:
    """Join `(index [N, 3], distance [N])` pairs to a batch dict on a device."""
    sizes = torch.tensor([len(sdf) for _, sdf in objects], device=device)
    total = sum(len(sdf) for _, sdf in objects)
    numbers = torch.arange(len(objects), device=device, dtype=torch.int32)
    return {
        "sparse_sdf": torch.cat([sdf for _, sdf in objects]).to(device).float()[:, None],
        "sparse_index": torch.cat([index for index, _ in objects]).to(device).int(),
        "batch_idx": numbers.repeat_interleave(sizes, output_size=total),
    }
