"""glTF and GLB <-> one mesh: the triangles of the scene where they stand in it, and nothing else.

What a viewer shows before anything moves: nodes, instances, skins in their pose, morph targets by their default
weights. Materials, pictures, lights, cameras and animations are never looked at. `docs/mesh-formats.md` lists what is
read, what is refused by name and what is left out.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from sdf_vqvae.geometry.formats.gltf_data import GltfData, fractions
from sdf_vqvae.geometry.formats.gltf_extensions import check_extensions, check_version
from sdf_vqvae.geometry.formats.gltf_nodes import NodeTree
from sdf_vqvae.geometry.formats.gltf_primitives import Local, Primitives, Surface, morph_weights
from sdf_vqvae.geometry.formats.mesh_file import OwnFolder, check_file_size, check_size
from sdf_vqvae.geometry.formats.writing import half_side, loses_in_float32, round_center
from sdf_vqvae.utils.files import atomic_path

MAX_PARTS = 2**15
"""Most surfaces that a scene is put together of, repeated ones counted; instances of one node are one part."""
_VERTICES = 2**16  # moved at a time
_LOST = 5e-7
"""What writing positions as 32-bit floats may cost, in parts of the object's longest side."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Stand:
    """A node that shows a mesh."""

    node: int
    mesh: int


def read(file: Path, folder: OwnFolder) -> trimesh.Trimesh:
    """Read a glTF or GLB file; what is left out of it is logged, a line for each kind.

    Args:
        file: the file.
        folder: opens the buffers that it names.

    Raises:
        ValueError: it is damaged, claims more than it holds, holds no triangle, or needs something that is not read.
        ImportError: it is compressed with Draco, and DracoPy is not installed.
    """
    check_file_size(file)
    data = GltfData(file, folder)
    check_version(data.document)
    notes = check_extensions(data)
    tree = NodeTree(data)
    stands, hidden, elsewhere = _stands(tree)
    primitives = Primitives(data, Counter(stand.mesh for stand in stands))
    vertices, faces = _put_together(tree, primitives, stands)
    left = {**primitives.notes, "meshes of invisible nodes": hidden, "meshes of nodes outside its scene": elsewhere}
    notes += [f"{what} are left out: {count:,}" for what, count in left.items() if count]
    if primitives.unweighted:
        notes.append(f"vertices without a weight follow the first joint of their skin: {primitives.unweighted:,}")
    if len(faces) == 0:
        raise ValueError(f"it holds no triangle ({'; '.join(notes) or 'an empty scene'})")
    for note in notes:
        logger.warning("%s: %s", file, note)
    return trimesh.Trimesh(vertices, faces, process=False, validate=False)


def _stands(tree: NodeTree) -> tuple[list[_Stand], int, int]:
    """Return the nodes that show a mesh, and how many are invisible and outside the scene."""
    visible, hidden = tree.shown()
    stands = []
    for number in visible:
        if "mesh" in tree.nodes[number]:
            tree.data.item("meshes", tree.nodes[number]["mesh"], f"its node {number}")
            stands.append(_Stand(node=number, mesh=int(tree.nodes[number]["mesh"])))
    invisible = sum("mesh" in tree.nodes[number] for number in hidden)
    return stands, invisible, sum("mesh" in node for node in tree.nodes) - len(stands) - invisible


def _put_together(tree: NodeTree, primitives: Primitives, stands: list[_Stand]) -> tuple[np.ndarray, np.ndarray]:
    """Return the vertices, float64 `[V, 3]`, and the triangles, int64 `[F, 3]`, of all meshes where they stand."""
    parts = sum(len(primitives.surfaces(stand.mesh)) for stand in stands)
    if parts > MAX_PARTS:
        raise ValueError(f"its scene is put together of {parts:,} parts, more than the {MAX_PARTS:,} that are read")
    triangles = vertices = 0
    for stand in stands:
        count = tree.instance_count(stand.node)
        triangles += count * sum(surface.triangles for surface in primitives.surfaces(stand.mesh))
        vertices += count * max(1, sum(surface.vertices for surface in primitives.surfaces(stand.mesh)))
    check_size(triangles, vertices)
    whole = _Whole(vertices, triangles)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found when the mesh is used
        for stand in stands:
            node, mesh = tree.nodes[stand.node], tree.data.items("meshes")[stand.mesh]
            weights = morph_weights(node, mesh)
            for surface in primitives.surfaces(stand.mesh):
                local = primitives.local(surface)
                if weights.any():
                    local = _changed(local, primitives.morphed(surface, local, weights))
                if "skin" in node:
                    local = _posed(primitives, surface, local, tree.joints(node["skin"]))
                for places in [np.eye(4)[None]] if "skin" in node else tree.places(stand.node):
                    whole.add(local, places)
    return whole.vertices[: whole.vertex_count], whole.faces[: whole.face_count]


