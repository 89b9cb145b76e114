"""Which shape comes when, and how a mesh is turned and stretched: a seeded sequence, the same whoever asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import trimesh
from torch import Tensor
from torch.utils.data import Dataset

from sdf_vqvae.config.training import THIN
from sdf_vqvae.data.objects import Place
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.solids import Solids
from sdf_vqvae.training.thin_shapes import thin_shape
from sdf_vqvae.utils.errors import brief

Drawn = tuple[Tensor, Tensor, bool] | str | None


def source_weights(sources: Sequence[str], shares: Mapping[str, float]) -> Tensor:
    """Return how often each object is drawn, by its source: those with a share get it, the others the rest evenly."""
    counts = Counter(sources)
    rest = sum(source not in shares for source in sources)
    left = 1.0 - sum(shares.values())  # a share of what no mesh is stays out of the sum of the weights
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
    order: list[int]
    """All draws, also those of the other fields, as they were asked for."""
    made: list[int]
    """The draws that are shapes made by rule (`MeshDraws.shape`)."""
    failed: dict[str, str]
    """Name -> why it can't be used."""


class MeshDraws(Dataset):
    """Draw number n of a seeded endless sequence, the same whoever asks: a mesh, augmented and normalized.

    Args:
        places: where the meshes lie.
        weights: `[len(places)]`, how often each is drawn.
        augmentation: what is done to them.
        seed: seed of the sequence.
        made: share of the draws that are thin shapes made by rule, below 1.
    """

    def __init__(
        self,
        places: Sequence[Place],
        weights: Tensor,
        augmentation: Augmentation,
        seed: int,
        *,
        made: float = 0.0,
    ) -> None:
        self.places = places
        self.cumulated = np.cumsum(weights.double().numpy())
        self.augmentation = augmentation
        self.seed = seed
        self.made = made
        self.total = self.cumulated[-1] / (1 - made)
        """Of the weights, with that of what is made by rule, which comes after the meshes."""

    def __getitem__(self, number: int) -> tuple[int, str, Drawn]:
        """Return the number, a name, and the mesh, None for a shape made by rule, or why a mesh can't be used."""
        if self.is_made(number):
            return number, THIN, None
        rng = np.random.default_rng((self.seed, number))
        at = rng.random() * self.total
        drawn = np.searchsorted(self.cumulated, at, side="right")
        place = self.places[int(min(drawn, len(self.cumulated) - 1))]
        try:
            mesh = normalize_mesh(augmented(place.mesh(), self.augmentation, rng))
        except ValueError as error:
            return number, place.name, brief(error)
        return number, place.name, (mesh.vertices, mesh.faces, mesh.watertight)

    def is_made(self, number: int) -> bool:
        """Return whether a draw is a shape made by rule."""
        return bool(np.random.default_rng((self.seed, number)).random() * self.total > self.cumulated[-1])

    def shape(self, number: int, resolution: int, *, band: float = 3.0, most: int | None = None) -> Solids:
        """Return the shape of a draw that is made by rule, for a grid of this side (see `thin_shape`)."""
        return thin_shape(np.random.default_rng((self.seed, number, 1)), resolution, band=band, most=most)


def prepare(items: Sequence[tuple[int, str, Drawn]]) -> Prepared:
    """Join draws (a loader's `collate_fn`)."""
    usable = [(number, mesh) for number, _, mesh in items if isinstance(mesh, tuple)]
    return Prepared(
        numbers=[number for number, _ in usable],
        sizes=torch.tensor([[len(v), len(f)] for _, (v, f, _) in usable], dtype=torch.int64).view(-1, 2),
        vertices=torch.cat([v for _, (v, _, _) in usable] or [torch.empty(0, 3, dtype=torch.float64)]),
        faces=torch.cat([f for _, (_, f, _) in usable] or [torch.empty(0, 3, dtype=torch.int64)]),
        watertight=[closed for _, (_, _, closed) in usable],
        order=[number for number, _, _ in items],
        made=[number for number, _, mesh in items if mesh is None],
        failed={name: mesh for _, name, mesh in items if isinstance(mesh, str)},
    )
