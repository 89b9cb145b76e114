"""The objects of a folder of meshes, each once and with what tables say of it, whichever of four formats it has.

An object is a row, however many rows its table has for it: it gets the captions of all. A row that names no usable
mesh stays, with the reason, and so do rows of an id that stands for several meshes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

from sdf_vqvae.data import FORMATS
from sdf_vqvae.data.captions import CAPTIONS, captions_cell, captions_of_row
from sdf_vqvae.data.field_file import SAFE_ID
from sdf_vqvae.data.folder_table import MatchedTable, Row, TableUse, captions_columns, match_table
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.object_rows import merged, several_files
from sdf_vqvae.data.objects import StoredObject, by_content, mesh_objects, pack_objects
from sdf_vqvae.data.original_formats import custom_objects, trellis_objects, trellis_table
from sdf_vqvae.data.tables import (
    FILE_COLUMNS,
    ID_COLUMN,
    NAME_COLUMNS,
    TABLES,
    UP_COLUMN,
    find_table,
    warn_of_other_tables,
)
from sdf_vqvae.geometry.mesh import READABLE
from sdf_vqvae.utils.files import sha256_of

logger = logging.getLogger(__name__)

_ABSOLUTE = ("trellis500k", "custom")
"""Formats whose tables may hold absolute paths or lie above the folder."""
_MOST_NOTES = 5
_OF_A_FILE = (ID_COLUMN, *FILE_COLUMNS, *NAME_COLUMNS)
"""Columns in which rows of files that are the same may differ without another word."""


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

    def __iter__(self) -> Iterator[StoredObject]:
        """Yield the objects."""
        if self._format == "pack":
            items: Iterable[StoredObject] = self._gathered(self._pack())
        elif self._format == "folder":
            items = self._files()
        else:
            items = self._gathered(self._rows_of_table())
        for item in items:
            if not self._is_chosen(item):
                continue
            error, place = item.error, item.place
            if not error and not SAFE_ID.fullmatch(item.id):
                error = f"its id {item.id[:80]!r} is not a plain name (letters, digits, '.', '_', '-')"
            if place is not None and not error:
                try:
                    place = place.standing(self._up, item.row.get(UP_COLUMN, ""))
                    place = replace(place, path=place.path.absolute())  # workers may run elsewhere
                except ValueError as wrong:
                    error = str(wrong)
            row = {**item.row, CAPTIONS: captions_cell(captions_of_row(item.row))}
            yield replace(item, row=row, place=None if error else place, error=error)

    def _note(self, repeated: str) -> None:
        self.repeated.append(repeated)
        if len(self.repeated) <= _MOST_NOTES:
            logger.warning("%s", repeated)
        elif len(self.repeated) == _MOST_NOTES + 1:
            logger.warning("there are more such objects: `repeated` in the summary has them all")

    def _is_chosen(self, item: StoredObject) -> bool:
        return self._split is None or item.split == self._split

    # -- rows of one object ---------------------------------------------------------------------------------------

    def _gathered(self, items: Iterable[StoredObject]) -> Iterator[StoredObject]:
        """Yield an item for each id where its rows are of one mesh, and all rows of the other ids."""
        groups: dict[str, list[tuple[int, StoredObject]]] = {}
        for number, item in enumerate(items, 1):
            groups.setdefault(item.id, []).append((number, item))
        for name, group in groups.items():
            if len(group) == 1 or not name:
                yield from (item for _, item in group)
                continue
            placed = [item.place for _, item in group if item.place is not None]
            if not placed:
                yield from (item for _, item in group)
            elif _is_one_mesh(group):
                row = self._merged(name, [(number, item.row) for number, item in group])
                yield replace(group[0][1], row=row, place=placed[0], error="")
            else:
                files = [(number, item.place.name if item.place else _file_of(item.row)) for number, item in group]
                reason = several_files(name, [(number, file) for number, file in files if file])
                yield from (replace(item, place=None, error=reason) for _, item in group)

    def _merged(
        self, name: str, rows: Sequence[tuple[int, Mapping[str, str]]], may_differ: Collection[str] = ()
    ) -> dict[str, str]:
        row, differing = merged([row for _, row in rows])
        if differing := [column for column in differing if column not in may_differ]:
            numbers = ", ".join(str(number) for number, _ in rows)
            self._note(f"{name}: rows {numbers} differ in {', '.join(differing)}: the first value counts")
        return row

    # -- packs and the original's formats -------------------------------------------------------------------------

    def _pack(self) -> Iterator[StoredObject]:
        """Yield the meshes of a pack by the hashes of their streams; those of other splits are none of these."""
        for item in pack_objects(MeshPack(self._folder)):
            if self._is_chosen(item):
                yield by_content(item)

    def _rows_of_table(self) -> Iterator[StoredObject]:
        """Yield a row of the table at a time, with the place of its mesh, and note what was understood."""
        read = {"trellis500k": trellis_objects, "custom": custom_objects}[self._format]
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

    def _files(self) -> Iterator[StoredObject]:
        """Yield the mesh files of a folder and those below; their ids are the hashes of their contents.

        A table in the folder says more about them (see `match_table`). Files of the same content are one object.
        """
        files = {item.id: item for item in mesh_objects(self._folder)}
        if not files:
            raise ValueError(f"{self._folder} holds no mesh file ({', '.join(READABLE)})")
        contents = _Contents({name: item.there.path for name, item in files.items()})
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
        if table is not None and (matched := _matched(table, list(files), contents)) is not None:
            rows, strays, self.table = dict(matched.rows), matched.strays, matched.use
            _say(matched.use)
        done: set[str] = set()
        for name in files:
            if name in done:
                continue
            same = contents.same_as(name)
            done |= set(same)
            digest = contents.hash_of(name)
            if not digest:
                about, _ = merged([row for _, row in rows.get(name, ())])
                error = f"it cannot be read: {contents.errors[name]}"
                yield StoredObject(id="", row={**about, "file": name, ID_COLUMN: ""}, place=None, error=error)
                continue
            if len(same) > 1:
                self._note(f"{', '.join(same)}: the same mesh, and one object with the words of all")
            of_all = sorted((row for file in same for row in rows.get(file, ())), key=itemgetter(0))
            about = self._merged(name, of_all, _OF_A_FILE)
            row = {**files[name].row, **about, "file": name, ID_COLUMN: digest}
            yield replace(files[name], id=digest, row=row)
        for (_, row), reason in strays:
            yield StoredObject(id="", row={**row, "file": _file_of(row), ID_COLUMN: ""}, place=None, error=reason)


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
    unread = []
    for parent in sorted(folders | {""}):
        for name in sorted(os.listdir(folder / parent)):
            path = f"{parent}/{name}" if parent else name
            stem, _, ending = path.rpartition(".")
            if (parent and name in TABLES) or (ending == "txt" and stem in without_ending):
                unread.append(path)
    return unread


def _say(use: TableUse) -> None:
    """Say what was understood of a table."""
    whole = 0 < use.rows_matched == use.rows and use.caption_columns
    logger.log(logging.INFO if whole else logging.WARNING, "%s", use.in_words())
    for note in use.notes:
        logger.warning("%s: %s", use.table, note)


def _is_one_mesh(group: Sequence[tuple[int, StoredObject]]) -> bool:
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
        return len({place.content_hash() for place in places.values()}) == 1
    except OSError:
        return False


def _file_of(row: Mapping[str, str]) -> str:
    return next((row[column] for column in FILE_COLUMNS if row.get(column, "").strip()), "")


def input_table(source_format: str, folder: Path) -> Path | None:
    """Return the table that a format reads, or None where it reads none."""
    if source_format == "pack":
        return None
    if source_format in _ABSOLUTE:
        folder = folder.absolute()
    return trellis_table(folder) if source_format == "trellis500k" else find_table(folder)


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
        digest = self.hash_of(name)
        alike = self._of_size.get(self._size(self._files[name]), [])
        return [other for other in alike if other == name or (digest and self.hash_of(other) == digest)]

    @staticmethod
    def _size(file: Path) -> int:
        try:
            return file.stat().st_size
        except OSError:
            return -1
