"""How well inside and outside describe a mesh: which way its faces look, and which are no solid's skin.

Works in voxel units. Knows nothing of grids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.geometry.winding import checked_winding_number

# The winding surface may miss this share of the mesh's area.
_MISSED_SHARE = 0.1
# Voxels. A solid thinner than this by a face is skin that no grid shows, so its faces count as missed.
_PROBE_DISTANCE = 0.5
# Points probed to learn shares of the area, and per face (on average) to learn which faces.
_PROBES = 2_000
_PROBES_A_FACE = 2
# Turned round, this much more of the area must be skin: a sheet that is the skin of nothing has no right way.
_CLEARLY = 0.1


def looks_inward(corners: Tensor) -> bool:
    """Return whether the faces `[F, 3, 3]` of a closed mesh look inward: its signed volume is negative."""
    a, b, c = (corners - corners.mean(dim=(0, 1))).unbind(1)
    return bool((a * torch.linalg.cross(b, c)).sum() < 0)


class Skin:
    """How much of a mesh's area is the skin of a solid: inside and outside differ on its two sides.

    A point of a face is probed half a voxel away on both sides. A mesh that is closed needs none of this.

    Args:
        corners: float64 `[F, 3, 3]`, voxel units.
    """

    def __init__(self, corners: Tensor) -> None:
        rows = _spread_rows(corners)
        front, behind = _winding_on_both_sides(corners, rows)
        as_it_is = ((front > 0.5) != (behind > 0.5)).float().mean()
        turned = ((front < -0.5) != (behind < -0.5)).float().mean()
        # No point at all (a mesh without area) gives no number, which is not greater.
        self.is_turned_round = bool(turned > as_it_is + _CLEARLY)
        """Whether the faces look inward, so that only the mesh turned round has an inside."""
        self._corners = corners.flip(1) if self.is_turned_round else corners
        way = -1 if self.is_turned_round else 1
        outside = (front * way <= 0.5) & (behind * way <= 0.5)
        self._missed_share = float(outside.float().mean()) if len(rows) else 0.0

    def missed_faces(self) -> Tensor | None:
        """Return a mask `[F]` of faces with outside on both sides, or None if they are a small share of the area.

        Only where the share is large is every face looked at; it counts as missed if most of its points are. Inside
        on both sides is no miss.
        """
        if self._missed_share <= _MISSED_SHARE:
            return None
        corners = self._corners
        area = _normals(corners).norm(dim=1) / 2
        counts = (area * (_PROBES_A_FACE * len(corners) / area.sum())).ceil().long().clamp(1, 64)
        rows = torch.arange(len(corners), device=corners.device).repeat_interleave(counts)
        outside = torch.zeros(len(corners), device=corners.device)
        front, behind = _winding_on_both_sides(corners, rows)
        outside.index_add_(0, rows, ((front <= 0.5) & (behind <= 0.5)).float())
        missed = (outside > 0.5 * counts) & (area > 0)
        return missed if bool(missed.any()) else None


def _normals(corners: Tensor) -> Tensor:
    return torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _spread_rows(corners: Tensor) -> Tensor:
    """Return faces in proportion to their area, int64 `[P]`; empty for a mesh without area."""
    reached = _normals(corners).norm(dim=1).cumsum(0)
    if float(reached[-1]) == 0:
        return torch.empty(0, dtype=torch.int64, device=corners.device)
    at = (torch.arange(_PROBES, device=corners.device, dtype=reached.dtype) + 0.5) * (reached[-1] / _PROBES)
    return torch.searchsorted(reached, at).clamp(max=len(reached) - 1)


def _winding_on_both_sides(corners: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the winding numbers in front of and behind a point on each of the faces `[P]`. `[P]` each

    Points of one face are spread over it.
    """
    number = torch.arange(len(rows), device=corners.device)
    # A low-discrepancy sequence on the square, folded onto the triangle (Roberts, 2018: the R2 sequence).
    u, v = (0.5 + number * 0.7548776662466927) % 1, (0.5 + number * 0.5698402909980532) % 1
    over = u + v > 1
    u, v = torch.where(over, 1 - u, u).double(), torch.where(over, 1 - v, v).double()
    a, b, c = corners[rows].unbind(1)
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    step = _PROBE_DISTANCE * torch.nn.functional.normalize(_normals(corners), dim=1)[rows]
    winding = checked_winding_number(torch.cat([points + step, points - step]), corners, levels=(0.5, -0.5))
    front, behind = winding.chunk(2)
    return front, behind
