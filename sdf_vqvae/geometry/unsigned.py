"""Signs for unsigned distances: what stands behind a surface that the outside cannot reach is inside.

The original system stored unsigned distances, whose zero set no iso-surface can be taken of: any positive level
gives two walls. Signs make one wall. Works in index units and knows nothing of files and meshes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import cKDTree
from torch import Tensor

# Of two neighboring samples on different sides of a surface one lies within half a step of it, so samples within
# half a step close every way through.
_WALL = 0.5
# A cell of marching cubes that is cut has its corners within sqrt(3) of the surface.
_WHOLE_CELLS = 1.75
# Samples of a narrow band that a cell of the coarser grid must hold on average. More make the surface coarser, fewer
# tear it: F-scores of 10 meshes at bands of 0.1 and 0.01 were best at one.
_SAMPLES_A_CELL = 1.0
_COARSE_BAND = 3.0
_LARGEST_FACTOR = 16
_MISSED_SHARE = 0.1
_SHELL_HALF_THICKNESS = 0.5
_NEIGHBORS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
_NEIGHBORS = _NEIGHBORS[np.abs(_NEIGHBORS).any(axis=1)]


@dataclass(frozen=True, kw_only=True, eq=False)
class SignedSamples:
    """A signed field made from an unsigned one."""

    values: Tensor
    """float32 `[N]`, in steps of the samples' own grid; negative inside."""
    index: Tensor
    """int32 `[N, 3]` on the samples' own grid."""
    factor: int
    """Steps of the given grid in one of theirs. Sample j of a coarser grid lies at `(j + 0.5) * factor - 0.5`."""
    method: str
    """`flood`, or `flood+shell` where open parts became a shell one step thick."""


def sign_by_flood(distance: Tensor, index: Tensor) -> SignedSamples:
    """Give unsigned distances a sign: positive where a flood from outside the samples arrives.

    Samples within half a step of the surface are the wall; a wall sample takes the side that most of its 26
    neighbors are on. Where more than a tenth of the wall has no inside next to it (open sheets, or solids thinner
    than a step), those parts become a closed shell one step thick, as signed voxelization does.

    Samples that end less than sqrt(3) steps from the surface (the original's default is 0.01) leave no whole cell
    for an iso-surface. They are read as points of the surface and their distances are taken anew on a grid coarser
    by a power of two, at most 16: the wider the band, the finer the result.

    Args:
        distance: `[N]`, >= 0, in steps of the grid.
        index: int `[N, 3]`, >= 0, each sample once.

    Raises:
        ValueError: no sample lies within half a step of a surface, or a distance is negative.
    """
    values, places = distance.detach().cpu().double().numpy(), index.detach().cpu().numpy().astype(np.int64)
    if len(values) == 0 or values.min() < 0:
        raise ValueError("signs are found for unsigned distances: none may be negative, and one must be there")
    if values.min() > _WALL:
        raise ValueError(
            f"no sample lies within half a voxel of a surface (the nearest is {values.min():.2g} voxels away)"
        )
    factor = _coarsening(float(values.max()))
    if factor > 1:
        values, places = _distances_to_points(places[values <= _WALL], factor)
    signed, method = _signed(values, places)
    return SignedSamples(
        values=torch.from_numpy(signed).float().to(distance.device),
        index=torch.from_numpy(places).int().to(index.device),
        factor=factor,
        method=method,
    )


def _coarsening(band: float) -> int:
    """Return by how much a grid must be coarsened for samples within `band` steps to close its walls."""
    factor = 1
    if band < _WHOLE_CELLS:
        factor = 2
        while factor < _LARGEST_FACTOR and 2 * band * factor**2 < _SAMPLES_A_CELL:
            factor *= 2
    return factor


def _distances_to_points(points: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Return distances `[N]` and places `[N, 3]` of the coarse samples within a band of points `[P, 3]`."""
    inner = (points + 0.5) / factor - 0.5
    reach = int(np.ceil(_COARSE_BAND))
    low = inner.min(axis=0).astype(np.int64) - reach - 1
    occupied = np.zeros(np.ceil(inner.max(axis=0)).astype(np.int64) - low + reach + 2, dtype=bool)
    occupied[tuple((np.round(inner).astype(np.int64) - low).T)] = True
    near = ndimage.binary_dilation(occupied, np.ones((3, 3, 3), dtype=bool), iterations=reach)
    places = np.argwhere(near) + low
    places = places[(places >= 0).all(axis=1)]
    values, _ = cKDTree(inner).query(places, distance_upper_bound=_COARSE_BAND)
    close = np.isfinite(values)
    return values[close], places[close]


def _signed(values: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the values `[N]` with signs and how they were found."""
    low = places.min(axis=0) - 1
    at = places - low
    wall = np.zeros(at.max(axis=0) + 2, dtype=bool)  # one free sample all round
    is_wall = values <= _WALL
    wall[tuple(at[is_wall].T)] = True
    regions, _ = ndimage.label(~wall)
    side = np.where(regions == regions[0, 0, 0], 1, -1).astype(np.int8)
    side[wall] = 0
    sign = side[tuple(at.T)].astype(np.float64)
    around = at[is_wall][:, None, :] + _NEIGHBORS  # [W, 26, 3]
    votes = side[around[..., 0], around[..., 1], around[..., 2]]
    sign[is_wall] = np.where(votes.sum(axis=1, dtype=np.int32) < 0, -1, 1)
    signed = sign * values
    missed = (votes >= 0).all(axis=1)
    if missed.mean() <= _MISSED_SHARE:
        return signed, "flood"
    sheet = np.zeros_like(wall)
    sheet[tuple(at[is_wall][missed].T)] = True
    reached = ndimage.binary_dilation(sheet, np.ones((3, 3, 3), dtype=bool))[tuple(at.T)]
    shell = np.where(reached, values - _SHELL_HALF_THICKNESS, np.inf)
    return np.minimum(signed, shell), "flood+shell"
