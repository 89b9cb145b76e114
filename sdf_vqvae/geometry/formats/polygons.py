"""Polygons as a mesh file lists them, and their triangles.

What the readers have in common behind their syntax, strips and fans of PLY and glTF too. Vertices stay as they are:
none is added, left out or moved, so neighbors keep sharing edges and a closed mesh of polygons is one of triangles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numba import njit

from sdf_vqvae.geometry.formats.mesh_file import check_file_size, check_size
from sdf_vqvae.geometry.formats.text_scan import COMPILED

logger = logging.getLogger(__name__)

MAX_CORNER_PAIRS = 2**31
"""Most pairs of corners of polygons whose triangles have to be looked for; a star of n corners needs time in n²."""
_FLAT = 1e-6
"""How far a triangle of a fan may reach out of its polygon, over the polygon's length: rounded coordinates do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Polygons:
    """What a mesh file holds: vertices, and polygons that refer to them."""

    vertices: np.ndarray
    """float64 `[V, 3]`, source units."""
    corners: np.ndarray
    """Vertices of all polygons, one polygon after the other, int64 `[C]`, in 0..V-1."""
    counts: np.ndarray
    """How many of them each polygon has, 3 or more, int64 `[P]`."""
    notes: tuple[str, ...] = ()
    """What was left aside in reading, for the log."""


def read_polygons(file: Path, parse: Callable[[bytes], Polygons]) -> trimesh.Trimesh:
    """Read a file whose content `parse` reads; what was left aside is logged.

    Raises:
        ValueError: the file is empty, too large or damaged.
    """
    check_file_size(file)
    polygons = parse(file.read_bytes())
    for note in polygons.notes:
        logger.warning("%s: %s", file, note)
    return trimesh.Trimesh(polygons.vertices, in_triangles(polygons), process=False)


def polygons_of(
    vertices: np.ndarray, corners: np.ndarray, counts: np.ndarray, notes: tuple[str, ...] = ()
) -> Polygons:
    """Return polygons of what a file lists, without those of one or two corners, which have no area; that is noted.

    Args:
        vertices: float64 `[V, 3]`.
        corners: as in `Polygons`, unchecked.
        counts: as in `Polygons`, but any number from 0.
        notes: as in `Polygons`.

    Raises:
        ValueError: a corner is none of the vertices.
    """
    if len(corners) and (corners.min() < 0 or corners.max() >= len(vertices)):
        wrong = int(np.flatnonzero((corners < 0) | (corners >= len(vertices)))[0])
        face = int(np.searchsorted(np.cumsum(counts), wrong, side="right"))
        raise ValueError(
            f"face {face + 1:,} has the index {corners[wrong]}, but there are {len(vertices):,} vertices, from 0 on"
        )
    large = counts >= 3
    small = len(counts) - int(large.sum())
    if small:
        corners, counts = corners[np.repeat(large, counts)], counts[large]
        notes = (*notes, f"{small:,} faces of fewer than three corners have no area and are left out")
    return Polygons(vertices=vertices, corners=corners, counts=counts, notes=notes)


def in_triangles(polygons: Polygons) -> np.ndarray:
    """Return the triangles of polygons, wound as they are, in their order. int64 `[F, 3]`

    A polygon is cut as a fan of its first corner where that is right, a quad along its other diagonal where that one
    is. Others (notches, stars, holes joined to the outline by a bridge) are cut in the plane that fits them best.

    Raises:
        ValueError: more triangles than are read, or polygons too large to be cut.
    """
    vertices, corners, counts = polygons.vertices, polygons.corners, polygons.counts
    check_size(len(corners) - 2 * len(counts), len(vertices))
    if len(corners) == 3 * len(counts):
        return corners.reshape(-1, 3)
    faces = np.empty((len(corners) - 2 * len(counts), 3), np.int64)
    odd = np.zeros(len(counts), np.bool_)
    _fans(vertices, corners, counts, faces, odd)
    numbers = np.flatnonzero(odd)
    pairs = int((counts[numbers].astype(np.float64) ** 2).sum())
    if pairs > MAX_CORNER_PAIRS:
        raise ValueError(
            f"polygons that are not convex, here {len(numbers):,} of up to {counts[numbers].max():,} corners, are "
            f"too large to be cut into triangles; triangulate them where the file comes from"
        )
    first = (np.cumsum(counts) - counts)[numbers]
    for start, count, number in zip(first.tolist(), counts[numbers].tolist(), numbers.tolist(), strict=True):
        outline = corners[start : start + count]
        # Each polygon before this one has two triangles less than corners.
        faces[start - 2 * number : start - 2 * number + count - 2] = outline[_cut(vertices[outline])]
    return faces


def strip_triangles(corners: np.ndarray, restarts: np.ndarray | None = None) -> np.ndarray:
    """Return the triangles of a strip, each second one turned, those with equal corners dropped. `[F, 3]`

    Args:
        corners: indices of vertices, `[n]`.
        restarts: where a new strip begins after the corner. bool `[n]`
    """
    count = max(len(corners) - 2, 0)
    first, second, third = corners[:count], corners[1 : 1 + count], corners[2:]
    turned = (np.arange(count) - _starts(corners, restarts)[:count]) % 2 == 1
    faces = np.stack([first, np.where(turned, third, second), np.where(turned, second, third)], axis=1)
    whole_ones = _different(faces)
    if restarts is not None:
        whole_ones &= ~(restarts[:count] | restarts[1 : 1 + count] | restarts[2:])
    return faces[whole_ones]


