"""Exact distances from points to the nearest point of a triangle mesh, by libigl's tree of boxes.

Knows nothing of scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_LEAST_AREA = 1e-24
"""Squared norm of the cross product, in units of the mesh's size to the fourth, below which a face is left out."""
_BITS = 10


def distance_to_surface(points: Array, vertices: Array, faces: Indices) -> tuple[Array, Indices]:
    """Return the distance from each point to the surface `[P]`, and the face that holds its nearest point `[P]`.

    d(p, S) = min over faces t of min over q in t of |p - q|. Exact up to rounding: every face is searched, by a tree
    of bounding boxes.

    Args:
        points: `[P, 3]`.
        vertices: `[V, 3]`.
        faces: `[F, 3]`, at least one; each with an area (see `with_area`).
    """
    import igl

    # Neighbors in a row visit the same branches of the tree: two to three times faster than points in any order.
    order = spatial_order(points)
    squared, nearest, _ = igl.point_mesh_squared_distance(
        np.ascontiguousarray(points[order]), np.ascontiguousarray(vertices), np.ascontiguousarray(faces)
    )
    distance, face = np.empty(len(points)), np.empty(len(points), dtype=np.int64)
    distance[order], face[order] = np.sqrt(squared), nearest
    return distance, face


def with_area(cross: Array, size: float) -> Indices:
    """Return which faces have an area. Those without belong to the edges of others, and have no normal.

    Args:
        cross: cross product of two sides of each face `[F, 3]`.
        size: longest side of the mesh.
    """
    return np.flatnonzero(np.einsum("fi,fi->f", cross, cross) > _LEAST_AREA * size**4)


def spatial_order(points: Array) -> Indices:
    """Return an order of the points `[P]` in which neighbors tend to follow each other (Morton, 1966)."""
    if not len(points):
        return np.empty(0, dtype=np.int64)
    low = points.min(axis=0)
    extent = float((points.max(axis=0) - low).max())
    cell = ((points - low) * ((2**_BITS - 1) / max(extent, 1e-300))).astype(np.int64)
    key = np.zeros(len(points), dtype=np.int64)
    for bit in range(_BITS):
        for axis in range(3):
            key |= ((cell[:, axis] >> bit) & 1) << (3 * bit + axis)
    order: Indices = np.argsort(key, kind="stable")
    return order


def bounds(corners: Array) -> tuple[Array, Array]:
    """Return the lowest and highest corner of each triangle's bounding box, `[F, 3]` each."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    return np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)


def cross_products(corners: Array) -> Array:
    """Return (b - a) x (c - a) of triangles `[F, 3, 3]`: their normals, twice as long as their areas. `[F, 3]`"""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
