"""The boundary of an open surface, and what it adds to winding numbers that are counted along rays.

Close a surface with vertical strips that rise from its boundary edges for ever. A ray straight down from a point
crosses none of them, so the winding number of the closed surface there is the count of the ray's crossings; the
open surface's is that minus the strips' share, a sum over boundary edges alone (zero for a closed mesh). The idea
of closing the surface at infinity is that of Martens and Bessmeltsev (2025), "One-shot method for computing
generalized winding numbers". Works in voxel units.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.batch import MeshBatch

# Rays stand so much beside their samples (x, y; voxels), so that none goes through a corner or an edge of a mesh
# whose corners stand on samples. Which samples are on the surface is found out otherwise.
RAY = (1.618e-7, 0.577e-7)


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundary:
    """The directed edges that a surface's faces run along more often in one direction than in the other."""

    start: Tensor
    """float64 `[E, 3]`."""
    end: Tensor
    """float64 `[E, 3]`."""
    times: Tensor
    """float64 `[E]`: how often more."""
    starts: Tensor
    """Where each mesh's edges begin, int64 `[B + 1]`."""

    def __len__(self) -> int:
        return len(self.times)

    def of_mesh(self, number: int) -> Boundary:
        """Return the edges of one mesh."""
        own = slice(int(self.starts[number]), int(self.starts[number + 1]))
        starts = self.starts[number : number + 2] - self.starts[number]
        return Boundary(start=self.start[own], end=self.end[own], times=self.times[own], starts=starts)


def boundary_of(batch: MeshBatch) -> Boundary:
    """Return the boundary of meshes, as seen from their rays (moved by -RAY); empty where they are closed.

    Equal vertices of a mesh are expected to be one.
    """
    vertices, faces = batch.vertices, batch.faces
    start = faces.reshape(-1)
    end = faces.roll(-1, 1).reshape(-1)
    count = len(vertices)
    key, order = torch.sort(torch.minimum(start, end) * count + torch.maximum(start, end))
    edge = torch.nn.functional.pad((key[1:] != key[:-1]).cumsum(0), (1, 0))
    surplus = torch.zeros_like(key).index_add_(0, edge, torch.sign(end - start)[order])
    open_ = surplus[edge] != 0
    # One row an edge: where a run of equal keys begins.
    open_[1:] &= key[1:] != key[:-1]
    row = open_.nonzero().squeeze(1)
    key, surplus = key[row], surplus[edge[row]]
    seen = beside_rays(vertices)
    low, high = seen[key // count], seen[key % count]
    forward = (surplus > 0)[:, None]
    start, end = torch.where(forward, low, high), torch.where(forward, high, low)
    starts = torch.searchsorted(key // count, batch.vertex_starts)
    return Boundary(start=start, end=end, times=surplus.abs().double(), starts=starts)


def beside_rays(points: Tensor) -> Tensor:
    """Return points `[..., 3]` relative to the rays of samples at integer coordinates."""
    return points - points.new_tensor([*RAY, 0.0])