def fan_triangles(corners: np.ndarray, restarts: np.ndarray | None = None) -> np.ndarray:
    """Return the triangles of a fan, those with equal corners dropped. `[F, 3]`; arguments as for a strip."""
    count = max(len(corners) - 2, 0)
    starts = _starts(corners, restarts)[1 : 1 + count]
    faces = np.stack([corners[1 : 1 + count], corners[2:], corners[starts]], axis=1)
    whole_ones = _different(faces)
    if restarts is not None:
        whole_ones &= ~(restarts[1 : 1 + count] | restarts[2:]) & (starts < np.arange(1, 1 + count))
    return faces[whole_ones]


def _starts(corners: np.ndarray, restarts: np.ndarray | None) -> np.ndarray:
    """Return where the strip or fan that each corner belongs to begins. int64 `[n]`"""
    places = np.arange(len(corners))
    if restarts is None:
        return np.zeros_like(places)
    begins = np.append(0, np.where(restarts, places + 1, 0))[:-1]
    return np.minimum(np.maximum.accumulate(begins), len(corners) - 1)


def _different(faces: np.ndarray) -> np.ndarray:
    return (faces != np.roll(faces, 1, axis=1)).all(axis=1)


def _cut(points: np.ndarray) -> np.ndarray:
    """Return the triangles `[n - 2, 3]` of a polygon `[n, 3]` that may be anything but convex, one corner each used.

    Manifold's triangulation keeps corners that stand on a line or at one place, and edges that are walked twice.
    """
    import manifold3d

    around = points - points[0]
    normal = np.cross(around[1:-1], around[2:]).sum(axis=0)
    axis = int(np.abs(normal).argmin())
    across = np.cross(normal, np.eye(3)[axis])
    across /= np.linalg.norm(across)
    along = np.cross(normal, across) / np.linalg.norm(normal)
    return np.asarray(manifold3d.triangulate([np.column_stack([around @ across, around @ along])]), np.int64)


@njit(**COMPILED)
def _fans(vertices: Any, corners: Any, counts: Any, faces: Any, odd: Any) -> None:
    """Write the triangles of polygons as fans, and of which a fan isn't right.

    A polygon's triangles are measured along its area vector (Newell's normal, whatever its shape). A fan is right if
    none of them is turned over, and if they don't go round its first corner more than once.
    """
    start = 0
    face = 0
    for polygon in range(len(counts)):
        count = counts[polygon]
        for i in range(1, count - 1):
            faces[face, 0] = corners[start]
            faces[face, 1] = corners[start + i]
            faces[face, 2] = corners[start + i + 1]
            face += 1
        if count > 3:
            largest = 0.0
            nx = ny = nz = 0.0
            for i in range(count - 2):
                x, y, z = _area(vertices, corners[start], corners[start + i + 1], corners[start + i + 2])
                nx, ny, nz = nx + x, ny + y, nz + z
            for i in range(1, count):
                for axis in range(3):
                    side = abs(vertices[corners[start + i], axis] - vertices[corners[start], axis])
                    largest = max(largest, side)
            length = np.sqrt(nx * nx + ny * ny + nz * nz)
            if length > 0 and np.isfinite(length):
                nx, ny, nz = nx / length, ny / length, nz / length
                if count == 4:
                    a, b, c, d = corners[start], corners[start + 1], corners[start + 2], corners[start + 3]
                    least = min(_along(vertices, a, b, c, nx, ny, nz), _along(vertices, a, c, d, nx, ny, nz))
                    other = min(_along(vertices, a, b, d, nx, ny, nz), _along(vertices, b, c, d, nx, ny, nz))
                    if least <= 1e-9 * length and other > least:
                        faces[face - 2, 2] = d
                        faces[face - 1, 0] = b
                else:
                    odd[polygon] = not _is_fan(vertices, corners, start, start + count, largest, nx, ny, nz)
        start += count


@njit(**COMPILED)
def _is_fan(
    vertices: Any, corners: Any, start: int, end: int, largest: float, nx: float, ny: float, nz: float
) -> bool:
    """Return whether the fan of a polygon's first corner is right, to `_FLAT` of its length."""
    turned = 0.0
    a = corners[start]
    for i in range(start + 1, end - 1):
        b, c = corners[i], corners[i + 1]
        area = _along(vertices, a, b, c, nx, ny, nz)
        inner = ab = ac = bc = 0.0
        for axis in range(3):
            to_b, to_c = vertices[b, axis] - vertices[a, axis], vertices[c, axis] - vertices[a, axis]
            inner += to_b * to_c
            ab += to_b * to_b
            ac += to_c * to_c
            bc += (to_c - to_b) ** 2
        if area < -_FLAT * largest * np.sqrt(max(ab, ac, bc)):
            return False
        turned += np.arctan2(area, inner)
    return turned < 2 * np.pi


@njit(**COMPILED)
def _area(vertices: Any, a: int, b: int, c: int) -> tuple[float, float, float]:
    """Return twice the area vector of a triangle."""
    ux, uy, uz = (vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1], vertices[b, 2] - vertices[a, 2])
    vx, vy, vz = (vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1], vertices[c, 2] - vertices[a, 2])
    return uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx


@njit(**COMPILED)
def _along(vertices: Any, a: int, b: int, c: int, nx: float, ny: float, nz: float) -> float:
    """Return twice the area of a triangle as seen along a unit vector, negative from behind."""
    x, y, z = _area(vertices, a, b, c)
    return x * nx + y * ny + z * nz
