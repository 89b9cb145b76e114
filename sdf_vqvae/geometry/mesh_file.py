"""What a mesh file says about itself, compared with what it is, before a reader allocates or opens anything.

trimesh reads the formats; what it would do without end on a small file (allocate what a header claims, copy a mesh as
often as a scene repeats it, search names one by one) is refused or rewritten here. Knows the formats as far as counts
and names of other files go, and no geometry.
"""

from __future__ import annotations

import math
import struct
import urllib.parse
from collections import Counter
from pathlib import Path

import trimesh

from sdf_vqvae.archives import regular_file

MAX_FILE_BYTES = 2 * 2**30
"""Largest mesh file, with the files it names: 64 bytes for each of `MAX_TRIANGLES`."""
MAX_TRIANGLES = 2**25
"""Most triangles of a mesh, all instances counted: 33 million, above the largest scans in use (28 million)."""
MAX_VERTICES = 2**26
"""Most vertices, all instances counted: a file without shared vertices has three a triangle."""
MAX_PLY_HEADER = 2**16
"""Longest header of a PLY file; a hundred properties need 3 KB, comments some more."""
MAX_PLY_LISTS = 64
"""Most list properties of a PLY file; meshes have one or two."""

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
        return self.file(key).read_bytes()

    def file(self, key: str) -> Path:
        """Return the path of a regular file. Raises a ValueError unless it lies in the folder and is not large."""
        file = regular_file(self.path(key), "buffer", short(key))
        self.left -= file.stat().st_size
        if self.left < 0:
            raise ValueError(f"the files that it names are larger than {MAX_FILE_BYTES:,} bytes")
        return file

    def path(self, key: str) -> Path:
        """Return the path that a name in the mesh file stands for, without opening it.

        Raises:
            ValueError: it is the address of something else, or leads out of the folder (by a link, too).
        """
        parts = urllib.parse.urlsplit(key)
        if parts.scheme or parts.netloc:
            raise ValueError(f"it names {short(key)}, and only files in its own folder are opened")
        root = self.folder.resolve()
        for name in (key, urllib.parse.unquote(key)):
            # Both: a file may be called a%20b, and %2e%2e leads out.
            target = (root / name).resolve()
            if not target.is_relative_to(root):
                raise ValueError(f"it names {short(key)}, which lies outside its own folder")
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
        raise ValueError(f"nothing is written while reading, not even {short(name)}")


def check_file_size(file: Path) -> None:
    """Raise a ValueError if a mesh file is empty or larger than the largest that is read."""
    size = file.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")


def checked_content(file: Path) -> bytes:
    """Return the content of a mesh file that trimesh can read in time and memory proportional to its size.

    Raises:
        ValueError: the file claims more than it holds, or is too large.
    """
    check_file_size(file)
    data = file.read_bytes()
    suffix = file.suffix.lower()
    if suffix == ".ply":
        _check_ply(data)
    elif suffix == ".stl":
        data = _checked_stl(data)
    else:
        data = as_utf8(data)
    return data


def check_scene(scene: trimesh.Scene) -> None:
    """Raise a ValueError if a scene that was read grows too large when its instances are put together."""
    parts = Counter(scene.graph[node][1] for node in scene.graph.nodes_geometry)
    sizes = {
        name: (len(getattr(g, "faces", ())), len(getattr(g, "vertices", ()))) for name, g in scene.geometry.items()
    }
    check_size(
        sum(sizes[name][0] * count for name, count in parts.items() if name in sizes),
        sum(sizes[name][1] * count for name, count in parts.items() if name in sizes),
    )


def check_size(triangles: float, vertices: float) -> None:
    """Raise a ValueError if a mesh is larger than the largest that is read."""
    if triangles > MAX_TRIANGLES or vertices > MAX_VERTICES:
        raise ValueError(
            f"{triangles:,.0f} triangles and {vertices:,.0f} vertices are more than the {MAX_TRIANGLES:,} and "
            f"{MAX_VERTICES:,} that are read"
        )


def short(text: str) -> str:
    """Return text of a file in quotes, its first 80 characters."""
    return repr(text[:80] + ("..." if len(text) > 80 else ""))


def as_utf8(data: bytes) -> bytes:
    """Return text as UTF-8; bytes that are none (old comments, names) become marks, instead of a guess."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace").encode()
    return data


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
    check_size(0, max((count for _, count, _ in elements), default=0))


def _checked_stl(data: bytes) -> bytes:
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= _STL_HEADER else -1
    if len(data) == _STL_HEADER + _STL_TRIANGLE * count:
        check_size(count, 3 * count)
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
    return as_utf8(lowered)
