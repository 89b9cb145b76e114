"""What a mesh file says about itself, compared with what it is, before a reader allocates or opens anything.

trimesh reads the formats; what it would do without end on a small file (allocate what a header claims, copy a mesh as
often as a scene repeats it, search names one by one) is refused or rewritten here. Knows the formats as far as counts
and names of other files go, and no geometry.
"""

from __future__ import annotations

import importlib.util
import math
import struct
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

import trimesh

from sdf_vqvae.archives import parse_json, regular_file

MAX_FILE_BYTES = 2 * 2**30
"""Largest mesh file, with the files it names: 64 bytes for each of `MAX_TRIANGLES`."""
MAX_TRIANGLES = 2**25
"""Most triangles of a mesh, all instances counted: 33 million, above the largest scans in use (28 million)."""
MAX_VERTICES = 2**26
"""Most vertices, all instances counted: a file without shared vertices has three a triangle."""
MAX_NODE_WORK = 10**8
"""Most work on the transforms of a scene. trimesh needs time in the third power of a node's depth: about 3 s here."""
MAX_PARTS = 2**15
"""Most meshes that a scene is put together of, repeated ones counted; each takes trimesh about 0.3 ms."""
OVERLAP = 16
"""How often the views and accessors of a glTF may use each of its bytes, on average; interleaved ones overlap."""
DRACO_RATIO = 1024
"""Most bytes that a byte of Draco data stands for."""
MAX_PLY_HEADER = 2**16
"""Longest header of a PLY file; a hundred properties need 3 KB, comments some more."""
MAX_PLY_LISTS = 64
"""Most list properties of a PLY file; meshes have one or two."""

_COMPONENT_BYTES = {5120: 1, 5121: 1, 5122: 2, 5123: 2, 5125: 4, 5126: 4}
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_DRACO = "KHR_draco_mesh_compression"
_UNREADABLE = ("EXT_meshopt_compression", "KHR_meshopt_compression")
_GLB_HEADER = 12
_CHUNK_HEADER = 8
_STL_HEADER = 84
_STL_TRIANGLE = 50
_PLY_BYTES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2,
              "float16": 2, "double": 8, "float64": 8, "int64": 8, "uint64": 8}  # fmt: skip


class OwnFolder(trimesh.resolvers.Resolver):
    """Opens the files that a mesh file names, if they lie in its folder or below.

    Args:
        folder: where the mesh file lies.
        most_bytes: bound on all of them together.
    """

    def __init__(self, folder: Path, most_bytes: int = MAX_FILE_BYTES) -> None:
        self.folder = folder
        self.left = most_bytes

    def get(self, key: str) -> bytes:
        """Return the content of a file. Raises a ValueError unless it lies in the folder and is not too large."""
        file = regular_file(self.path(key), "buffer", _short(key))
        self.left -= file.stat().st_size
        if self.left < 0:
            raise ValueError(f"the files that it names are larger than {MAX_FILE_BYTES:,} bytes")
        return file.read_bytes()

    def path(self, key: str) -> Path:
        """Return the path that a name in the mesh file stands for, without opening it.

        Raises:
            ValueError: it is the address of something else, or leads out of the folder (by a link, too).
        """
        parts = urllib.parse.urlsplit(key)
        if parts.scheme or parts.netloc:
            raise ValueError(f"it names {_short(key)}, and only files in its own folder are opened")
        root = self.folder.resolve()
        for name in (key, urllib.parse.unquote(key)):
            # Both: a file may be called a%20b, and %2e%2e leads out.
            target = (root / name).resolve()
            if not target.is_relative_to(root):
                raise ValueError(f"it names {_short(key)}, which lies outside its own folder")
            if target.exists():
                break
        return target

    def keys(self) -> list[str]:
        """Return nothing: names are never guessed."""
        return []

    def namespaced(self, namespace: str) -> OwnFolder:
        """Return the same for a folder below."""
        return OwnFolder(self.path(namespace), self.left)

    def write(self, name: str, data: str | bytes) -> None:
        """Refuse: reading a mesh writes nothing."""
        raise ValueError(f"nothing is written while reading, not even {_short(name)}")


def checked_content(file: Path, resolver: OwnFolder) -> bytes:
    """Return the content of a mesh file that trimesh can read in time and memory proportional to its size.

    Raises:
        ValueError: the file claims more than it holds, is too large, or names a file that it may not.
    """
    size = file.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")
    data = file.read_bytes()
    suffix = file.suffix.lower()
    if suffix == ".glb":
        _check_gltf(_glb_document(data), len(data), resolver)
    elif suffix == ".gltf":
        data = _as_utf8(data)
        _check_gltf(parse_json(data), len(data), resolver)
    elif suffix == ".ply":
        _check_ply(data)
    elif suffix == ".stl":
        data = _checked_stl(data)
    elif suffix == ".obj":
        # Materials are not read, and trimesh would copy all vertices for each of them.
        data = _as_utf8(data).replace(b"usemtl ", b"# ")
    else:
        data = _as_utf8(data)
    return data


