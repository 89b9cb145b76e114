"""The scene of a glTF: which nodes it shows, where each stands, and how the joints of its skins are turned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sdf_vqvae.geometry.formats.gltf_data import GltfData, fractions, listing, mapping, numbers, short, whole
from sdf_vqvae.geometry.formats.gltf_extensions import INSTANCING, VISIBILITY

MAX_DEPTH = 1024
"""How deep nodes may be nested."""
_INSTANCES = 2**14  # put in place at a time


class NodeTree:
    """The nodes of a glTF as a tree.

    Raises:
        ValueError: nodes stand in a circle, below two parents or too deep, or name what does not exist.
    """

    def __init__(self, data: GltfData) -> None:
        self.data = data
        self.nodes = data.items("nodes")
        self.children = [self._children(number) for number in range(len(self.nodes))]
        self.parents = self._parents()
        self._check_depth()
        self._worlds: dict[int, np.ndarray] = {}
        self._skins: dict[int, np.ndarray] = {}

    def _children(self, number: int) -> list[int]:
        children = [whole(child, "a child of a node") for child in listing(self.nodes[number], "children")]
        for child in children:
            self.data.item("nodes", child, f"node {number}")
        return children

    def _parents(self) -> list[int]:
        parents = [-1] * len(self.nodes)
        for number, children in enumerate(self.children):
            for child in children:
                if parents[child] >= 0:
                    raise ValueError(f"its node {child} hangs below two nodes, {parents[child]} and {number}")
                parents[child] = number
        return parents

    def _check_depth(self) -> None:
        level, seen, depth = [n for n, parent in enumerate(self.parents) if parent < 0], 0, 0
        while level:
            seen += len(level)
            level = [child for number in level for child in self.children[number]]
            depth += bool(level)
        if depth > MAX_DEPTH:
            raise ValueError(f"its nodes are nested too deep, to a depth of {depth:,}")
        if seen < len(self.nodes):
            raise ValueError(f"{len(self.nodes) - seen:,} of its nodes hang below each other in a circle")

    # -- the scene -------------------------------------------------------------------------------------------------

    def roots(self) -> list[int]:
        """Return the uppermost nodes of the scene to show: the one named, else the first, else of all there is."""
        scenes = self.data.items("scenes")
        if not scenes and "scene" not in self.data.document:
            return [number for number, parent in enumerate(self.parents) if parent < 0]
        scene = self.data.item("scenes", self.data.document.get("scene", 0), "it")
        roots = [whole(root, "a node of a scene") for root in listing(scene, "nodes")]
        for root in roots:
            self.data.item("nodes", root, "its scene")
            if self.parents[root] >= 0:
                raise ValueError(f"its scene names node {root}, which hangs below node {self.parents[root]}")
        if len(set(roots)) != len(roots):
            raise ValueError("its scene names a node twice")
        return roots

    def shown(self) -> tuple[list[int], list[int]]:
        """Return the nodes of the scene that are visible, and those that are not."""
        visible: list[int] = []
        hidden: list[int] = []
        stack = [(root, True) for root in reversed(self.roots())]
        while stack:
            number, above = stack.pop()
            visible_here = mapping(mapping(self.nodes[number], "extensions"), VISIBILITY).get("visible", True)
            if not isinstance(visible_here, bool):
                raise ValueError(f"{VISIBILITY} of its node {number} says {short(str(visible_here))}")
            shows = above and visible_here
            (visible if shows else hidden).append(number)
            stack += [(child, shows) for child in reversed(self.children[number])]
        return visible, hidden

    # -- places ----------------------------------------------------------------------------------------------------

    def world(self, number: int) -> np.ndarray:
        """Return the matrix of a node, from its own space to the scene's. float64 `[4, 4]`"""
        path = []
        place = number
        while place >= 0 and place not in self._worlds:
            path.append(place)
            place = self.parents[place]
        matrix = self._worlds[place] if place >= 0 else np.eye(4)
        for node in reversed(path):
            matrix = self._worlds[node] = matrix @ self._local(node)
        return matrix

    def _local(self, number: int) -> np.ndarray:
        node = self.nodes[number]
        what = f"of its node {number}"
        parts = [key in node for key in ("translation", "rotation", "scale")]
        composed = np.eye(4)
        if any(parts) or "matrix" not in node:
            composed = transforms(
                numbers(node.get("translation", [0, 0, 0]), 3, f"translation {what}")[None],
                numbers(node.get("rotation", [0, 0, 0, 1]), 4, f"rotation {what}")[None],
                numbers(node.get("scale", [1, 1, 1]), 3, f"scale {what}")[None],
            )[0]
        if "matrix" not in node:
            return composed
        matrix = numbers(node["matrix"], 16, f"matrix {what}").reshape(4, 4).T
        if not np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6):
            raise ValueError(f"the matrix {what} has the last row {matrix[3].tolist()}, which is no movement")
        if any(parts) and not np.allclose(matrix, composed, rtol=1e-4, atol=1e-4 * np.abs(matrix).max()):
            raise ValueError(f"the matrix {what} says something else than its translation, rotation and scale")
        return matrix

    def places(self, number: int) -> Iterator[np.ndarray]:
        """Yield the matrices of all places at which the mesh of a node stands, some at a time. float64 `[I, 4, 4]`"""
        extensions = mapping(self.nodes[number], "extensions")
        world = self.world(number)
        if INSTANCING not in extensions:
            yield world[None]
            return
        attributes = mapping(mapping(extensions, INSTANCING), "attributes")
        stored = {}
        for name, width in _INSTANCE_WIDTHS.items():
            if name in attributes:
                accessor = self.data.expect(attributes[name], width, f"{name} of {INSTANCING}")
                rows = self.data.array(attributes[name])
                # Integers are always fractions here, whether or not the accessor says so.
                stored[name] = rows, accessor.normalized or (name == "ROTATION" and rows.dtype.kind == "i")
        for first in range(0, self.instance_count(number), _INSTANCES):
            part = {name: fractions(rows[first : first + _INSTANCES], n) for name, (rows, n) in stored.items()}
            count = len(next(iter(part.values())))
            yield world @ transforms(
                part.get("TRANSLATION", np.zeros((count, 3))),
                part.get("ROTATION", np.tile([0.0, 0, 0, 1], (count, 1))),
                part.get("SCALE", np.ones((count, 3))),
            )

    def instance_count(self, number: int) -> int:
        """Return at how many places the mesh of a node stands, without reading them."""
        extensions = mapping(self.nodes[number], "extensions")
        if INSTANCING not in extensions:
            return 1
        if "skin" in self.nodes[number]:
            raise ValueError(f"its node {number} repeats a skinned mesh by {INSTANCING}, which is not read")
        attributes = mapping(mapping(extensions, INSTANCING), "attributes")
        counts = {self.data.accessor(a).count for name, a in attributes.items() if name in _INSTANCE_WIDTHS}
        if len(counts) != 1:
            raise ValueError(f"{INSTANCING} of its node {number} has {len(counts)} different numbers of places")
        return counts.pop()

    def joints(self, number: Any) -> np.ndarray:
        """Return the matrices of a skin, from the space of its mesh to the scene's. float64 `[J, 4, 4]`"""
        skin = self.data.item("skins", number, "a node")
        if number in self._skins:
            return self._skins[number]
        joints = [whole(joint, "a joint") for joint in listing(skin, "joints")]
        for joint in joints:
            self.data.item("nodes", joint, f"skin {number}")
        if not joints:
            raise ValueError(f"its skin {number} has no joints")
        matrices = np.stack([self.world(joint) for joint in joints])
        if "inverseBindMatrices" in skin:
            what = f"inverseBindMatrices of its skin {number}"
            accessor = self.data.expect(skin["inverseBindMatrices"], 16, what)
            if accessor.count < len(joints):
                raise ValueError(f"{what} are {accessor.count}, for {len(joints)} joints")
            rows = self.data.array(skin["inverseBindMatrices"])[: len(joints)]
            matrices = matrices @ rows.astype(np.float64).reshape(-1, 4, 4).transpose(0, 2, 1)
        self._skins[number] = matrices
        return matrices


_INSTANCE_WIDTHS = {"TRANSLATION": 3, "ROTATION": 4, "SCALE": 3}


def transforms(translations: np.ndarray, rotations: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return translation x rotation x scale as matrices. float64 `[I, 4, 4]`

    Args:
        translations: float64 `[I, 3]`.
        rotations: quaternions (x, y, z, w), float64 `[I, 4]`; made unit ones, since packed ones are not quite.
        scales: float64 `[I, 3]`.

    Raises:
        ValueError: a quaternion is zero.
    """
    lengths = np.linalg.norm(rotations, axis=1)
    if not (lengths > 0).all():
        raise ValueError("a rotation in it is the quaternion 0, which turns nothing")
    x, y, z, w = (rotations / lengths[:, None]).T
    matrices = np.zeros((len(rotations), 4, 4))
    matrices[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], axis=1)
    matrices[:, 1, :3] = np.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], axis=1)
    matrices[:, 2, :3] = np.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], axis=1)
    matrices[:, :3, :3] *= scales[:, None]
    matrices[:, :3, 3] = translations
    matrices[:, 3, 3] = 1
    return matrices
