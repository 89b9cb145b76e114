"""From a sparse field of any description to its surface: signs where there are none, coarser grid, marching cubes.

Works in the world cube [-0.5, 0.5]^3 and knows nothing of networks and of source units.
"""

from __future__ import annotations

import logging

import torch
import trimesh
from torch import Tensor

from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.geometry.isosurface import extract_isosurface
from sdf_vqvae.geometry.resample import coarser_grid, resample_field
from sdf_vqvae.geometry.unsigned import sign_by_flood

logger = logging.getLogger(__name__)

_OPEN_SHARE = 0.01


def extract_surface(
    values: Tensor,
    index: Tensor,
    field: FieldDescription,
    *,
    voxel_resolution: int | None = None,
    mc_threshold: float | None = None,
) -> trimesh.Trimesh:
    """Return the surface of one object's field, in the world cube.

    A signed field is read at level 0. An unsigned one has no such level: it gets signs first (see
    `sign_by_flood`), so that the surface has one wall, and a log line says how. An explicit `mc_threshold` is
    taken as it is, which for an unsigned field gives the two walls at that distance.

    Args:
        values: `[N]` in units of the field.
        index: int `[N, 3]` in `0..R-1`.
        field: what the values mean.
        voxel_resolution: grid side to read the field on, at most R (the default).
        mc_threshold: level of the surface in units of the field.

    Raises:
        ValueError: the resolution exceeds the field's, or there is no surface at the level.
    """
    side = field.resolution
    level, step, offset = 0.0, 1.0, 0.0  # sample j of the grid in hand lies at j * step + offset of the given one
    sampling, own_side = field.sampling, side
    if mc_threshold is not None:
        logger.info("extracting the surface at level %g as asked (default: 0)", mc_threshold)
        level = mc_threshold
    elif field.kind == "udf":
        # A network that was trained on unsigned distances may answer slightly less than none.
        signed = sign_by_flood(values.float().clamp(min=0) * field.voxels_per_unit, index)
        values, index = signed.values, signed.index
        if signed.factor > 1:
            own_side, sampling = -(-side // signed.factor), "center"
            step, offset = float(signed.factor), (signed.factor - 1) / 2
            logger.warning(
                "the unsigned field ends too close to the surface for its own grid of %d^3: "
                "the surface was read on %d^3, signs by %s",
                side,
                own_side,
                signed.method,
            )
        else:
            logger.info("unsigned field: signs by %s, surface at level 0", signed.method)
        if voxel_resolution is not None and own_side < voxel_resolution <= side:
            voxel_resolution = None
    target = own_side if voxel_resolution is None else voxel_resolution
    values, index = resample_field(values.float(), index, own_side, target, sampling=sampling)
    vertices, faces = extract_isosurface(values, index, level=level)
    if target < own_side or field.kind == "udf":
        _warn_of_holes(faces)
    coarser_step, coarser_offset = coarser_grid(own_side, target, sampling)
    place = (vertices.double() * coarser_step + coarser_offset) * step + offset
    world = place / (side - 1) - 0.5 if field.sampling == "corner" else (place + 0.5) / side - 0.5
    return trimesh.Trimesh(world.cpu().numpy(), faces.cpu().numpy(), process=False)


def _warn_of_holes(faces: Tensor) -> None:
    """Log a warning if more than a hundredth of the edges of `[F, 3]` faces have one face only."""
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    _, counts = torch.unique(edges[:, 0] * (int(faces.max()) + 1) + edges[:, 1], return_counts=True)
    share = float((counts == 1).double().mean())
    if share > _OPEN_SHARE:
        logger.warning(
            "the surface has holes (%.0f %% of its edges): the field ends too close to it to be read on this grid",
            100 * share,
        )