def check_scene(scene: trimesh.Scene) -> None:
    """Raise a ValueError if a scene that was read grows too large when its instances are put together."""
    parts = Counter(scene.graph[node][1] for node in scene.graph.nodes_geometry)
    sizes = {
        name: (len(getattr(g, "faces", ())), len(getattr(g, "vertices", ()))) for name, g in scene.geometry.items()
    }
    _check_size(
        sum(sizes[name][0] * count for name, count in parts.items() if name in sizes),
        sum(sizes[name][1] * count for name, count in parts.items() if name in sizes),
    )


def _check_size(triangles: float, vertices: float) -> None:
    if triangles > MAX_TRIANGLES or vertices > MAX_VERTICES:
        raise ValueError(
            f"{triangles:,.0f} triangles and {vertices:,.0f} vertices are more than the {MAX_TRIANGLES:,} and "
            f"{MAX_VERTICES:,} that are read"
        )


def _short(text: str) -> str:
    return repr(text[:80] + ("..." if len(text) > 80 else ""))


def _as_utf8(data: bytes) -> bytes:
    """Return text as UTF-8; bytes that are none (old comments, names) become marks, instead of a guess."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


# -- glTF --------------------------------------------------------------------------------------------------------


def _glb_document(data: bytes) -> Any:
    """Return the JSON of a GLB file, its lengths checked."""
    if data[:4] != b"glTF":
        raise ValueError(f"it begins with {data[:4]!r}, not with b'glTF'")
    if len(data) < _GLB_HEADER + _CHUNK_HEADER:
        raise ValueError(f"it ends after {len(data)} bytes")
    version, length, text_length, kind = struct.unpack_from("<IIII", data, 4)
    if version != 2:
        raise ValueError(f"only version 2 of glTF is read, not {version}")
    if length > len(data):
        raise ValueError(f"its header claims {length:,} bytes, but the file has {len(data):,}")
    start = _GLB_HEADER + _CHUNK_HEADER
    if kind != 0x4E4F534A or start + text_length > len(data):
        raise ValueError(f"its first chunk claims {text_length:,} bytes of JSON, but the file has {len(data):,}")
    return parse_json(_as_utf8(data[start : start + text_length]))


def _check_gltf(document: Any, size: int, resolver: OwnFolder) -> None:
    """Check names of files first, then counts from the bytes up: views, accessors, primitives, instances."""
    if not isinstance(document, dict):
        raise ValueError("its JSON is not an object")
    for item in (*_items(document, "buffers"), *_items(document, "images")):
        uri = item.get("uri")
        if isinstance(uri, str) and not uri.startswith("data:"):
            target = resolver.path(uri)
            size += target.stat().st_size if target.is_file() else 0
    views = _items(document, "bufferViews")
    _check_bytes("its buffer views", sum(_count(v, "byteLength") for v in views), OVERLAP * size)
    accessors = _items(document, "accessors")
    sizes = [
        _count(a, "count") * _COMPONENT_BYTES[a["componentType"]] * _COMPONENTS[a["type"]] for a in accessors
    ]  # fmt: skip
    stored = ["bufferView" in a for a in accessors]
    _check_bytes("its accessors", sum(s for s, has in zip(sizes, stored, strict=True) if has), OVERLAP * size)
    draco = any(_DRACO in str(p.get("extensions", "")) for p in _primitives(document))
    if draco and importlib.util.find_spec("DracoPy") is None:
        raise ImportError("DracoPy, for Draco compression: pip install 'vae-qwen3vl[training]'")
    unknown = [name for name in document.get("extensionsRequired", []) if name in _UNREADABLE]
    if unknown:
        raise ValueError(f"it is compressed with {unknown[0]}, which is not read; Draco, or no compression, is")
    bound = size * (DRACO_RATIO if draco else OVERLAP)
    _check_bytes("its accessors", sum(s for s, has in zip(sizes, stored, strict=True) if not has), bound)
    _check_instances(document, [_count(a, "count") for a in accessors])


def _check_instances(document: dict[str, Any], counts: list[int]) -> None:
    meshes = []
    for mesh in _items(document, "meshes"):
        corners = [
            (counts[p["indices"]] if "indices" in p else counts[p["attributes"]["POSITION"]],
             counts[p["attributes"]["POSITION"]])
            for p in _items(mesh, "primitives") if "POSITION" in p.get("attributes", {})
        ]  # fmt: skip
        # A strip has almost as many triangles as indices.
        strips = any(p.get("mode", 4) != 4 for p in _items(mesh, "primitives"))
        meshes.append((sum(c for c, _ in corners) / (1 if strips else 3), sum(v for _, v in corners), len(corners)))
    _check_size(sum(m[0] for m in meshes), sum(m[1] for m in meshes))
    nodes = _items(document, "nodes")
    depths = _depths(document, nodes)
    uses = [(meshes[node["mesh"]], depths[i]) for i, node in enumerate(nodes) if "mesh" in node]
    _check_size(sum(m[0] * len(d) for m, d in uses), sum(m[1] * len(d) for m, d in uses))
    parts = sum(m[2] * len(d) for m, d in uses) + sum(m[2] for m in meshes)
    if parts > MAX_PARTS:
        raise ValueError(f"its scene is put together of {parts:,} parts, more than the {MAX_PARTS:,} that are read")
    work = sum((depth + 2) ** 3 * max(m[2], 1) for m, found in uses for depth in found)
    if work > MAX_NODE_WORK:
        raise ValueError(f"its nodes are nested too deep, to a depth of {max(max(d) for _, d in uses if d)}")


def _depths(document: dict[str, Any], nodes: list[dict[str, Any]]) -> list[list[int]]:
    """Return at which depths each node hangs in the scene, once for each parent that it has."""
    found: list[list[int]] = [[] for _ in nodes]
    scenes = _items(document, "scenes")
    scene = scenes[document.get("scene", 0)] if scenes else {}
    queue: list[tuple[int, int, int]] = [(-1, root, 0) for root in scene.get("nodes", [])]
    done = set()
    while queue:
        parent, node, depth = queue.pop()
        if (parent, node) in done:
            continue
        done.add((parent, node))
        found[node].append(depth)
        queue += [(node, child, depth + 1) for child in nodes[node].get("children", [])]
    return found


def _items(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{key} in its JSON is not a list of objects")
    return items


def _primitives(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [p for mesh in _items(document, "meshes") for p in _items(mesh, "primitives")]


def _count(item: dict[str, Any], key: str) -> int:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} in its JSON is {_short(str(value))}, not a number of things")
    return value


def _check_bytes(what: str, claimed: int, bound: int) -> None:
    bound = min(bound, MAX_FILE_BYTES)
    if claimed > bound:
        raise ValueError(f"{what} claim {claimed:,} bytes, more than the {bound:,} that such a file can hold")


# -- PLY and STL -------------------------------------------------------------------------------------------------


def _check_ply(data: bytes) -> None:
    end = data.find(b"end_header", 0, MAX_PLY_HEADER)
    if not data[:3].lower() == b"ply" or end < 0:
        raise ValueError(f"it has no PLY header (ply ... end_header) in its first {MAX_PLY_HEADER:,} bytes")
    lines = [line.split() for line in data[:end].decode("latin-1").splitlines()]
    left = len(data) - end
    is_text = any("ascii" in word for line in lines[1:2] for word in line)
    elements: list[tuple[str, int, list[list[str]]]] = []
    for words in lines:
        if words[:1] == ["element"] and len(words) == 3:
            elements.append((words[1], int(words[2]), []))
        elif words[:1] == ["property"] and elements:
            elements[-1][2].append(words)
    if sum(words[1:2] == ["list"] for _, _, properties in elements for words in properties) > MAX_PLY_LISTS:
        raise ValueError(f"it has more than {MAX_PLY_LISTS} list properties")
    for name, count, properties in elements:
        if count < 0:
            raise ValueError(f"its header claims {count:,} of the element {name!r}")
        # A value takes two bytes as text, or its type's; a list at least the number of its items.
        row = sum(2 if is_text else _PLY_BYTES.get(words[2 if words[1] == "list" else 1], 4) for words in properties)
        if count * row > left + 1:
            raise ValueError(
                f"its header claims {count:,} of the element {name!r}, {row} bytes or more each, but {left:,} follow"
            )
    _check_size(0, max((count for _, count, _ in elements), default=0))


def _checked_stl(data: bytes) -> bytes:
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= _STL_HEADER else -1
    if len(data) == _STL_HEADER + _STL_TRIANGLE * count:
        _check_size(count, 3 * count)
        return data
    lowered = data.lower()
    if lowered.find(b"solid") < 0 or lowered.find(b"vertex") < 0:
        held = math.floor((len(data) - _STL_HEADER) / _STL_TRIANGLE)
        raise ValueError(f"its header claims {max(count, 0):,} triangles, but the file has room for {max(held, 0):,}")
    end = lowered.rfind(b"endsolid")
    if end < lowered.rfind(b"endfacet"):
        raise ValueError("it ends before endsolid")
    if lowered.count(b"endsolid") > 1:
        # As one solid: trimesh tries names for each from the first number on, in time that grows with the square.
        lowered = b"solid\n" + lowered.replace(b"endsolid", b"").replace(b"solid", b"") + b"\nendsolid\n"
    return _as_utf8(lowered)