def _posed(primitives: Primitives, surface: Surface, local: Local, joints: np.ndarray) -> Local:
    positions = fractions(local.positions, local.normalized)
    moved, turned = primitives.skinned(surface, local, positions, joints)
    faces = local.faces.copy()
    faces[turned] = faces[turned][:, ::-1]
    return _changed(local, moved, faces)


def _changed(local: Local, positions: np.ndarray, faces: np.ndarray | None = None) -> Local:
    return Local(
        positions=positions,
        normalized=False,
        rows=local.rows,
        used=local.used,
        faces=local.faces if faces is None else faces,
        attributes=local.attributes,
    )


class _Whole:
    """The mesh that parts are written into, allocated once."""

    def __init__(self, vertices: int, triangles: int) -> None:
        self.vertices, self.faces = np.empty((vertices, 3)), np.empty((triangles, 3), np.int64)
        self.vertex_count = self.face_count = 0

    def add(self, local: Local, places: np.ndarray) -> None:
        """Write a part at each of its places `[I, 4, 4]`; a mirrored one is turned, so that it faces outward."""
        count = len(local.positions)
        together = max(1, _VERTICES // max(count, 1))  # many small instances, or one at a time
        for first in range(0, len(places), together):
            matrices = places[first : first + together]
            end = self.vertex_count + len(matrices) * count
            moved = self.vertices[self.vertex_count : end].reshape(len(matrices), count, 3)
            for start in range(0, count, _VERTICES):
                rows = fractions(local.positions[start : start + _VERTICES], local.normalized)
                moved[:, start : start + _VERTICES] = (
                    rows @ matrices[:, :3, :3].transpose(0, 2, 1) + matrices[:, None, :3, 3]
                )
            self._add_faces(local.faces, matrices, count)
            self.vertex_count = end

    def _add_faces(self, faces: np.ndarray, matrices: np.ndarray, count: int) -> None:
        end = self.face_count + len(matrices) * len(faces)
        added = self.faces[self.face_count : end].reshape(len(matrices), len(faces), 3)
        added[:] = faces
        added += self.vertex_count + count * np.arange(len(matrices))[:, None, None]
        mirrored = np.linalg.det(matrices[:, :3, :3]) < 0
        if mirrored.any():
            added[mirrored] = added[mirrored][:, :, ::-1]
        self.face_count = end


def write(path: Path, mesh: trimesh.Trimesh, note: str) -> None:
    """Write a GLB file with 32-bit floats; where they don't do, relative to a place where the node puts them."""
    with atomic_path(path) as temporary:
        _as_scene(mesh).export(temporary, file_type="glb", tree_postprocessor=functools.partial(_say, note=note))


def _as_scene(mesh: trimesh.Trimesh) -> trimesh.Trimesh | trimesh.Scene:
    """Return the mesh, or where 32-bit floats would lose too much of it, a scene whose one node puts it in place."""
    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    if not loses_in_float32(vertices, _LOST):
        return mesh
    center, unit = round_center(vertices), 1.0
    if loses_in_float32(vertices - center, _LOST):  # beyond what 32-bit floats count at all
        unit = 2.0 ** round(math.log2(half_side(vertices)))
    moved = mesh.copy()
    moved.vertices = (vertices - center) / unit
    place = np.diag([unit, unit, unit, 1.0])
    place[:3, 3] = center
    scene = trimesh.Scene()
    scene.add_geometry(moved, transform=place)
    return scene


def _say(document: dict[str, Any], note: str) -> None:
    """Put a note into a glTF document."""
    if note:
        document["asset"]["generator"] = f"{document['asset'].get('generator', '')} {note}".strip()
