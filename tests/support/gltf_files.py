"""A builder of small glTF files, written by hand so that tests can say exactly what is in them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

CODES = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "i4": 5124, "u4": 5125, "f4": 5126, "f8": 5130, "f2": 5131}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
IDENTITY_BIND = np.eye(4, dtype="<f4").reshape(1, 16)


def box(extents: Sequence[float] = (1, 1, 1), center: Sequence[float] = (0, 0, 0)) -> trimesh.Trimesh:
    """Return a box whose faces look outward."""
    return trimesh.creation.box(extents, trimesh.transformations.translation_matrix(center))


class Gltf:
    """A glTF under construction: one buffer, one scene."""

    def __init__(self, **document: Any) -> None:
        self.binary = b""
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"}, "buffers": [{}], "bufferViews": [], "accessors": [], "meshes": [],
            "nodes": [], "scenes": [{"nodes": []}], "scene": 0, **document,
        }  # fmt: skip

    def _append(self, key: str, item: dict[str, Any]) -> int:
        self.document.setdefault(key, []).append(item)
        return len(self.document[key]) - 1

    def view(self, data: bytes, **more: Any) -> int:
        """Add bytes and a view of them."""
        self.binary += b"\0" * (-len(self.binary) % 4)
        place = len(self.binary)
        self.binary += data
        return self._append("bufferViews", {"buffer": 0, "byteOffset": place, "byteLength": len(data), **more})

    def accessor(self, values: Any, dtype: str = "<f4", view: bool = True, **more: Any) -> int:
        """Add an array `[n]` or `[n, width]`; without a view it claims zeros."""
        array = np.ascontiguousarray(values, dtype)
        width = 1 if array.ndim == 1 else array.shape[1]
        item = {"componentType": CODES[array.dtype.str[1:]], "count": len(array), "type": TYPES[width], **more}
        if view:
            item["bufferView"] = self.view(array.tobytes())
        return self._append("accessors", item)

    def sparse(self, accessor: int, places: Any, values: Any, index_dtype: str = "<u2", dtype: str = "<f4") -> int:
        """Replace rows of an accessor sparsely."""
        indices = np.asarray(places, index_dtype)
        self.document["accessors"][accessor]["sparse"] = {
            "count": len(indices),
            "indices": {"bufferView": self.view(indices.tobytes()), "componentType": CODES[indices.dtype.str[1:]]},
            "values": {"bufferView": self.view(np.ascontiguousarray(values, dtype).tobytes())},
        }
        return accessor

    def primitive(self, mesh: trimesh.Trimesh, index_dtype: str | None = "<u2", **more: Any) -> dict[str, Any]:
        """Return a primitive of triangles; without an index type, each with corners of its own."""
        if index_dtype is None:
            return {"attributes": {"POSITION": self.accessor(mesh.triangles.reshape(-1, 3))}, **more}
        indices = self.accessor(mesh.faces.reshape(-1), index_dtype)
        return {"attributes": {"POSITION": self.accessor(mesh.vertices)}, "indices": indices, **more}

    def mesh(self, *primitives: dict[str, Any], **more: Any) -> int:
        """Add a mesh."""
        return self._append("meshes", {"primitives": list(primitives), **more})

    def node(self, root: bool = True, **node: Any) -> int:
        """Add a node, to the scene if it is a root."""
        number = self._append("nodes", node)
        if root:
            self.document["scenes"][0]["nodes"].append(number)
        return number

    def box(self, extents: Sequence[float] = (1, 1, 1), center: Sequence[float] = (0, 0, 0), **node: Any) -> int:
        """Add a box at a node of its own."""
        return self.node(mesh=self.mesh(self.primitive(box(extents, center))), **node)

    def skin(
        self, primitive: dict[str, Any], joints: Any, weights: Any, number: int = 0, **more: Any
    ) -> dict[str, Any]:
        """Give a primitive joints `[n, 4]` and weights `[n, 4]`."""
        primitive["attributes"][f"JOINTS_{number}"] = self.accessor(joints, "<u1")
        primitive["attributes"][f"WEIGHTS_{number}"] = self.accessor(weights, **more)
        return primitive

    def use(self, *names: str, required: bool = False) -> Gltf:
        """Declare extensions."""
        for key in ("extensionsUsed", "extensionsRequired")[: 1 + required]:
            self.document[key] = [*self.document.get(key, []), *names]
        return self

    # -- files -----------------------------------------------------------------------------------------------------

    def _json(self, **buffer: Any) -> bytes:
        document = dict(self.document)
        if self.binary:
            document["buffers"] = [{"byteLength": len(self.binary), **buffer}, *document["buffers"][1:]]
        else:
            del document["buffers"]
        return json.dumps(document, ensure_ascii=False).encode()

    def glb(self, pad: int = 4, between: bytes = b"", after: bytes = b"") -> bytes:
        """Return a GLB; `between` stands before the binary chunk, `after` behind the end."""
        text = self._json()
        text += b" " * (-len(text) % pad)
        binary = self.binary + b"\0" * (-len(self.binary) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + between
        chunks += struct.pack("<I4s", len(binary), b"BIN\0") + binary if binary else b""
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks + after

    def embedded(self, kind: str = "application/octet-stream") -> bytes:
        """Return a glTF whose buffer is in it."""
        return self._json(uri=f"data:{kind};base64," + base64.b64encode(self.binary).decode())

    def save(self, path: Path) -> Path:
        """Write a GLB, or a glTF with a buffer beside it."""
        if path.suffix == ".glb":
            path.write_bytes(self.glb())
        else:
            path.with_suffix(".bin").write_bytes(self.binary)
            path.write_bytes(self._json(uri=path.with_suffix(".bin").name))
        return path
