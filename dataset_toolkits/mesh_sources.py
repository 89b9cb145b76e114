"""Where the meshes of a dataset come from: tables and folders of four formats, read as rows and places of meshes.

A row that names no usable mesh stays, with the reason. Names from tables are checked before they become paths.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import trimesh

from sdf_vqvae.archives import parse_json
from sdf_vqvae.caption_cells import CAPTIONS, captions_cell, captions_in, captions_of, captions_of_row
from sdf_vqvae.data import MeshPack, PackEntry, read_draco_mesh
from sdf_vqvae.field_folder import METADATA, SAFE_ID, read_table
from sdf_vqvae.geometry.mesh import READABLE, load_mesh

logger = logging.getLogger(__name__)

FORMATS = ("trellis500k", "custom", "folder", "pack")
_ABSOLUTE = ("trellis500k", "custom")
"""Formats whose tables may hold absolute paths or lie above the folder."""
ID = "sha256"
_OBJECT_PATHS = "object-paths.json"
_OBJAVERSE = Path("raw/hf-objaverse-v1")
_RAW = "raw"
_FILE_COLUMNS = ("file", "file_name", "glb_file", "path")
_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True)
class MeshPlace:
    """Where one mesh lies; small and picklable."""

    path: Path
    name: str
    """What messages call it."""
    offset: int | None = None
    """First byte of its Draco stream, in a pack; None for a mesh file."""
    size: int = 0
    """Bytes of the stream."""


@dataclass(frozen=True, kw_only=True)
class SourceItem:
    """A row of the dataset to be made, and its mesh."""

    row: dict[str, str]
    """Columns of `metadata.csv`; at least `sha256`, the object's id, and `captions`."""
    place: MeshPlace | None
    error: str = ""
    """Why there is no mesh to be had."""


def load_place(place: MeshPlace) -> trimesh.Trimesh:
    """Read a mesh.

    Raises:
        ValueError: see `load_mesh` and `read_draco_mesh`.
    """
    if place.offset is None:
        return load_mesh(place.path)
    return read_draco_mesh(place.path, place.offset, place.size, place.name)


def read_source(source_format: str, folder: Path, *, split: str | None = None) -> Iterator[SourceItem]:
    """Yield the objects of a folder, in the order of its table or of the files' names.

    An object whose id is not a plain name, or that was there before, has an error instead of a place.

    Args:
        source_format: one of `FORMATS`.
        folder: the dataset.
        split: only rows whose column `split` says this.

    Raises:
        ValueError: the folder or its table is missing or damaged, or lacks a needed column.
    """
    if not folder.is_dir():
        raise ValueError(f"the input folder {folder} does not exist")
    readers = {"trellis500k": _trellis, "custom": _custom, "folder": _files, "pack": _pack}
    if source_format not in readers:
        raise ValueError(f"format {source_format!r} is unknown; use one of {', '.join(FORMATS)}")
    if source_format in _ABSOLUTE:
        folder = folder.absolute()
    first: dict[str, str] = {}
    for number, item in enumerate(readers[source_format](folder), 1):
        if split is not None and item.row.get("split") != split:
            continue
        name = item.row[ID]
        error = item.error
        if error:
            pass
        elif not SAFE_ID.fullmatch(name):
            error = f"its id {name[:80]!r} is not a plain name (letters, digits, '.', '_', '-')"
        elif name in first:
            error = f"its id occurs twice: first in row {first[name]}"
        else:
            first[name] = f"{number} ({item.place.name})" if item.place else str(number)
        captions = captions_cell(captions_of_row(item.row))
        # Workers may run elsewhere.
        place = None if error or item.place is None else replace(item.place, path=item.place.path.absolute())
        yield SourceItem(row={**item.row, CAPTIONS: captions}, place=place, error=error)


def input_table(source_format: str, folder: Path) -> Path | None:
    """Return the table that a format reads, or None where it reads none."""
    if source_format == "pack":
        return None
    if source_format in _ABSOLUTE:
        folder = folder.absolute()
    if source_format == "trellis500k":
        start = _object_paths(folder)
        tables = [f / METADATA for f in _upwards(start.parent if start else folder)]
        tables += [f / METADATA for f in _upwards(folder) if f / METADATA not in tables]
    else:
        tables = [folder / METADATA]
    return next((table for table in tables if table.is_file()), None)


def _upwards(folder: Path) -> list[Path]:
    return [folder, *list(folder.parents)[:2]]


# -- the original's formats --------------------------------------------------------------------------------------


def _trellis(folder: Path) -> Iterator[SourceItem]:
    """Yield objects of TRELLIS-500K's layouts: ObjaverseXL (with `object-paths.json`) or HSSD and the like."""
    table = input_table("trellis500k", folder)
    if table is None:
        raise ValueError(f"there is no {METADATA} in {folder} or up to two folders above it")
    paths_file = _object_paths(folder)
    paths = None if paths_file is None else _read_object_paths(paths_file)
    bases = [base for root in dict.fromkeys((folder, table.parent)) for base in (root, root / _RAW)]
    for row in read_table(table, (ID, "file_identifier")):
        identifier = row["file_identifier"]
        if paths is None or paths_file is None:
            yield _located(row, bases, identifier, "file_identifier")
            continue
        key = identifier.rstrip("/").rpartition("/")[2]  # the last part of a Sketchfab address
        if key in paths:
            yield _located(row, [paths_file.parent], paths[key], _OBJECT_PATHS)
        else:
            yield SourceItem(row=row, place=None, error=f"{_OBJECT_PATHS} has no path of {identifier[:200]!r}")


