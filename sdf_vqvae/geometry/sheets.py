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
_PROBES = 8_000
_PROBES_A_FACE = 2
# Turned round, this much more of the area must be skin: a sheet that is the skin of nothing has no right way.
_CLEARLY = 0.1


def inside_out(corners: Tensor, *, watertight: bool) -> bool:
    """Return whether the faces look inward, so that only a mesh turned round has an inside.

    A closed mesh tells by its signed volume; any other by the share of its area that is the skin of a solid, as
    it is and turned round.

    Args:
        corners: float64 `[F, 3, 3]`, voxel units.
        watertight: the mesh is known to be closed.
    """
    if watertight:
        a, b, c = (corners - corners.mean(dim=(0, 1))).unbind(1)
        return bool((a * torch.linalg.cross(b, c)).sum() < 0)
    front, behind = _winding_on_both_sides(corners, _spread_rows(corners))
    as_it_is = ((front > 0.5) != (behind > 0.5)).float().mean()
    turned = ((front < -0.5) != (behind < -0.5)).float().mean()
    return bool(turned > as_it_is + _CLEARLY)


def missed_faces(corners: Tensor) -> Tensor | None:
    """Return a mask `[F]` of faces with outside on both sides, or None if they are a small share of the area.

    A point of a face is on the skin of a solid if inside and outside differ on its two sides, half a voxel
    away. First the share is measured on points spread evenly over the whole surface; only where it is large is
    every face looked at, and counts as missed if most of its points are. Inside on both sides is no miss.

    Args:
        corners: float64 `[F, 3, 3]`, voxel units.
    """
    rows = _spread_rows(corners)
    if len(rows) == 0 or float(_outside_both(corners, rows).float().mean()) <= _MISSED_SHARE:
        return None
    area = _normals(corners).norm(dim=1) / 2
    counts = (area * (_PROBES_A_FACE * len(corners) / area.sum())).ceil().long().clamp(1, 64)
    rows = torch.arange(len(corners), device=corners.device).repeat_interleave(counts)
    outside = torch.zeros(len(corners), device=corners.device)
    outside.index_add_(0, rows, _outside_both(corners, rows).float())
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


def _outside_both(corners: Tensor, rows: Tensor) -> Tensor:
    front, behind = _winding_on_both_sides(corners, rows)
    return (front <= 0.5) & (behind <= 0.5)


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
