"""Which objects lie at a path: meshes in files, folders and packs, fields in files and folders, one by one.

A path is of the first kind that a caller can read (`kind_of`); each kind of folder has one listing. Nothing is opened
before an object's place is asked for its content. In which order objects come, and which of them are one, their
callers say; codes are read by `sdf_vqvae.codes`.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trimesh

from sdf_vqvae.data.captions import CAPTIONS, captions_cell, captions_in, captions_of
from sdf_vqvae.data.field_file import FIELD_SUFFIX, fields_in
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.file_names import mesh_files
from sdf_vqvae.data.mesh_pack import MANIFEST as PACK_MANIFEST
from sdf_vqvae.data.mesh_pack import MeshPack, read_draco_mesh
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import READABLE, load_mesh
from sdf_vqvae.geometry.up import UP_IN_PACKS, Up, up_of
from sdf_vqvae.utils.files import sha256_of

CODES_MANIFEST = "manifest.json"
"""The file by which a folder of codes is known (`sdf_vqvae.codes.folder`)."""


class Kind(enum.Enum):
    """What a path may be."""

    CODES = enum.auto()
    """A folder of codes."""
    PACK = enum.auto()
    """A mesh pack."""
    FIELDS = enum.auto()
    """A dataset of field files, such as the organs of CT scans."""
    FOLDER = enum.auto()
    """Any folder, whose mesh files count."""
    FILE = enum.auto()
    """Any file."""

    def is_at(self, path: Path) -> bool:
        """Return whether a path is of this kind."""
        if self is Kind.CODES:
            return (path / CODES_MANIFEST).is_file()
        if self is Kind.PACK:
            return (path / PACK_MANIFEST).is_file()
        if self is Kind.FIELDS:
            return path.is_dir() and fields_in(path)
        return path.is_dir() if self is Kind.FOLDER else path.is_file()


def kind_of(path: str | os.PathLike[str], *kinds: Kind) -> Kind | None:
    """Return the first of the kinds that a caller reads which a path is of; None where it is of none of them."""
    return next((kind for kind in kinds if kind.is_at(Path(path))), None)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one object lies: a file, or a part of a pack. Small and picklable."""

    path: Path
    name: str
    """What messages call it."""
    offset: int | None = None
    """First byte of its Draco stream, in a pack; None for a file."""
    size: int = 0
    """Bytes of the stream."""
    up: Up | None = None
    """The axis of the source that points up; None leaves a mesh as it is (y), and a field as it was made."""

    @property
    def is_field(self) -> bool:
        """Whether it is a distance field, not a mesh."""
        return self.offset is None and self.path.suffix.lower() == FIELD_SUFFIX

    def load(self) -> trimesh.Trimesh | SparseSDF:
        """Read the mesh, or the field of a dataset.

        Raises:
            ValueError: the file is damaged.
            OSError: it can't be read.
        """
        return SparseSDF.load(self.path) if self.is_field else self.mesh()

    def mesh(self) -> trimesh.Trimesh:
        """Read the mesh.

        Raises:
            ValueError: see `load_mesh` and `read_draco_mesh`.
        """
        if self.offset is None:
            return load_mesh(self.path)
        return read_draco_mesh(self.path, self.offset, self.size, self.name)

    def content_hash(self) -> str:
        """Return the SHA-256 of its bytes, which datasets have as the id of a mesh. Raises an OSError."""
        return sha256_of(self.path) if self.offset is None else sha256_of(self.path, self.offset, self.size)

    def standing(self, asked: str | None, column: str = "") -> Place:
        """Return the place with the axis that points up.

        Every mesh file has one (see `up_of`). What lies in a pack, and a field, keeps the way it stands unless
        somebody says otherwise.

        Args:
            asked: what `--up` says; None where it isn't given.
            column: what the column `up` says in the object's row.

        Raises:
            ValueError: one of them names no axis.
        """
        as_it_stands = self.is_field or self.offset is not None
        if as_it_stands and asked is None and not column:
            return self  # without a look into the file
        up = up_of(self.path, asked, column)
        return self if as_it_stands and not up.is_said else replace(self, up=up)


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object: what is known of it, and where it lies."""

    id: str
    source: str = ""
    """The collection it comes from."""
    row: Mapping[str, str] = field(default_factory=dict)
    """What a table says of it, or the line of its pack."""
    place: Place | None
    error: str = ""
    """Why there is nothing to be had."""

    @property
    def split(self) -> str | None:
        """What its row says in the column `split`."""
        return self.row.get("split")

    @property
    def there(self) -> Place:
        """Its place. Raises a ValueError, with the reason, where it has none."""
        if self.place is None:
            raise ValueError(self.error)
        return self.place


def mesh_objects(folder: Path) -> Iterator[StoredObject]:
    """Yield the mesh files of a folder and those below, in the order of a walk; their ids are their relative paths.

    The first folder below is their source, or the folder itself.
    """
    for path in mesh_files(folder):
        inside = path.relative_to(folder)
        source = inside.parts[0] if len(inside.parts) > 1 else folder.resolve().name
        row = {"file": inside.as_posix(), "name": path.stem}
        yield StoredObject(id=row["file"], source=source, row=row, place=Place(path=path, name=row["file"]))


def pack_objects(pack: MeshPack) -> Iterator[StoredObject]:
    """Yield the meshes of a pack, a line each, in their order; their ids are those of the lines."""
    for entry in pack.entries:
        record = entry.record
        words = {key: str(record.get(key) or "") for key in ("name", "category", "group", "author", "license")}
        row = {
            "id": entry.id,
            "source": entry.source,
            "split": entry.split,
            "name": words["name"],
            "category": words["category"],
            "tags": json.dumps(record.get("tags") or [], ensure_ascii=False),
            CAPTIONS: captions_cell(captions_of(record.get("captions")) or captions_in(words["name"])),
            "group": words["group"],
            "author": words["author"],
            "license": words["license"],
        }
        place = Place(path=pack.blob, name=entry.id, offset=entry.offset, size=entry.size, up=UP_IN_PACKS)
        yield StoredObject(id=entry.id, source=entry.source, row=row, place=place)


def by_content(item: StoredObject) -> StoredObject:
    """Return an object with the hash of its content as id, as datasets know meshes. Raises an OSError."""
    digest = item.there.content_hash()
    return replace(item, id=digest, row={ID_COLUMN: digest, **item.row})


def field_objects(fields: FieldFolder) -> Iterator[StoredObject]:
    """Yield the objects of a dataset of fields in the order of its table, usable or not."""
    for row in fields.table():
        name = row[ID_COLUMN]
        source = row.get("source") or fields.folder.resolve().name
        error = fields.left_out.get(name, "")
        place = None if error else Place(path=fields.path(name), name=name)
        yield StoredObject(id=name, source=source, row=row, place=place, error=error)


def objects_at(
    path: str | os.PathLike[str], *, split: str | None = None, resolution: int = 256
) -> Sequence[StoredObject]:
    """Return the objects at a path: of a mesh pack, a dataset of fields or a folder of meshes, or the one in a file.

    Args:
        path: the file or folder; a folder that is neither pack nor dataset counts with its mesh files.
        split: only objects of this split, for packs and tables with such a column.
        resolution: grid side R of a dataset of fields, of which those of twice or half of it count too, to be
            resampled. Those of its objects that can't be used have no place.

    Raises:
        ValueError: there is nothing to be read, or a split is asked of what has none.
    """
    folder = Path(path)
    kind = kind_of(folder, Kind.PACK, Kind.FIELDS, Kind.FOLDER, Kind.FILE)
    if kind is Kind.PACK:
        return _of_pack(MeshPack(folder), split)
    if kind is Kind.FIELDS:
        return _of_fields(FieldFolder(folder, resolution, resampled=True), split)
    if split is not None:
        raise ValueError(f"--split {split}: {folder} is no pack and no dataset, so its objects have no split")
    if kind is None:
        raise ValueError(f"{folder} does not exist: give a folder of meshes, a pack, a dataset, or a mesh file")
    if kind is Kind.FILE:
        place = Place(path=folder, name=folder.name)
        return [StoredObject(id=folder.name, source=folder.parent.name or "files", place=place)]
    meshes = list(mesh_objects(folder))
    if not meshes:
        raise ValueError(f"{folder} holds no mesh ({', '.join(READABLE)}), no pack and no field files")
    return meshes


def _of_pack(pack: MeshPack, split: str | None) -> list[StoredObject]:
    objects = [item for item in pack_objects(pack) if split is None or item.split == split]
    if split is not None and not objects:
        splits = ", ".join(sorted({entry.split for entry in pack.entries}))
        raise ValueError(f"--split {split}: {pack.folder} has no such split; it has {splits}")
    twice = len(objects) - len({item.id for item in objects})
    if twice:
        raise ValueError(f"{pack.folder}: {twice} ids of meshes.jsonl occur twice; give every line an id of its own")
    return objects


def _of_fields(fields: FieldFolder, split: str | None) -> list[StoredObject]:
    if split is not None and not any("split" in row for row in fields.rows):
        raise ValueError(f"--split {split}: the table of {fields.folder} has no column 'split'")
    return [item for item in field_objects(fields) if split is None or item.split == split]
