"""What can be counted on a mesh as a solid of voxels: the holes through it, and the feet it stands on.

A mesh as published is rarely closed, so its Euler number says little. Its solid always has one: the voxels that the
surface touches, and what can't be reached from outside without crossing them. Knows meshes and voxels; nothing of
records and words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sdf_vqvae.geometry.metrics.surface_voxels import surface_voxels

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Solid = npt.NDArray[np.bool_]
"""Occupied voxels of a box whose outermost ones alone are empty. `[X, Y, Z]`"""

RESOLUTIONS = (48, 80)
"""Grids on which a count must be the same: what depends on the grid is no property of the object."""
_ALL = np.ones((3, 3, 3), dtype=bool)
_SIX = ndimage.generate_binary_structure(3, 1)
_LOW, _HIGH = 0.04, 0.16
"""Heights, in parts of the object's, between which slices must all show the same feet."""
_LEAST_FOOT, _MOST_FEET = 0.0005, 0.35
"""Of the bounding box seen from above: what a foot covers at least, and all feet together at most."""
_MOST_LEGS = 8


def solid_of(vertices: Array, faces: Indices, resolution: int) -> Solid:
    """Return the solid of a mesh, in the box around it.

    Args:
        vertices: `[V, 3]` within [-0.5, 0.5], the box's center at 0.
        faces: `[F, 3]`.
        resolution: voxels along the longest side of the world's cube.
    """
    touched = surface_voxels(0.95 * vertices, faces, resolution)
    sides = [np.flatnonzero(touched.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    surface = np.pad(touched[tuple(slice(side[0], side[-1] + 1) for side in sides)], 1)
    open_air = ndimage.label(~surface, _SIX)[0]
    return np.asarray(open_air != open_air[0, 0, 0])


def tunnels(solid: Solid) -> int:
    """Return how many holes go through a solid without cavities: the handles of its voxels, taken as closed cubes.

    The first Betti number, b1 = b0 - (V - E + F - C): b0 parts that touch at a corner at least, and V, E, F, C their
    corners, edges, faces and cubes. A ring has one, a mug one, a vase none.
    """
    parts = ndimage.label(solid, _ALL)[1]
    euler = 0
    for axes in range(8):  # of a cell of the grid's complex: along which axes it has an extent
        cells = solid
        thin = [axis for axis in range(3) if not axes >> axis & 1]
        for axis in thin:
            cells = cells | np.roll(cells, 1, axis)  # the outermost voxels are empty
        euler += (-1) ** (3 - len(thin)) * int(cells.sum())
    return int(parts - euler)


def feet(solid: Solid) -> int | None:
    """Return on how many feet a solid stands, +y up; None where it stands on no feet, or it is not clear.

    Feet are the parts of a horizontal slice. All slices from 4 to 16 % of the height must have the same number,
    two to eight, and none may cover much of what the object covers from above.
    """
    height, around = solid.shape[1] - 2, (solid.shape[0] - 2) * (solid.shape[2] - 2)
    first, last = 1 + round(_LOW * height), 1 + max(round(_HIGH * height), round(_LOW * height) + 2)
    counts = set()
    for level in range(first, last):
        labels, count = ndimage.label(solid[:, level], np.ones((3, 3), dtype=bool))
        areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        if count == 0 or areas.min() < _LEAST_FOOT * around or areas.sum() > _MOST_FEET * around:
            return None
        counts.add(count)
    found = counts.pop()
    return found if not counts and 2 <= found <= _MOST_LEGS else None
