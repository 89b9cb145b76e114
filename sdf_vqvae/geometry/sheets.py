"""Faces that no solid has for its skin: open sheets, which inside and outside say nothing about."""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.geometry.winding import inside_mesh

# The winding surface may miss this share of the mesh's area.
_MISSED_SHARE = 0.1
_PROBE_DISTANCE = 0.1
# Points probed to learn the share, and per face (on average) to learn which faces.
_PROBES = 8_000
_PROBES_A_FACE = 2


def missed_faces(corners: Tensor) -> Tensor | None:
    """Return a mask `[F]` of faces with outside on both sides, or None if they are a small share of the area.

    A point of a face is on the skin of a solid if inside and outside differ on its two sides, a tenth of a voxel
    away. First the share is measured on points spread evenly over the whole surface; only where it is large is
    every face looked at, and counts as missed if most of its points are. Inside on both sides is no miss.

    Args:
        corners: float64 `[F, 3, 3]`, voxel units.
    """
    normal = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = normal.norm(dim=1)
    normal = normal / length.clamp(min=1e-300)[:, None]
    area = length / 2
    total = float(area.sum())
    if total == 0:
        return None
    # Probe k stands at the same share of the area within its equal part of it.
    at = (torch.arange(_PROBES, device=corners.device, dtype=area.dtype) + 0.5) * (total / _PROBES)
    rows = torch.searchsorted(area.cumsum(0), at).clamp(max=len(area) - 1)
    if float(_outside_both(corners, normal, rows).float().mean()) <= _MISSED_SHARE:
        return None
    spread = area * (_PROBES_A_FACE * len(corners) / total)
    counts = spread.ceil().long().clamp(1, 64)
    rows = torch.arange(len(corners), device=corners.device).repeat_interleave(counts)
    outside = torch.zeros(len(corners), device=corners.device)
    outside.index_add_(0, rows, _outside_both(corners, normal, rows).float())
    missed = (outside > 0.5 * counts) & (area > 0)
    return missed if bool(missed.any()) else None


def _outside_both(corners: Tensor, normal: Tensor, rows: Tensor) -> Tensor:
    """Return whether both sides of a point on each face `[P]` are outside; points of one face are spread over it."""
    number = torch.arange(len(rows), device=corners.device)
    # A low-discrepancy sequence on the square, folded onto the triangle (Roberts, 2018: the R2 sequence).
    u, v = (0.5 + number * 0.7548776662466927) % 1, (0.5 + number * 0.5698402909980532) % 1
    over = u + v > 1
    u, v = torch.where(over, 1 - u, u).double(), torch.where(over, 1 - v, v).double()
    a, b, c = corners[rows].unbind(1)
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    step = _PROBE_DISTANCE * normal[rows]
    front, behind = inside_mesh(torch.cat([points + step, points - step]), corners).chunk(2)
    return ~front & ~behind
