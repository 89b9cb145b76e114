"""Where the meshes of a dataset come from: tables and folders of four formats, read as rows and places of meshes.

An object is a row, however many rows its table has for it: it gets the captions of all. A row that names no usable
mesh stays, with the reason, and so do rows of an id that stands for several meshes. Names from tables are checked
before they become paths.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import trimesh

from sdf_vqvae.data import FORMATS
from sdf_vqvae.data.captions import CAPTIONS, captions_cell, captions_in, captions_of, captions_of_row
from sdf_vqvae.data.field_folder import SAFE_ID
from sdf_vqvae.data.file_names import mesh_files
from sdf_vqvae.data.folder_table import MatchedTable, Row, TableUse, captions_columns, match_table
from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry, read_draco_mesh
from sdf_vqvae.data.object_rows import merged, several_files
from sdf_vqvae.data.tables import (
    FILE_COLUMNS,
    METADATA,
    NAME_COLUMNS,
    TABLES,
    find_table,
    read_packed_json,
    read_table,
    warn_of_other_tables,
)
from sdf_vqvae.geometry.mesh import READABLE, load_mesh
from sdf_vqvae.geometry.up import UP_IN_PACKS, Up, up_of
from sdf_vqvae.utils.files import sha256_of

logger = logging.getLogger(__name__)

_ABSOLUTE = ("trellis500k", "custom")
"""Formats whose tables may hold absolute paths or lie above the folder."""
ID = "sha256"
UP = "up"
"""The column that says which axis of a mesh points up."""
_OBJECT_PATHS = "object-paths.json"
_OBJAVERSE = Path("raw/hf-objaverse-v1")
_RAW = "raw"
_IDENTIFIER = "file_identifier"
_LOCAL = "local_path"
_MOST_NOTES = 5
_OF_A_FILE = (ID, *FILE_COLUMNS, *NAME_COLUMNS)
"""Columns in which rows of files that are the same may differ without another word."""


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
    up: Up = UP_IN_PACKS
    """Which of its axes points up."""


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


class Source:
    """The objects of a folder, in the order of its table or of the files' names, each once.

    Rows of the same id and the same mesh are one object, with the captions of all of them. Where an id stands for
    different meshes, each of its rows has an error instead of a place, and so has a row whose id is no plain name.

    Args:
        source_format: one of `FORMATS`.
        folder: the dataset.
        split: only rows whose column `split` says this.
        up: the axis of all meshes that points up, or `auto`; None takes what `up_of` says, and packs as they stand.

    Raises:
        ValueError: the folder or its table is missing or damaged (also while objects are read), or lacks a needed
            column.
    """

    def __init__(self, source_format: str, folder: Path, *, split: str | None = None, up: str | None = None) -> None:
        if not folder.is_dir():
            raise ValueError(f"the input folder {folder} does not exist")
        if source_format not in FORMATS:
            raise ValueError(f"format {source_format!r} is unknown; use one of {', '.join(FORMATS)}")
        self._format, self._split, self._up = source_format, split, up
        self._folder = folder.absolute() if source_format in _ABSOLUTE else folder
        self.table: TableUse | None = None
        """What was understood of the table, where there is one; whole when all objects were read."""
        self.repeated: list[str] = []
        """Meshes that are there more than once, and rows of one object that differ."""

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield the objects."""
        if self._format == "pack":  # objects of other splits are none of these
            items = (item for item in pack_items(self._folder) if self._is_chosen(item))
            found: Iterable[SourceItem] = self._gathered(items)
        elif self._format == "folder":
            found = self._files()
        else:
            found = self._gathered(self._rows_of_table())
        for item in found:
            if not self._is_chosen(item):
                continue
            name, error = item.row[ID], item.error
            if not error and not SAFE_ID.fullmatch(name):
                error = f"its id {name[:80]!r} is not a plain name (letters, digits, '.', '_', '-')"
            captions = captions_cell(captions_of_row(item.row))
            place = None if error else item.place
            if place is not None:
                try:
                    # Workers may run elsewhere.
                    place = replace(place, path=place.path.absolute(), up=self._up_of(place, item.row))
                except ValueError as wrong:
                    place, error = None, str(wrong)
            yield SourceItem(row={**item.row, CAPTIONS: captions}, place=place, error=error)

    def _up_of(self, place: MeshPlace, row: Mapping[str, str]) -> Up:
        if place.offset is not None and self._up is None:
            return place.up
        return up_of(place.path, self._up, row.get(UP, ""))

    def _note(self, repeated: str) -> None:
        self.repeated.append(repeated)
        if len(self.repeated) <= _MOST_NOTES:
            logger.warning("%s", repeated)
        elif len(self.repeated) == _MOST_NOTES + 1:
            logger.warning("there are more such objects: `repeated` in the summary has them all")

    def _is_chosen(self, item: SourceItem) -> bool:
        return self._split is None or item.row.get("split") == self._split

    # -- rows of one object ---------------------------------------------------------------------------------------

    def _gathered(self, items: Iterable[SourceItem]) -> Iterator[SourceItem]:
        """Yield an item for each id where its rows are of one mesh, and all rows of the other ids."""
        groups: dict[str, list[tuple[int, SourceItem]]] = {}
        for number, item in enumerate(items, 1):
            groups.setdefault(item.row[ID], []).append((number, item))
        for name, group in groups.items():
            if len(group) == 1 or not name:
                yield from (item for _, item in group)
                continue
            placed = [item.place for _, item in group if item.place is not None]
            if not placed:
                yield from (item for _, item in group)
            elif _is_one_mesh(group):
                yield replace(self._merged(name, group), place=placed[0], error="")
            else:
                files = [(number, item.place.name if item.place else _file_of(item.row)) for number, item in group]
                reason = several_files(name, [(number, file) for number, file in files if file])
                yield from (replace(item, place=None, error=reason) for _, item in group)

    def _merged(
        self, name: str, group: Sequence[tuple[int, SourceItem]], may_differ: Collection[str] = ()
    ) -> SourceItem:
        row, differing = merged([item.row for _, item in group])
        if differing := [column for column in differing if column not in may_differ]:
            numbers = ", ".join(str(number) for number, _ in group)
            self._note(f"{name}: rows {numbers} differ in {', '.join(differing)}: the first value counts")
        return replace(group[0][1], row=row)

    # -- the original's formats -----------------------------------------------------------------------------------

    def _rows_of_table(self) -> Iterator[SourceItem]:
        """Yield a row of the table at a time, with the place of its mesh, and note what was understood."""
        read = {"trellis500k": _trellis, "custom": _custom}[self._format]
        if self._format == "custom":
            warn_of_other_tables(self._folder)
        use: TableUse | None = None
        files: set[Path] = set()
        for column, item in read(self._folder):
            if use is None:
                table = input_table(self._format, self._folder)
                use = TableUse(table=str(table), file_columns=[], caption_columns=captions_columns(item.row))
                self.table = use
            use.rows += 1
            use.file_columns += [] if column in use.file_columns else [column]
            if item.place is not None:
                use.rows_matched += 1
                files.add(item.place.path)
            yield item
        if use is not None:
            use.files = use.files_matched = len(files)
            _say(use)

    # -- a folder of mesh files -----------------------------------------------------------------------------------

    def _files(self) -> Iterator[SourceItem]:
        """Yield the mesh files of a folder and those below; their ids are the hashes of their contents.

        A table in the folder says more about them (see `match_table`). Files of the same content are one object.
        """
        files = {file.relative_to(self._folder).as_posix(): file for file in mesh_files(self._folder)}
        if not files:
            raise ValueError(f"{self._folder} holds no mesh file ({', '.join(READABLE)})")
        contents = _Contents(files)
        rows: dict[str, Sequence[Row]] = {}
        strays: Sequence[tuple[Row, str]] = ()
        warn_of_other_tables(self._folder)
        if unread := _words_not_read(self._folder, files):
            more = f" and {len(unread) - _MOST_NOTES} more" if len(unread) > _MOST_NOTES else ""
            logger.warning(
                "%s: %s%s not read: words come from a table in the folder itself",
                self._folder, ", ".join(unread[:_MOST_NOTES]), more,
            )  # fmt: skip
        table = find_table(self._folder)
        if table is not None and (found := _matched(table, list(files), contents)) is not None:
            rows, strays, self.table = dict(found.rows), found.strays, found.use
            _say(found.use)
        done: set[str] = set()
        for name in files:
            if name in done:
                continue
            same = contents.same_as(name)
            done |= set(same)
            digest = contents.hash_of(name)
            if not digest:
                row = {**_merged_cells(rows.get(name, ())), "file": name, ID: ""}
                yield SourceItem(row=row, place=None, error=f"it cannot be read: {contents.errors[name]}")
                continue
            if len(same) > 1:
                self._note(f"{', '.join(same)}: the same mesh, and one object with the words of all")
            group = [(number, SourceItem(row=row, place=None)) for file in same for number, row in rows.get(file, ())]
            group.sort(key=lambda one: one[0])
            about = self._merged(name, group, _OF_A_FILE).row if group else {}
            row = {"file": name, "name": files[name].stem} | about | {"file": name, ID: digest}
            yield SourceItem(row=row, place=MeshPlace(path=files[name], name=name))
        for (_, row), reason in strays:
            yield SourceItem(row={**row, "file": _file_of(row), ID: ""}, place=None, error=reason)


