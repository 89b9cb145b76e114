"""The kinds of mesh files by their suffixes. A new kind is a module beside this one and a row here.

Knows names alone, so that programs can list them at once: a module is imported when a file of its kind is at hand.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    import trimesh

    from sdf_vqvae.geometry.formats.mesh_file import OwnFolder


@dataclass(frozen=True, kw_only=True)
class MeshFormat:
    """A kind of mesh file."""

    name: str
    """As people call it."""
    module: str
    """Name of the module in this folder that knows it."""
    writable: bool = True
    up: str | None = None
    """The axis that points up in every file of the kind; None where files differ."""


class FormatModule(Protocol):
    """What the module of a kind defines; `write` only where the kind is writable."""

    def read(self, file: Path, folder: OwnFolder) -> trimesh.Trimesh:
        """Read a file; `folder` opens the files that it names.

        Raises:
            ValueError: it is damaged, claims more than it holds, or needs something that is not read. Of damaged
                files, other errors are the reader's word too: see `load_mesh`.
            ImportError: it needs a library that is not installed.
        """
        ...

    def write(self, path: Path, mesh: trimesh.Trimesh, note: str) -> tuple[float, float, float] | None:
        """Write a file, whole or not at all, with a note where the kind has room for one.

        Returns:
            What had to be taken from all coordinates for the kind to hold them; None where nothing had to.

        Raises:
            ValueError: the kind can't hold the mesh.
        """
        ...


FORMATS = {
    ".glb": MeshFormat(name="glTF", module="gltf", up="y"),
    ".gltf": MeshFormat(name="glTF", module="gltf", up="y", writable=False),
    ".obj": MeshFormat(name="OBJ", module="obj"),
    ".ply": MeshFormat(name="PLY", module="ply"),
    ".stl": MeshFormat(name="STL", module="stl"),
    ".off": MeshFormat(name="OFF", module="off"),
}
READABLE = tuple(FORMATS)
WRITABLE = tuple(suffix for suffix, kind in FORMATS.items() if kind.writable)


def module_of(suffix: str) -> FormatModule:
    """Return the module that reads and writes the files of a suffix."""
    return cast(FormatModule, importlib.import_module(f"sdf_vqvae.geometry.formats.{FORMATS[suffix].module}"))
