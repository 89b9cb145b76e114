"""Which voxels of a coarse grid a surface passes through: an exact test of triangles against boxes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def surface_voxels(vertices: Array, faces: Indices, side: int = 64) -> Mask:
    """Return which voxels of the cube [-0.5, 0.5]^3 the surface touches. bool `[side, side, side]`

    A voxel is on if a triangle meets its closed box. What sticks out of the cube is moved onto its walls, so that a
    prediction that exceeds the ground truth by a hair is not lost; triangles that lie farther out than a voxel are
    left out.

    Args:
        vertices: `[V, 3]`.
        faces: `[F, 3]`.
        side: voxels along an axis.
    """
    from sdf_vqvae.geometry.metrics.surface_voxels_numba import mark_touched

    on = np.zeros((side, side, side), dtype=bool)
    mark_touched(vertices, faces, on)
    return on
