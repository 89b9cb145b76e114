"""Several meshes on one grid each, laid end to end, so that a GPU has one round of large steps for all of them.

Knows triangles and points that belong to meshes; works in voxel units.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.winding import checked_winding_number


@dataclass(frozen=True, kw_only=True, eq=False)
class MeshBatch:
    """Meshes laid end to end."""

    vertices: Tensor
    """float64 `[V, 3]`, voxel units."""
    faces: Tensor
    """int64 `[F, 3]`, rows of `vertices`."""
    face_starts: Tensor
    """Where each mesh's faces begin, int64 `[B + 1]`."""
    face_mesh: Tensor
    """The mesh of each face, int64 `[F]`."""
    vertex_starts: Tensor
    """Where each mesh's vertices begin, int64 `[B + 1]`."""

    def __len__(self) -> int:
        return len(self.face_starts) - 1

    @classmethod
    def of(
        cls, meshes: Sequence[tuple[Tensor, Tensor]], resolution: int, device: torch.device | None = None
    ) -> MeshBatch:
        """Join meshes (vertices in the world cube, faces), which lie on one device, and move them to another."""
        device = device or meshes[0][0].device
        sizes = torch.tensor([[len(v), len(f)] for v, f in meshes], dtype=torch.int64, device="cpu")
        starts = torch.nn.functional.pad(sizes.cumsum(0), (0, 0, 1, 0)).to(device)
        if len(meshes) == 1:
            faces = meshes[0][1].to(device).long()
            face_mesh = torch.zeros(len(faces), dtype=torch.int64, device=device)
        else:
            face_mesh = torch.arange(len(meshes), device=device).repeat_interleave(
                sizes[:, 1].to(device), output_size=int(sizes[:, 1].sum())
            )
            faces = torch.cat([f.long() for _, f in meshes]).to(device) + starts[face_mesh, :1]
        vertices = torch.cat([v.double() for v, _ in meshes]).to(device)
        return cls(
            vertices=(vertices + 0.5) * resolution - 0.5,
            faces=faces,
            face_starts=starts[:, 1].contiguous(),
            face_mesh=face_mesh,
            vertex_starts=starts[:, 0].contiguous(),
        )

    @functools.cached_property
    def corners(self) -> Tensor:
        """float64 `[F, 3, 3]`."""
        return self.vertices[self.faces]

    def winding_number(self, points: Tensor, mesh: Tensor, corners: Tensor) -> Tensor:
        """Return the winding number of its mesh round each point, on the right side of 0.5 and of -0.5. `[P]`

        Args:
            points: float64 `[P, 3]`.
            mesh: the mesh of each point, int64 `[P]`, ascending.
            corners: `self.corners`, or its faces turned round.
        """
        if points.is_cuda and importlib.util.find_spec("triton") is not None:
            from sdf_vqvae.geometry.voxelizer.winding_triton import winding_number_of_meshes

            return winding_number_of_meshes(points, mesh, corners, self.face_mesh, self.face_starts)
        parts = []
        starts = self.face_starts.tolist()
        for number, own in enumerate(split_by_mesh(points, mesh, len(self))):
            triangles = corners[starts[number] : starts[number + 1]]
            parts.append(checked_winding_number(own, triangles, levels=(0.5, -0.5)))
        return torch.cat(parts)


def split_by_mesh(rows: Tensor, mesh: Tensor, count: int) -> tuple[Tensor, ...]:
    """Return the rows of each mesh; `mesh` is ascending."""
    if count == 1:
        return (rows,)
    return rows.split(sizes_by_mesh(mesh, count))


def sizes_by_mesh(mesh: Tensor, count: int) -> list[int]:
    """Return how many rows each mesh has; `mesh` is ascending."""
    if count == 1:
        return [len(mesh)]
    return torch.searchsorted(mesh, torch.arange(count + 1, device=mesh.device)).diff().tolist()
