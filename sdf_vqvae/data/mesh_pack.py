"""Mesh packs: their manifest, and their meshes.

Knows files; nothing of fields and networks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import trimesh

from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.strict_files import parse_json

BLOB, MANIFEST = "meshes.bin", "meshes.jsonl"
_GRID = 4095  # 12-bit positions


@dataclass(frozen=True, kw_only=True)
class PackEntry:
    """One mesh of a pack: a line of its `meshes.jsonl`."""

    id: str
    split: str
    offset: int
    size: int
    record: dict[str, Any]
    """The whole line: names, captions, licence and so on."""

    @property
    def source(self) -> str:
        """The collection the mesh comes from (the part of the id before the slash)."""
        return self.id.split("/")[0]


class MeshPack:
    """A folder with `meshes.bin` (Draco streams) and `meshes.jsonl` (a line a mesh).

    Raises:
        ValueError: a file is missing, or a line lacks `id`, `split`, `offset` or `size`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.blob = self.folder / BLOB
        """The Draco streams."""
        manifest = self.folder / MANIFEST
        for file in (self.blob, manifest):
            if not file.is_file():
                raise ValueError(f"{file} does not exist: a mesh pack is a folder with meshes.bin and meshes.jsonl")
        size = self.blob.stat().st_size
        self.entries: list[PackEntry] = []
        with manifest.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    self.entries.append(_entry(parse_json(line), size))
                except KeyError as error:
                    raise ValueError(f"{manifest}, line {number}: no {error} key") from error
                except (ValueError, TypeError) as error:
                    raise ValueError(f"{manifest}, line {number}: {brief(error)}") from error

    def select(self, split: str) -> list[PackEntry]:
        """Return the entries of one split."""
        return [e for e in self.entries if e.split == split]

    def mesh(self, entry: PackEntry) -> trimesh.Trimesh:
        """Decode one mesh; positions are in [-0.5, 0.5].

        Raises:
            ValueError: the stream is damaged.
        """
        return read_draco_mesh(self.blob, entry.offset, entry.size, entry.id)


def read_draco_mesh(blob: Path, offset: int, size: int, name: str) -> trimesh.Trimesh:
    """Decode a mesh of a pack from its place in `meshes.bin`; positions are in [-0.5, 0.5].

    Raises:
        ValueError: the stream is damaged; the message has `name`.
    """
    try:
        import DracoPy
    except ImportError as error:
        raise ImportError("reading mesh packs needs DracoPy: pip install 'vae-qwen3vl[training]'") from error
    with blob.open("rb") as file:
        file.seek(offset)
        stream = file.read(size)
    try:
        decoded = DracoPy.decode(stream)
        vertices = np.asarray(decoded.points, dtype=np.float64).reshape(-1, 3) / _GRID - 0.5
        return trimesh.Trimesh(vertices, np.asarray(decoded.faces).reshape(-1, 3), process=False)
    except (DracoPy.FileTypeException, DracoPy.EncodingFailedException, ValueError, AttributeError) as error:
        raise ValueError(f"{blob}: {name} is not a readable Draco mesh: {brief(error)}") from error


def _entry(record: Any, size: int) -> PackEntry:
    """Return the entry of a manifest line, for a file of so many bytes."""
    if not isinstance(record, dict):
        raise ValueError("a line is an object of JSON")
    keys = {k: record[k] for k in ("id", "split", "offset", "size")}
    numbers = (keys["offset"], keys["size"])
    if not all(type(n) is int and n >= 0 for n in numbers) or sum(numbers) > size:
        raise ValueError(f"offset {numbers[0]!r} and size {numbers[1]!r} lie outside meshes.bin ({size:,} bytes)")
    return PackEntry(id=str(keys["id"]), split=str(keys["split"]), offset=numbers[0], size=numbers[1], record=record)