def _merged_cells(rows: Sequence[Row]) -> dict[str, str]:
    return merged([row for _, row in rows])[0] if rows else {}


def _matched(table: Path, names: Sequence[str], contents: _Contents) -> MatchedTable | None:
    """Match a table's rows to files; None for a `metadata.json` that is none, for people call other things so.

    Raises:
        ValueError: see `match_table`.
    """
    try:
        return match_table(table, names, contents.hash_of)
    except ValueError as error:
        if table.name.removesuffix(".gz") != "metadata.json":
            raise
        logger.warning("not read as a table: %s", error)
        return None


def _words_not_read(folder: Path, names: Iterable[str]) -> list[str]:
    """Return files that seem to hold words on meshes below a folder: tables of folders below, texts beside meshes."""
    without_ending = {name.rpartition(".")[0] for name in names}
    folders = {stem[:place] for stem in without_ending for place, letter in enumerate(stem) if letter == "/"}
    found = []
    for parent in sorted(folders | {""}):
        for name in sorted(os.listdir(folder / parent)):
            path = f"{parent}/{name}" if parent else name
            stem, _, ending = path.rpartition(".")
            if (parent and name in TABLES) or (ending == "txt" and stem in without_ending):
                found.append(path)
    return found


def _say(use: TableUse) -> None:
    """Say what was understood of a table."""
    whole = 0 < use.rows_matched == use.rows and use.caption_columns
    logger.log(logging.INFO if whole else logging.WARNING, "%s", use.in_words())
    for note in use.notes:
        logger.warning("%s: %s", use.table, note)


