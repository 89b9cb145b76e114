"""The meshes of a glTF in their own space: primitives -> vertices and triangles; what morphs and skins do to them.

Primitives that name the same vertices share them, and vertices that no triangle uses are dropped, so a mesh that is
cut into many materials is as large as it is, whatever the accessors repeat.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdf_vqvae.geometry.formats.gltf_data import GltfData, fractions, listing, mapping, numbers, whole
from sdf_vqvae.geometry.formats.gltf_extensions import DRACO, PRIMITIVE_RESTART
from sdf_vqvae.geometry.formats.polygons import fan_triangles, strip_triangles
from sdf_vqvae.utils.errors import brief

DRACO_RATIO = 1024
"""Most bytes that a byte of Draco data stands for."""
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_VERTICES = 2**14  # skinned at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class Local:
    """The vertices of a surface as they are stored, and its triangles."""

    positions: np.ndarray
    """`[V, 3]`, of any number type."""
    normalized: bool
    rows: int
    """Rows of each of its accessors."""
    used: np.ndarray | None
    """Which of them the vertices are, int64 `[V]`, rising; all if None."""
    faces: np.ndarray
    """Integers `[F, 3]`."""
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    """Joints and weights that Draco data holds, by name."""

    def of_vertices(self, values: np.ndarray) -> np.ndarray:
        """Return the rows of an attribute that belong to the vertices."""
        return values if self.used is None else values[self.used]


@dataclass(kw_only=True, eq=False)
class Surface:
    """Primitives of one mesh that share their vertices."""

    attributes: dict[str, Any]
    """Accessors by name: POSITION, JOINTS_n, WEIGHTS_n."""
    targets: list[dict[str, Any]]
    """Morph targets: accessors by name."""
    parts: list[tuple[Any, int]]
    """(accessor of the indices or None, mode) of each primitive."""
    draco: dict[str, Any] | None
    vertices: int
    triangles: int
    """Both at most."""


class Primitives:
    """Reads the meshes of a glTF.

    Args:
        data: the file.
        uses: how often each mesh is placed; what is used again is kept until then.
    """

    def __init__(self, data: GltfData, uses: Counter[int]) -> None:
        self.data = data
        self.notes: Counter[str] = Counter()
        """What is left out, and how many."""
        self.unweighted = 0
        names = {*data.extension_names("extensionsUsed"), *data.extension_names("extensionsRequired")}
        self._restarts = not names.isdisjoint(PRIMITIVE_RESTART)
        self._claimed: dict[Any, int] = {}
        self._claimed_by_draco = 0
        self._surfaces = {mesh: self._surfaces_of(mesh) for mesh in uses}
        data.check_claims(sum(self._claimed.values()))
        data.check_claims(self._claimed_by_draco, DRACO_RATIO)
        self._uses: Counter[Any] = Counter()
        self._kept: dict[Any, Any] = {}
        for mesh, count in uses.items():
            for surface in self._surfaces[mesh]:
                self._uses[id(surface)] = count
                self._uses.update(self._key(a) for a in self._shared(surface))
                if surface.draco is not None:  # how much it holds is known when it is decoded
                    local = self._kept[id(surface)] = self._decoded(surface)
                    surface.vertices, surface.triangles = len(local.positions), len(local.faces)

    def surfaces(self, mesh: int) -> list[Surface]:
        """Return the surfaces of a mesh, with counts that nothing was allocated for."""
        return self._surfaces[mesh]

    # -- what there is ---------------------------------------------------------------------------------------------

    def _surfaces_of(self, number: int) -> list[Surface]:
        mesh = self.data.items("meshes")[number]
        surfaces: dict[Any, Surface] = {}
        for place, primitive in enumerate(listing(mesh, "primitives")):
            what = f"primitive {place} of its mesh {number}"
            if not isinstance(primitive, dict):
                raise ValueError(f"{what} is not an object")
            mode = whole(primitive.get("mode", _TRIANGLES), f"the mode of {what}")
            if mode > _FAN:
                raise ValueError(f"{what} has the mode {mode}, which is not read")
            if mode < _TRIANGLES:
                self.notes["primitives of points or lines"] += 1
            elif "POSITION" not in mapping(primitive, "attributes"):
                self.notes["primitives without positions"] += 1
            else:
                self._add(surfaces, primitive, mode, what)
        return list(surfaces.values())

    def _add(self, surfaces: dict[Any, Surface], primitive: dict[str, Any], mode: int, what: str) -> None:
        attributes = {
            name: accessor for name, accessor in mapping(primitive, "attributes").items()
            if name == "POSITION" or name.startswith(("JOINTS_", "WEIGHTS_"))
        }  # fmt: skip
        targets = listing(primitive, "targets")
        if not all(isinstance(target, dict) for target in targets):
            raise ValueError(f"the targets of {what} are not objects")
        vertices = self.data.expect(attributes["POSITION"], 3, f"POSITION of {what}").count
        indices = primitive.get("indices")
        corners = vertices if indices is None else self._index_count(indices, what)
        triangles = corners // 3 if mode == _TRIANGLES else max(corners - 2, 0)
        draco = self._draco_of(primitive, (attributes["POSITION"], indices), what)
        if draco is None:
            self._claim(attributes["POSITION"])
            if indices is not None:
                self._claim(indices)
        key = (
            len(surfaces)
            if draco is not None
            else repr((sorted(attributes.items()), [t.get("POSITION") for t in targets]))
        )
        before = surfaces.get(key)
        triangles += before.triangles if before else 0
        surfaces[key] = Surface(
            attributes=attributes,
            targets=targets,
            parts=[*(before.parts if before else []), (indices, mode)],
            draco=draco,
            vertices=min(vertices, 3 * triangles),
            triangles=triangles,
        )

    def _index_count(self, indices: Any, what: str) -> int:
        accessor = self.data.expect(indices, 1, f"indices of {what}")
        if accessor.dtype.kind != "u" or accessor.normalized:
            raise ValueError(f"the indices of {what} are stored as {accessor.dtype.name}, not as unsigned integers")
        return accessor.count

    def _draco_of(self, primitive: dict[str, Any], accessors: tuple[Any, Any], what: str) -> dict[str, Any] | None:
        """Return the Draco data of a primitive; None where there is none, or where it may and must do without."""
        extensions = mapping(primitive, "extensions")
        if DRACO not in extensions:
            return None
        described = [self.data.accessor(a) for a in accessors if a is not None]
        if not _draco_is_installed():
            if DRACO in self.data.extension_names("extensionsRequired") or any(a.view is None for a in described):
                raise ImportError("DracoPy, for Draco compression: pip install 'vae-qwen3vl[training]'")
            return None
        self._claimed_by_draco += sum(a.count * a.row for a in described)
        return {"what": what, **mapping(extensions, DRACO)}

    def _claim(self, number: Any) -> None:
        accessor = self.data.accessor(number)
        self._claimed[self._key(number)] = accessor.count * accessor.row

    def _key(self, number: Any) -> Any:
        """Return what two accessors have in common if they are the same array."""
        a = self.data.accessor(number)
        return number if a.view is None or a.sparse else (a.view, a.offset, a.count, a.width, a.dtype.str)

    def _shared(self, surface: Surface) -> list[Any]:
        indices = [index for index, _ in surface.parts if index is not None]
        return [] if surface.draco is not None else [surface.attributes["POSITION"], *indices]

    # -- reading ---------------------------------------------------------------------------------------------------

    def _once(self, key: Any, read: Any) -> Any:
        """Return what `read()` gives, and keep it as long as it will be asked for again."""
        value = self._kept.pop(key) if key in self._kept else read()
        self._uses[key] -= 1
        if self._uses[key] > 0:
            self._kept[key] = value
        return value

    def local(self, surface: Surface) -> Local:
        """Return the vertices and triangles of a surface."""
        return self._once(id(surface), lambda: self._read(surface))

    def _array(self, number: Any) -> np.ndarray:
        return self._once(self._key(number), lambda: self.data.array(number))

    def _read(self, surface: Surface) -> Local:
        position = surface.attributes["POSITION"]
        accessor = self.data.accessor(position)
        parts = []
        for indices, mode in surface.parts:
            corners = np.arange(accessor.count) if indices is None else self._array(indices)[:, 0]
            parts.append(self._triangles(corners, mode, accessor.count))
        faces = parts[0] if len(parts) == 1 else np.concatenate(parts)
        positions, used = self._array(position), None
        if faces.size < accessor.count:
            used, faces = np.unique(faces, return_inverse=True)
            positions, faces = positions[used], faces.reshape(-1, 3)
        return Local(positions=positions, normalized=accessor.normalized, rows=accessor.count, used=used, faces=faces)

    def _triangles(self, corners: np.ndarray, mode: int, vertices: int) -> np.ndarray:
        if len(corners) == 0:
            return np.zeros((0, 3), np.int64)
        largest = np.iinfo(corners.dtype).max
        restarts = corners == largest if self._restarts and mode != _TRIANGLES else None
        highest = int(corners.max() if restarts is None else corners[~restarts].max(initial=0))
        if highest >= vertices:
            raise ValueError(
                f"it marks the restart of a primitive by index {highest:,}, which is not read here"
                if highest == largest and corners.dtype.kind == "u"
                else f"a triangle in it names vertex {highest:,} of {vertices:,}"
            )
        if mode == _TRIANGLES:
            if len(corners) % 3:
                raise ValueError(
                    f"a primitive of triangles in it has {len(corners):,} corners, which don't go into threes"
                )
            return corners.reshape(-1, 3)
        return strip_triangles(corners, restarts) if mode == _STRIP else fan_triangles(corners, restarts)

    def _decoded(self, surface: Surface) -> Local:
        """Return what Draco data holds."""
        import DracoPy

        assert surface.draco is not None
        what = surface.draco["what"]
        source, start, length, _ = self.data.view(surface.draco.get("bufferView"))
        names = mapping(surface.draco, "attributes")
        try:
            decoded = DracoPy.decode(source.read(start, length).tobytes())
            values = {  # in the types of the accessors: the library widens some integers
                name: np.asarray(decoded.get_attribute_by_unique_id(whole(names[name], name))["data"]).astype(
                    self.data.accessor(accessor).dtype, copy=False
                )
                for name, accessor in surface.attributes.items()
                if name in names
            }
            faces = np.asarray(decoded.faces).reshape(-1, 3)
        except (DracoPy.FileTypeException, DracoPy.EncodingFailedException, ValueError, TypeError,
                LookupError, AttributeError) as error:  # fmt: skip
            raise ValueError(f"the Draco data of {what} cannot be read: {brief(error)}") from error
        accessor = self.data.accessor(surface.attributes["POSITION"])
        positions = values.pop("POSITION", None)
        if positions is None or positions.ndim != 2 or positions.shape[1] != 3:
            raise ValueError(f"the Draco data of {what} holds no positions")
        if len(faces) and faces.max() >= len(positions):
            raise ValueError(
                f"a triangle in the Draco data of {what} names vertex {faces.max():,} of {len(positions):,}"
            )
        return Local(
            positions=positions,
            normalized=accessor.normalized,
            rows=len(positions),
            used=None,
            faces=faces,
            attributes=values,
        )

    # -- morphs and skins ------------------------------------------------------------------------------------------

    def morphed(self, surface: Surface, local: Local, weights: np.ndarray) -> np.ndarray:
        """Return the positions with the morph targets added, as much of each as its weight says. float64 `[V, 3]`"""
        positions = fractions(local.positions, local.normalized)
        if len(weights) and len(weights) != len(surface.targets):
            raise ValueError(f"it has {len(weights)} weights for {len(surface.targets)} morph targets")
        for weight, target in zip(weights, surface.targets, strict=False):
            if weight and "POSITION" in target:
                self._add_target(positions, target["POSITION"], weight, local)
        return positions

    def _add_target(self, positions: np.ndarray, target: Any, weight: float, local: Local) -> None:
        accessor = self.data.expect(target, 3, "a morph target")
        if accessor.count != local.rows:
            raise ValueError(f"a morph target has {accessor.count:,} rows for {local.rows:,} vertices")
        if accessor.view is not None:
            positions += weight * fractions(local.of_vertices(self.data.array(target)), accessor.normalized)
            return
        if accessor.sparse is not None:  # the others stay where they are, and nothing is allocated for them
            places, moves = self.data.sparse(target)
            if local.used is not None:
                rows = np.minimum(np.searchsorted(local.used, places), len(local.used) - 1)
                known = local.used[rows] == places
                places, moves = rows[known], moves[known]
            positions[places] += weight * fractions(moves, accessor.normalized)

    def skinned(
        self, surface: Surface, local: Local, positions: np.ndarray, joints: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return where a skin moves vertices, and which of its triangles it turns inside out.

        Args:
            surface: names of joints and weights.
            local: its vertices.
            positions: float64 `[V, 3]`.
            joints: float64 `[J, 4, 4]`.
        """
        chosen, weights = self._influences(surface, local, len(joints))
        moved, turned = np.empty_like(positions), np.empty(len(positions))
        for first in range(0, len(positions), _VERTICES):
            part = slice(first, first + _VERTICES)
            blended = np.einsum("vk,vkij->vij", weights[part], joints[chosen[part], :3])
            moved[part] = np.einsum("vij,vj->vi", blended[:, :, :3], positions[part]) + blended[:, :, 3]
            turned[part] = np.sign(np.linalg.det(blended[:, :, :3]))
        return moved, turned[local.faces].sum(axis=1) < 0

    def _influences(self, surface: Surface, local: Local, joint_count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the joints that move each vertex, int64 `[V, k]`, and how much of each, float64 `[V, k]`, sum 1."""
        chosen, weights = [], []
        for number in range(len(surface.attributes)):
            names = f"JOINTS_{number}", f"WEIGHTS_{number}"
            if names[0] not in surface.attributes or names[1] not in surface.attributes:
                break
            chosen.append(self._attribute(surface, local, names[0]).astype(np.int64))
            accessor = self.data.accessor(surface.attributes[names[1]])
            rows = self._attribute(surface, local, names[1])
            weights.append(fractions(rows, rows.dtype.kind == "u" or accessor.normalized))
        if not chosen:
            raise ValueError("it has a skin for a mesh without JOINTS_0 and WEIGHTS_0")
        joints, parts = np.concatenate(chosen, axis=1), np.concatenate(weights, axis=1)
        if not np.isfinite(parts).all():
            raise ValueError("the weights of its skin are not finite numbers")
        joints[parts == 0] = 0  # what moves nothing may name anything
        if joints.min(initial=0) < 0 or joints.max(initial=0) >= joint_count:
            raise ValueError(f"a vertex in it names joint {joints.max():,} of {joint_count:,}")
        sums = parts.sum(axis=1)
        if (sums == 0).any():
            self.unweighted += int((sums == 0).sum())
            parts[sums == 0, 0] = sums[sums == 0] = 1
        return joints, parts / sums[:, None]

    def _attribute(self, surface: Surface, local: Local, name: str) -> np.ndarray:
        number = surface.attributes[name]
        accessor = self.data.expect(number, 4, name)
        rows = local.attributes.get(name)
        if rows is None:
            if accessor.count != local.rows:
                raise ValueError(f"{name} in it has {accessor.count:,} rows for {local.rows:,} vertices")
            rows = local.of_vertices(self.data.array(number))
        if rows.shape != (len(local.positions), 4) or accessor.dtype.kind not in ("u" if name[0] == "J" else "uf"):
            raise ValueError(f"{name} in it has rows {rows.shape} of {accessor.dtype.name}")
        return rows


def morph_weights(node: dict[str, Any], mesh: dict[str, Any]) -> np.ndarray:
    """Return the weights of a mesh's morph targets: a node's, else the mesh's, else none. float64 `[T]`"""
    owner = node if "weights" in node else mesh
    weights = listing(owner, "weights")
    return numbers(weights, len(weights), "weights")


def _draco_is_installed() -> bool:
    import importlib.util

    return importlib.util.find_spec("DracoPy") is not None
