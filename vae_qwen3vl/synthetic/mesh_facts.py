"""What can be measured of a mesh and said in a word: its sides, its pieces, whether its halves mirror each other.

Knows meshes; nothing of records and words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import trimesh
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from sdf_vqvae.geometry.metrics.scores import sample_surface

Array = npt.NDArray[np.float64]

_POINTS = 6000
_QUERIES = 2000
_WELD = 1e-5
_QUANTILE = 0.99
"""Share of the surface that must have a partner: details below a hundredth of it don't count."""
_SAME, _OTHER = 0.005, 0.05


@dataclass(frozen=True, kw_only=True)
class MeshFacts:
    """Measures of one mesh."""

    sides: tuple[float, float, float]
    """Width (x), height (y) and depth (z) of its bounding box, the longest 1."""
    pieces: int
    """Parts of its surface that share no vertex, after equal vertices are welded."""
    mirrored: bool | None
    """Whether its left and right halves (along x) mirror each other; None where it is neither clear."""


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
    return MeshFacts(
        sides=(width, height, depth), pieces=_pieces(vertices / longest, faces), mirrored=_mirrored(centered)
    )


def _pieces(vertices: Array, faces: npt.NDArray[np.int64]) -> int:
    _, welded = np.unique(np.rint(vertices / _WELD), axis=0, return_inverse=True)
    corners = welded.reshape(-1)[faces]
    count = int(corners.max()) + 1
    first, second = np.concatenate([corners[:, :2], corners[:, 1:]]).T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    return len(np.unique(labels[corners[:, 0]]))


def _mirrored(mesh: trimesh.Trimesh) -> bool | None:
    """Return whether a surface equals its mirror image in the plane x = 0.

    Points of the mirrored surface are compared with points of the surface, by the distances that other points of the
    surface itself have to those.
    """
    surface = cKDTree(sample_surface(mesh, _POINTS, seed=0)[0])
    own = sample_surface(mesh, _QUERIES, seed=1)[0]
    usual = float(np.quantile(surface.query(own)[0], _QUANTILE))
    mirrored = float(np.quantile(surface.query(own * [-1.0, 1.0, 1.0])[0], _QUANTILE))
    if mirrored <= 1.1 * usual + _SAME:
        return True
    return False if mirrored >= usual + _OTHER else None
