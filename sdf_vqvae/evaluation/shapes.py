"""What an evaluation reads: a mesh file, a folder of meshes, a mesh pack, or a folder of field files.

Lists objects without reading them; knows nothing of networks and scores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import trimesh

from sdf_vqvae.data.field_folder import FieldFolder, fields_in
from sdf_vqvae.data.file_names import mesh_files
from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import READABLE, load_mesh
from sdf_vqvae.geometry.up import Up, up_of
from sdf_vqvae.utils.files import sha256_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """One object to be rebuilt."""

    id: str
    source: str
    """Collection it comes from."""
    path: Path
    pack: MeshPack | None = None
    entry: PackEntry | None = None
    mesh: trimesh.Trimesh | None = None
    """A mesh in hand, instead of a file."""
    up: Up | None = None
    """The axis of the source that points up; None leaves a mesh as it is (y), and a field as it was made."""

    def load(self) -> trimesh.Trimesh | SparseSDF:
        """Read the mesh, or the field of a dataset.

        Raises:
            ValueError: the file is damaged.
            OSError: it can't be read.
        """
        if self.mesh is not None:
            return self.mesh
        if self.pack is not None and self.entry is not None:
            return self.pack.mesh(self.entry)
        return SparseSDF.load(self.path) if self.path.suffix == ".npz" else load_mesh(self.path)

    def content_hash(self) -> str | None:
        """Return the SHA-256 that datasets have as the id of this mesh; None for a field and for a mesh in hand.

        Raises:
            OSError: the file can't be read.
        """
        if self.pack is not None and self.entry is not None:
            return sha256_of(self.pack.blob, self.entry.offset, self.entry.size)
        if self.mesh is not None or self.path.suffix == ".npz":
            return None
        return sha256_of(self.path)


def list_shapes(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    resolution: int = 256,
    up: str | None = None,
) -> list[Shape]:
    """List the objects of a mesh file, a folder of meshes, a pack, or a dataset of fields, in the order of their ids.

    Args:
        path: the file or folder. A folder with `meshes.jsonl` is a pack, one with `*_r{R}.npz` a dataset; in any
            other the mesh files count, also those in folders below, whose first names are then the sources.
        split: only objects of this split, for packs and tables with such a column.
        max_samples: so many of them, drawn at random; a larger number keeps those that a smaller one draws.
        seed: of the draw.
        resolution: grid side R of a dataset of fields.
        up: the axis of all sources that points up, or `auto`; None takes what `up_of` says of a mesh file, packs and
            fields as they are.

    Raises:
        ValueError: there is nothing to be read, or a split is asked of what has none.
    """
    shapes = [_standing(shape, up) for shape in _listed(Path(path), split, resolution)]
    if not shapes:
        among = f" in split {split!r}" if split is not None else ""
        raise ValueError(f"{path} holds no object to evaluate{among}")
    if max_samples is not None and max_samples < len(shapes):
        drawn = np.random.default_rng(seed).permutation(len(shapes))[:max_samples]
        shapes = [shapes[number] for number in sorted(drawn.tolist())]
    return shapes


def _standing(shape: Shape, asked: str | None) -> Shape:
    """Return the object with the axis that points up."""
    is_mesh_file = shape.pack is None and shape.path.suffix != ".npz"
    return replace(shape, up=up_of(shape.path, asked)) if asked is not None or is_mesh_file else shape


def _listed(path: Path, split: str | None, resolution: int) -> list[Shape]:
    if (path / "meshes.jsonl").is_file():
        return sorted(_of_pack(path, split), key=lambda shape: shape.id)
    if path.is_dir() and fields_in(path):
        return sorted(_of_fields(path, split, resolution), key=lambda shape: shape.id)
    if split is not None:
        raise ValueError(f"--split {split}: {path} is no pack and no dataset, so its objects have no split")
    if path.is_dir():
        files = list(mesh_files(path))
        if not files:
            raise ValueError(f"{path} holds no mesh ({', '.join(READABLE)}), no pack and no field files")
        return sorted((_of_file(file, path) for file in files), key=lambda shape: shape.id)
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder of meshes, a pack, a dataset, or a mesh file")
    return [Shape(id=path.name, source=path.parent.name or "files", path=path)]


def _of_file(file: Path, folder: Path) -> Shape:
    inside = file.relative_to(folder)
    source = inside.parts[0] if len(inside.parts) > 1 else folder.resolve().name
    return Shape(id=inside.as_posix(), source=source, path=file)


def _of_pack(folder: Path, split: str | None) -> Sequence[Shape]:
    pack = MeshPack(folder)
    entries = pack.entries if split is None else pack.select(split)
    if split is not None and not entries:
        known = ", ".join(sorted({entry.split for entry in pack.entries}))
        raise ValueError(f"--split {split}: {folder} has no such split; it has {known}")
    twice = len(entries) - len({entry.id for entry in entries})
    if twice:
        raise ValueError(f"{folder}: {twice} ids of meshes.jsonl occur twice; an evaluation needs one line an object")
    return [Shape(id=e.id, source=e.source, path=folder, pack=pack, entry=e) for e in entries]


def _of_fields(folder: Path, split: str | None, resolution: int) -> Sequence[Shape]:
    dataset = FieldFolder(folder, resolution)
    if split is not None and not any("split" in row for row in dataset.rows):
        raise ValueError(f"--split {split}: the table of {folder} has no column 'split'")
    return [
        Shape(id=name, source=row.get("source") or folder.resolve().name, path=dataset.path(name))
        for row in dataset.rows
        for name in [row[ID_COLUMN]]
        if split is None or row.get("split") == split
    ]