def _is_one_mesh(group: Sequence[tuple[int, SourceItem]]) -> bool:
    """Return whether rows with the same id are of one mesh, by place or content; rows without a file are too."""
    places = {}
    for _, item in group:
        if item.place is not None:
            places[(item.place.path.resolve(), item.place.offset)] = item.place
        elif _file_of(item.row):
            return False
    if len(places) < 2:
        return True
    try:
        return len({_hash_of_place(place) for place in places.values()}) == 1
    except OSError:
        return False


def _file_of(row: dict[str, str]) -> str:
    return next((row[column] for column in FILE_COLUMNS if row.get(column, "").strip()), "")


def input_table(source_format: str, folder: Path) -> Path | None:
    """Return the table that a format reads, or None where it reads none."""
    if source_format == "pack":
        return None
    if source_format in _ABSOLUTE:
        folder = folder.absolute()
    if source_format == "trellis500k":
        start = _object_paths(folder)
        folders = dict.fromkeys([*_upwards(start.parent if start else folder), *_upwards(folder)])
        tables = [f / name for f in folders for name in (METADATA, METADATA + ".gz")]
        return next((table for table in tables if table.is_file()), None)
    return find_table(folder)


def _upwards(folder: Path) -> list[Path]:
    return [folder, *list(folder.parents)[:2]]


# -- the original's formats --------------------------------------------------------------------------------------


def _trellis(folder: Path) -> Iterator[tuple[str, SourceItem]]:
    """Yield objects of TRELLIS-500K's layouts, with the column that says where they lie.

    ObjaverseXL has `object-paths.json`; HSSD and the like have paths as identifiers; what TRELLIS's own tools have
    downloaded is at `local_path`.
    """
    table = input_table("trellis500k", folder)
    if table is None:
        raise ValueError(f"there is no {METADATA} in {folder} or up to two folders above it")
    paths_file = _object_paths(folder)
    paths = None if paths_file is None else _read_object_paths(paths_file)
    bases = [base for root in dict.fromkeys((folder, table.parent)) for base in (root, root / _RAW)]
    for row in read_table(table, (ID, _IDENTIFIER)):
        if row.get(_LOCAL, "").strip():
            item = _located(row, bases, row[_LOCAL], _LOCAL)
            if item.place is not None:
                yield _LOCAL, item
                continue
        identifier = row[_IDENTIFIER]
        if paths is None or paths_file is None:
            yield _IDENTIFIER, _located(row, bases, identifier, _IDENTIFIER)
            continue
        key = identifier.rstrip("/").rpartition("/")[2]  # the last part of a Sketchfab address
        if key in paths:
            yield _IDENTIFIER, _located(row, [paths_file.parent], paths[key], paths_file.name)
        else:
            error = f"{paths_file.name} has no path of {identifier[:200]!r}"
            yield _IDENTIFIER, SourceItem(row=row, place=None, error=error)


