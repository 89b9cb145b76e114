"""What can be measured of a mesh and said in a word: its sides, its pieces, its symmetry, its holes, its feet.

Knows meshes; nothing of records and words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sdf_vqvae.geometry.metrics.scores import sample_surface
from vae_qwen3vl.synthetic.solid_facts import RESOLUTIONS, feet, solid_of, tunnels

Array = npt.NDArray[np.float64]

_POINTS = 6000
_QUERIES = 2000
_WELD = 1e-5
_FEW, _FAR = 250, 15
"""Where more than so many of so few points are far from the image, there is no need to ask for more."""
_QUANTILE = 0.99
"""Share of the surface that must have a partner: details below a hundredth of it don't count."""
_SAME, _OTHER = 0.005, 0.05
_YAWS = 12
"""Vertical planes, evenly turned, that a surface without symmetry mirrors itself in none of."""


@dataclass(frozen=True, kw_only=True)
class MeshFacts:
    """Measures of one mesh."""

    sides: tuple[float, float, float]
    """Width (x), height (y) and depth (z) of its bounding box, the longest 1."""
    pieces: int
    """Parts of its surface that share no vertex, after equal vertices are welded."""
    mirrored: bool | None
    """Whether its left and right halves (along x) mirror each other; None where it is neither clear."""
    symmetric: bool | None = None
    """Whether it mirrors itself in any plane through its middle; None where neither is clear."""
    holes: int | None = None
    """Holes through its solid, see `solid_facts`; None where that depends on the grid or contradicts the mesh."""
    feet: int | None = None
    """On how many feet it stands, see `solid_facts.feet`; None where that is not clear."""


def measure_mesh(mesh: trimesh.Trimesh) -> MeshFacts:
    """Measure a mesh, the same way each time.

    Raises:
        ValueError: it has no surface.
    """
    faces = np.asarray(mesh.faces)
    if len(faces) == 0:
        raise ValueError("the mesh has no faces")
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    used = vertices[np.unique(faces)]
    box = np.ptp(used, axis=0)
    longest = float(box.max())
    if not np.isfinite(longest) or longest <= 0:
        raise ValueError("the mesh has no extent")
    middle = (used.max(axis=0) + used.min(axis=0)) / 2
    centered = trimesh.Trimesh((vertices - middle) / longest, faces, process=False)
    width, height, depth = (float(side) for side in box / longest)
    corners = _welded(vertices / longest, faces)
    pieces = _pieces(corners)
    mirrored, symmetric = _symmetries(centered)
    solids = [solid_of(np.asarray(centered.vertices), faces, resolution) for resolution in RESOLUTIONS]
    return MeshFacts(
        sides=(width, height, depth),
        pieces=pieces,
        mirrored=mirrored,
        symmetric=symmetric,
        holes=_holes([tunnels(solid) for solid in solids], _genus(corners) if pieces == 1 else None),
        feet=_agreed([feet(solid) for solid in solids]),
    )


def _agreed(counts: Sequence[int | None]) -> int | None:
    """Return what all grids say, if they say the same."""
    return counts[0] if len(set(counts)) == 1 else None


def _holes(counts: Sequence[int], genus: int | None) -> int | None:
    """Return what all grids say; of a closed surface it must be none exactly where that has no handle."""
    found = _agreed(counts)
    return None if found is None or (genus is not None and (genus > 0) != (found > 0)) else found


def _genus(corners: npt.NDArray[np.int64]) -> int | None:
    """Return the handles of a closed surface of one piece, 1 - (V - E + F) / 2; None where it is not closed."""
    edges = np.sort(np.concatenate([corners[:, :2], corners[:, 1:], corners[:, ::2]]), axis=1)
    distinct, uses = np.unique(edges, axis=0, return_counts=True)
    euler = len(np.unique(corners)) - len(distinct) + len(corners)
    return None if (uses != 2).any() or euler % 2 or euler > 2 else 1 - euler // 2


def _welded(vertices: Array, faces: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return faces whose corners at one place are one vertex."""
    _, welded = np.unique(np.rint(vertices / _WELD), axis=0, return_inverse=True)
    return np.asarray(welded.reshape(-1)[faces], dtype=np.int64)


def _pieces(corners: npt.NDArray[np.int64]) -> int:
    count = int(corners.max()) + 1
    first, second = np.concatenate([corners[:, :2], corners[:, 1:]]).T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    return len(np.unique(labels[corners[:, 0]]))


def _symmetries(mesh: trimesh.Trimesh) -> tuple[bool | None, bool | None]:
    """Return whether a surface equals its mirror image in the plane x = 0, and whether it does in any plane.

    Points of the moved surface are compared with points of the surface, by the distances that other points of the
    surface itself have to those. Not symmetric is what is far from each of its images: in vertical planes all round,
    in the horizontal one, in the diagonal and the principal ones, and turned by half about an axis.
    """
    points = sample_surface(mesh, _POINTS, seed=0)[0]
    surface = cKDTree(points)
    own = sample_surface(mesh, _QUERIES, seed=1)[0]
    usual = float(np.quantile(surface.query(own)[0], _QUANTILE))

    some = own[:_FEW]

    def far(move: Array) -> bool:
        return bool(
            (surface.query(some @ move, distance_upper_bound=usual + _OTHER)[0] > usual + _OTHER).sum() > _FAR
        )

    def alike(move: Array) -> bool | None:
        if far(move):
            return False
        distance = float(np.quantile(surface.query(own @ move)[0], _QUANTILE))
        if distance <= 1.1 * usual + _SAME:
            return True
        return False if distance >= usual + _OTHER else None

    planes = _planes(points)
    found = [alike(_mirror(planes[0]))]
    for plane in planes[1:]:
        if True in found:
            break
        found.append(alike(_mirror(plane)))
    if True in found:
        return found[0], True
    turns = [alike(np.diag(signs)) for signs in ((1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0))]
    return found[0], False if all(each is False for each in (*found, *turns)) else None


def _mirror(normal: Array) -> Array:
    """Return the reflection in the plane through 0 with a unit normal. `[3, 3]`"""
    return np.asarray(np.eye(3) - 2 * np.outer(normal, normal))


def _planes(points: Array) -> Array:
    """Return the unit normals of the planes that a surface may mirror itself in, x = 0 first. `[planes, 3]`"""
    angles = np.arange(_YAWS) * np.pi / _YAWS
    vertical = np.stack([np.cos(angles), np.zeros(_YAWS), np.sin(angles)], axis=1)
    tilted = np.array([(0, 1, 0), (1, 1, 0), (1, -1, 0), (0, 1, 1), (0, 1, -1)], dtype=np.float64)
    tilted /= np.linalg.norm(tilted, axis=1, keepdims=True)
    principal = np.linalg.eigh(np.cov(points.T))[1].T
    return np.concatenate([vertical, tilted, principal])