def _object_paths(folder: Path) -> Path | None:
    """Return the `object-paths.json` of a folder, or of the download below it."""
    return next((f for f in (folder / _OBJECT_PATHS, folder / _OBJAVERSE / _OBJECT_PATHS) if f.is_file()), None)


def _read_object_paths(path: Path) -> dict[str, str]:
    try:
        paths = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(paths, dict) or not all(isinstance(value, str) for value in paths.values()):
        raise ValueError(f"{path} must be a JSON object of id: relative path")
    return paths


def _custom(folder: Path) -> Iterator[SourceItem]:
    for row in read_table(folder / METADATA, (ID, "glb_file")):
        yield _located(row, [folder], row["glb_file"], "glb_file")


def _located(row: dict[str, str], bases: Sequence[Path], name: str, column: str) -> SourceItem:
    """Return the item of a row whose mesh lies at a path relative to one of some folders."""
    relative = PurePath(name)
    inside = next((base for base in bases if relative.is_absolute() and relative.is_relative_to(base)), None)
    if inside is not None:
        relative = relative.relative_to(inside)
    if not name.strip() or "\0" in name:
        return SourceItem(row=row, place=None, error=f"its {column} is empty or has a null byte")
    if relative.is_absolute() or ".." in relative.parts:
        return SourceItem(row=row, place=None, error=f"its {column} {name[:200]!r} leads out of the dataset's folder")
    for base in bases:
        if _is_file(base / relative):
            return SourceItem(row=row, place=MeshPlace(path=base / relative, name=str(relative)))
    return SourceItem(row=row, place=None, error=f"its {column} {name[:200]!r} does not exist")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system refuses
        return False


# -- a folder of mesh files --------------------------------------------------------------------------------------


def _files(folder: Path) -> Iterator[SourceItem]:
    """Yield the mesh files of a folder and those below; their ids are the hashes of their contents.

    A `metadata.csv` in the folder says more about them: a row belongs to the file that its `file` (`file_name`,
    `glb_file`, `path`) names, or to the one of its `sha256`.
    """
    table = input_table("folder", folder)
    by_file: dict[str, dict[str, str]] = {}
    by_id: dict[str, dict[str, str]] = {}
    for row in [] if table is None else read_table(table, ()):
        name = next((row[column] for column in _FILE_COLUMNS if row.get(column)), "")
        if name:
            by_file[PurePath(name).as_posix()] = row
        elif row.get(ID):
            by_id[row[ID]] = row
    found = 0
    for file in _mesh_files(folder):
        found += 1
        name = file.relative_to(folder).as_posix()
        try:
            digest = _hash_of(file)
        except OSError as error:
            row = {ID: "", "file": name, **by_file.pop(name, {})}
            yield SourceItem(row=row, place=None, error=f"it cannot be read: {error.strerror}")
            continue
        about = by_file.pop(name, None) or by_id.get(digest, {})
        yield SourceItem(
            row={"file": name, "name": file.stem, **about, ID: digest}, place=MeshPlace(path=file, name=name)
        )
    for name, row in by_file.items():
        yield SourceItem(
            row={ID: "", "file": name, **row}, place=None, error=f"its file {name[:200]!r} does not exist"
        )
    if not found:
        raise ValueError(f"{folder} holds no mesh file ({', '.join(READABLE)})")


def _mesh_files(folder: Path) -> Iterator[Path]:
    """Yield mesh files in the order of their paths; links to folders are not followed, hidden names left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(READABLE) and not name.startswith("."):
                yield Path(parent, name)


def _hash_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# -- packs -------------------------------------------------------------------------------------------------------


def _pack(folder: Path) -> Iterator[SourceItem]:
    """Yield the meshes of a pack; their ids are the hashes of their streams."""
    pack = MeshPack(folder)
    blob = folder / "meshes.bin"
    with blob.open("rb") as streams:
        for entry in pack.entries:
            streams.seek(entry.offset)
            digest = hashlib.sha256(streams.read(entry.size)).hexdigest()
            place = MeshPlace(path=blob, name=entry.id, offset=entry.offset, size=entry.size)
            yield SourceItem(row=_pack_row(entry, digest), place=place)


def _pack_row(entry: PackEntry, digest: str) -> dict[str, str]:
    record = entry.record
    words = {key: str(record.get(key) or "") for key in ("name", "category", "author", "license")}
    captions = captions_of(record.get("captions"))
    return {
        ID: digest,
        "id": entry.id,
        "source": entry.source,
        "split": entry.split,
        "name": words["name"],
        "category": words["category"],
        "tags": json.dumps(record.get("tags") or [], ensure_ascii=False),
        CAPTIONS: captions_cell(captions or captions_in(words["name"])),
        "author": words["author"],
        "license": words["license"],
    }
