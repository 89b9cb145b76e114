"""Bounds of mesh files that all readers share, and the only way in which they open other files.

Knows no format and no geometry: what a header claims is compared with the file where the header is read.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path

from sdf_vqvae.utils.files import regular_file

MAX_FILE_BYTES = 2 * 2**30
"""Largest mesh file, with the files it names: 64 bytes for each of `MAX_TRIANGLES`."""
MAX_TRIANGLES = 2**25
"""Most triangles of a mesh, all instances counted: 33 million, above the largest scans in use (28 million)."""
MAX_VERTICES = 2**26
"""Most vertices, all instances counted: a file without shared vertices has three a triangle."""


class OwnFolder:
    """Opens the files that a mesh file names, if they lie in its folder or below.

    Args:
        folder: where the mesh file lies.
        most_bytes: bound on all of them together.
    """

    def __init__(self, folder: Path, most_bytes: int = MAX_FILE_BYTES) -> None:
        self.folder = folder
        self.left = most_bytes

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


def check_file_size(file: Path) -> None:
    """Raise a ValueError if a mesh file is empty or larger than the largest that is read."""
    size = file.stat().st_size
    if size == 0:
        raise ValueError("the file is empty")
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{size:,} bytes are more than the {MAX_FILE_BYTES:,} that are read")


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
