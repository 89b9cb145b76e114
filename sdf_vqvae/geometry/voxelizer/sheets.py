"""How well inside and outside describe a mesh: which way its faces look, and which are no solid's skin.

Works in voxel units. Knows nothing of grids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.batch import MeshBatch

# The winding surface may miss this share of the mesh's area.
_MISSED_SHARE = 0.1
# Voxels. A solid thinner than this by a face is skin that no grid shows, so its faces count as missed.
_PROBE_DISTANCE = 0.5
# Points probed to learn shares of the area, and per face (on average) to learn which faces.
_PROBES = 2_000
_PROBES_A_FACE = 2
# Turned round, this much more of the area must be skin: a sheet that is the skin of nothing has no right way.
_CLEARLY = 0.1


def looks_inward(batch: MeshBatch) -> Tensor:
    """Return whether the faces of each mesh, all closed, look inward: its signed volume is negative. bool `[B]`"""
    first = batch.vertices[batch.faces[batch.face_starts[:-1], 0]]  # any point near, so that little cancels
    a, b, c = (batch.corners - first[batch.face_mesh, None]).unbind(1)
    volume = torch.zeros(len(batch), dtype=a.dtype, device=a.device)
    return volume.index_add_(0, batch.face_mesh, (a * torch.linalg.cross(b, c)).sum(1)) < 0


class Skin:
    """How much of each mesh's area is the skin of a solid: inside and outside differ on its two sides.

    A point of a face is probed half a voxel away on both sides. Meshes that are closed need none of this.

    Args:
        batch: the meshes.
        closed: which of them are known to be closed, bool `[B]`: their signed volume says which way they look, and
            they miss no face.
    """

    def __init__(self, batch: MeshBatch, closed: Tensor) -> None:
        corners = batch.corners
        area = _normals(corners).norm(dim=1) / 2
        rows, mesh = _spread_rows(batch, area)
        front, behind = _winding_on_both_sides(batch, corners, rows, mesh)
        as_it_is = _share((front > 0.5) != (behind > 0.5), mesh, len(batch))
        turned = _share((front < -0.5) != (behind < -0.5), mesh, len(batch))
        self.turned_round = torch.where(closed, looks_inward(batch), turned > as_it_is + _CLEARLY)
        """Whether each mesh's faces look inward, so that only the mesh turned round has an inside. bool `[B]`"""
        self._batch, self._area = batch, area
        self._corners = torch.where(self.turned_round[batch.face_mesh, None, None], corners.flip(1), corners)
        way = torch.where(self.turned_round, -1, 1)[mesh]
        outside = (front * way <= 0.5) & (behind * way <= 0.5)
        self._missed = (_share(outside, mesh, len(batch)) > _MISSED_SHARE) & ~closed

    def missed_faces(self) -> Tensor:
        """Return the faces with outside on both sides, of those meshes where their share is large. int64 `[M]`

        Only there is every face looked at; it counts as missed if most of its points are. Inside on both sides is
        no miss.
        """
        batch = self._batch
        faces = self._missed[batch.face_mesh].nonzero().squeeze(1)
        if len(faces) == 0:
            return faces
        area, mesh = self._area[faces], batch.face_mesh[faces]
        whole = torch.zeros(len(batch), dtype=area.dtype, device=area.device).index_add_(0, mesh, area)
        count = batch.face_starts.diff()
        counts = (area * (_PROBES_A_FACE * count / whole.clamp(min=1e-300))[mesh]).ceil().long().clamp(1, 64)
        place = torch.arange(len(faces), device=faces.device).repeat_interleave(counts)
        rows = faces[place]
        front, behind = _winding_on_both_sides(batch, self._corners, rows, batch.face_mesh[rows])
        outside = torch.zeros(len(faces), device=faces.device)
        outside.index_add_(0, place, ((front <= 0.5) & (behind <= 0.5)).float())
        return faces[(outside > 0.5 * counts) & (area > 0)]


def _share(what: Tensor, mesh: Tensor, count: int) -> Tensor:
    """Return which share of each mesh's points `what [P]` is true of; 0 for a mesh without any. `[B]`"""
    hits = torch.zeros(count, device=what.device).index_add_(0, mesh, what.float())
    return hits / _PROBES


def _normals(corners: Tensor) -> Tensor:
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _spread_rows(batch: MeshBatch, area: Tensor) -> tuple[Tensor, Tensor]:
    """Return faces in proportion to their area, int64 `[P]`, and their meshes; none of a mesh without area."""
    reached = area.cumsum(0)
    ends = torch.nn.functional.pad(reached, (1, 0))[batch.face_starts]  # [B + 1]
    share = (torch.arange(_PROBES, device=area.device, dtype=area.dtype) + 0.5) / _PROBES
    at = ends[:-1, None] + share * ends.diff()[:, None]  # [B, probes]
    rows = torch.searchsorted(reached, at.reshape(-1)).view(len(batch), -1)
    rows = rows.clamp(min=batch.face_starts[:-1, None], max=batch.face_starts[1:, None] - 1)
    mesh = torch.arange(len(batch), device=area.device)[:, None].expand_as(rows)
    real = (ends.diff() > 0)[:, None].expand_as(rows)
    return rows[real], mesh[real]


def _winding_on_both_sides(batch: MeshBatch, corners: Tensor, rows: Tensor, mesh: Tensor) -> tuple[Tensor, Tensor]:
    """Return the winding numbers in front of and behind a point on each of the faces `[P]`. `[P]` each

    Points of one face are spread over it.
    """
    number = torch.arange(len(rows), device=corners.device) - torch.searchsorted(mesh, mesh)  # within its mesh
    # A low-discrepancy sequence on the square, folded onto the triangle (Roberts, 2018: the R2 sequence).
    u, v = (0.5 + number * 0.7548776662466927) % 1, (0.5 + number * 0.5698402909980532) % 1
    over = u + v > 1
    u, v = torch.where(over, 1 - u, u).double(), torch.where(over, 1 - v, v).double()
    a, b, c = corners[rows].unbind(1)
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    normal = torch.linalg.cross(b - a, c - a)
    step = _PROBE_DISTANCE * torch.nn.functional.normalize(normal, dim=1)
    both = torch.stack([points + step, points - step], dim=1).view(-1, 3)
    winding = batch.winding_number(both, mesh.repeat_interleave(2), corners)
    front, behind = winding.view(-1, 2).unbind(1)
    return front, behind
