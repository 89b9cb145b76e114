"""The field of a surface of a great many small triangles, such as an iso-surface.

`voxelize` pairs triangles with the voxels that they reach, which is dear where each voxel has hundreds near it;
here every voxel asks a tree for its nearest triangle (libigl). On the CPU; same result as `voxelize`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField


def voxelize_dense(
    vertices: Tensor,
    faces: Tensor,
    *,
    resolution: int,
    band: float = 3.0,
    signed: bool = True,
    watertight: bool = False,
) -> VoxelField:
    """Compute the distance field of a closed surface on the voxels within `band` of one of its vertices' cells.

    Arguments and result are those of `voxelize`, except that no triangle may be longer than a voxel and that open
    parts stay open: signs come from pseudonormals (Baerentzen and Aanaes, 2005) where the surface is watertight, else
    from winding numbers.

    Raises:
        ValueError: no voxel lies within the band.
    """
    import igl

    points = vertices.detach().cpu().double().numpy()
    triangles = faces.detach().cpu().long().numpy()
    reach = math.ceil(band) + 1
    cells = np.floor((points + 0.5) * resolution).astype(np.int64)
    low = np.maximum(cells.min(axis=0) - reach, 0)
    occupied = np.zeros(np.minimum(cells.max(axis=0) + reach, resolution - 1) - low + 1, dtype=bool)
    inside = ((cells >= low) & (cells < low + occupied.shape)).all(axis=1)
    occupied[tuple((cells[inside] - low).T)] = True
    near = ndimage.binary_dilation(occupied, np.ones((3, 3, 3), dtype=bool), iterations=reach)
    index = np.argwhere(near) + low
    if len(index) == 0:
        raise ValueError("no voxel lies within the band of the surface: it is outside the grid")
    samples = (index + 0.5) / resolution - 0.5
    if signed:
        kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL if watertight else igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER
    else:
        kind = igl.SIGNED_DISTANCE_TYPE_UNSIGNED
    limit = band / resolution
    distance = igl.signed_distance(samples, points, triangles, sign_type=kind)[0]
    within = np.abs(distance) <= limit
    if not within.any():
        raise ValueError("no voxel lies within the band of the surface: it is outside the grid")
    return VoxelField(
        index=torch.from_numpy(index[within]).int().to(vertices.device),
        distance=torch.from_numpy(np.clip(distance[within] / limit, -1, 1)).float().to(vertices.device),
        sign_method="winding" if signed else "none",
    )