def _object_paths(folder: Path) -> Path | None:
    """Return the `object-paths.json` of a folder, or of the download below it."""
    names = (_OBJECT_PATHS, _OBJECT_PATHS + ".gz")
    return next((f for root in (folder, folder / _OBJAVERSE) for n in names if (f := root / n).is_file()), None)


def _read_object_paths(path: Path) -> dict[str, str]:
    paths = read_packed_json(path, "table of paths")
    if not isinstance(paths, dict) or not all(isinstance(value, str) for value in paths.values()):
        raise ValueError(f"{path} must be a JSON object of id: relative path")
    return paths


def _custom(folder: Path) -> Iterator[tuple[str, SourceItem]]:
    for row in read_table(find_table(folder) or folder / METADATA):
        column = next((column for column in ("glb_file", *FILE_COLUMNS) if column in row), None)
        if column is None:
            raise ValueError(f"{folder / METADATA} has no column 'glb_file'; it has {list(row)}")
        yield column, _located(row, [folder], row[column], column)


def _located(row: dict[str, str], bases: Sequence[Path], name: str, column: str) -> SourceItem:
    """Return the item of a row whose mesh lies at a path relative to one of some folders."""
    if not name.strip() or "\0" in name:
        return SourceItem(row=row, place=None, error=f"its {column} is empty or has a null byte")
    error = f"its {column} {name[:200]!r} does not exist"
    for written in dict.fromkeys((name, name.strip().replace("\\", "/"))):  # as Windows writes it
        relative = PurePath(written)
        inside = next((base for base in bases if relative.is_absolute() and relative.is_relative_to(base)), None)
        if inside is not None:
            relative = relative.relative_to(inside)
        if relative.is_absolute() or ".." in relative.parts:
            error = f"its {column} {name[:200]!r} leads out of the dataset's folder"
            continue
        for base in bases:
            if _is_file(base / relative):
                return SourceItem(row=row, place=MeshPlace(path=base / relative, name=str(relative)))
    return SourceItem(row=row, place=None, error=error)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system refuses
        return False


# -- contents ----------------------------------------------------------------------------------------------------


class _Contents:
    """The contents of files: their hashes, read when they are asked for, and which files are the same."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files
        self._hashes: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        """Why a file can't be read."""
        self._of_size: dict[int, list[str]] = {}
        for name, file in files.items():
            self._of_size.setdefault(self._size(file), []).append(name)

    def hash_of(self, name: str) -> str:
        """Return the SHA-256 of a file; empty where it can't be read."""
        if name not in self._hashes:
            try:
                self._hashes[name] = sha256_of(self._files[name])
            except OSError as error:
                self._hashes[name], self.errors[name] = "", str(error.strerror)
        return self._hashes[name]

    def same_as(self, name: str) -> list[str]:
        """Return the files of the same content, in their order; files of other sizes are not read for it."""
        own = self.hash_of(name)
        alike = self._of_size.get(self._size(self._files[name]), [])
        return [other for other in alike if other == name or (own and self.hash_of(other) == own)]

    @staticmethod
    def _size(file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError:
            return -1


def _hash_of_place(place: MeshPlace) -> str:
    """Return the SHA-256 of a mesh. Raises an OSError if it can't be read."""
    return sha256_of(place.path) if place.offset is None else sha256_of(place.path, place.offset, place.size)


# -- packs -------------------------------------------------------------------------------------------------------


def pack_items(folder: Path) -> Iterator[SourceItem]:
    """Yield the meshes of a pack, a line each; their ids are the hashes of their streams, which may be the same."""
    pack = MeshPack(folder)
    for entry in pack.entries:
        place = MeshPlace(path=pack.blob, name=entry.id, offset=entry.offset, size=entry.size)
        yield SourceItem(row=_pack_row(entry, _hash_of_place(place)), place=place)


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
