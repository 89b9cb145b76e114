"""Which rows of a folder's table are about which of its files, and what of the table was understood.

A row is never given to a file that it may not mean: what fits two files, or two rows that mean different files, is
said and left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sdf_vqvae.data.captions import CAPTION_COLUMNS, PARTS, columns_called
from sdf_vqvae.data.file_names import FileNames, same_path
from sdf_vqvae.data.object_rows import is_content_hash
from sdf_vqvae.data.tables import FILE_COLUMNS, ID_COLUMN, NAME_COLUMNS, Table, load_table, nearest_names

_NAMES = (ID_COLUMN, *NAME_COLUMNS)
_BY_HASH = f"{ID_COLUMN} (contents)"
_SHOWN = 5
Row = tuple[int, dict[str, str]]
"""A row's number in the table, and its cells."""


@dataclass(kw_only=True)
class TableUse:
    """What was understood of a dataset's table."""

    table: str
    header: bool = True
    file_columns: list[str] = field(default_factory=list)
    """Columns that say which object a row is about, as far as they did."""
    caption_columns: list[str] = field(default_factory=list)
    rows: int = 0
    rows_matched: int = 0
    files: int = 0
    files_matched: int = 0
    notes: list[str] = field(default_factory=list)
    """What else there is to know: rows that fit nothing, that contradict each other, that are of the same object."""

    def in_words(self) -> str:
        """Return one line."""
        files = " and ".join(self.file_columns) or "no column"
        words = f"captions by {', '.join(self.caption_columns)}" if self.caption_columns else "no column of captions"
        return (
            f"{self.table}{'' if self.header else ' (no header)'}: files by {files}, {words}; "
            f"{self.rows_matched:,} of {self.rows:,} rows are about {self.files_matched:,} of {self.files:,} files"
        )


@dataclass(frozen=True, kw_only=True)
class MatchedTable:
    """The rows of a table by the files that they are about."""

    rows: Mapping[str, Sequence[Row]]
    """File -> its rows."""
    strays: Sequence[tuple[Row, str]]
    """Rows that name a file which is not there or not clear, and why."""
    use: TableUse


def match_table(path: Path, names: Sequence[str], hash_of: Callable[[str], str]) -> MatchedTable:
    """Read a folder's table and find the file of each row.

    By the columns that hold paths (`FILE_COLUMNS`) where these fit any file; else by SHA-256, and by the column of
    names (`NAME_COLUMNS`) that fits the most files.

    Args:
        path: the table.
        names: of the mesh files, relative to their folder.
        hash_of: returns the SHA-256 of one of them.

    Raises:
        ValueError: the table can't be read, has no column that says which file a row is about, fits no file, or fits
            files in two different ways.
    """
    index = FileNames(names)
    table = load_table(path, lambda cell: bool(index.find(cell)))
    use = TableUse(table=path.name, header=table.header, rows=len(table.rows), files=len(names))
    use.caption_columns = captions_columns(table.columns)
    _check_columns(table, index)
    matched, strays = _match(table, index, names, hash_of, use)
    rows, contradicting = _by_file(matched)
    strays += contradicting
    use.rows_matched = sum(len(of_file) for of_file in rows.values())
    use.files_matched = len(rows)
    if table.rows and not rows:
        raise ValueError(_nothing_fits(table, names, strays))
    if not use.caption_columns:
        near = nearest_names(set(table.columns) - set(use.file_columns), CAPTION_COLUMNS)
        use.notes.append(f"no column of {list(table.columns)} holds captions (known: {_some(CAPTION_COLUMNS)}){near}")
    elsewhere = use.rows - use.rows_matched - len(strays)
    if elsewhere:
        use.notes.append(f"{elsewhere:,} of {use.rows:,} rows are about files that are not there")
    for reason in [reason for _, reason in strays][:_SHOWN]:
        use.notes.append(reason)
    return MatchedTable(rows=rows, strays=strays, use=use)


def captions_columns(columns: Iterable[str]) -> list[str]:
    """Return which columns hold captions, the first one that has any counting for a row."""
    there = list(columns)
    return [column for name in (*CAPTION_COLUMNS, *PARTS) for column in columns_called(name, there)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names)


def _check_columns(table: Table, index: FileNames) -> None:
    if any(column in (*FILE_COLUMNS, *_NAMES) for column in table.columns):
        return
    hint = nearest_names(table.columns, (*FILE_COLUMNS, *_NAMES, *CAPTION_COLUMNS))
    if index.find(table.columns[0]):
        hint = "; its first line names a file: it needs a header, and quotes round text with separators in it"
    raise ValueError(
        f"{table.path} has the columns {list(table.columns)}, none of which says which file a row is about; known: "
        f"{_some(FILE_COLUMNS)} for paths, {_some(_NAMES)} for names"
        f"{hint}"
    )


def _nothing_fits(table: Table, names: Sequence[str], strays: Sequence[tuple[Row, str]]) -> str:
    keys = [column for column in (*FILE_COLUMNS, *_NAMES) if column in table.columns]
    _, row = table.rows[0]
    first = ", ".join(f"{column} {row[column][:80]!r}" for column in keys)
    why = strays[0][1] if strays else f"the first row has {first}"
    return (
        f"{table.path}: none of its {len(table.rows):,} rows is about a file that is there, by its columns "
        f"{_some(keys)}: {why}; files are called {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
    )


# -- rows and files -----------------------------------------------------------------------------------------------

_Match = tuple[Row, str, str]
"""A row, what it calls its file (nothing if it is known by its hash), and the file."""


def _match(
    table: Table, index: FileNames, names: Sequence[str], hash_of: Callable[[str], str], use: TableUse
) -> tuple[list[_Match], list[tuple[Row, str]]]:
    matched: list[_Match] = []
    strays: list[tuple[Row, str]] = []
    paths = [c for c in FILE_COLUMNS if c in table.columns and any(index.find(row[c]) for _, row in table.rows)]
    rest: list[Row] = []
    among = functools.lru_cache(maxsize=256)(lambda cell: frozenset(index.find(cell)))
    for number, row in table.rows:
        cells = [(column, row[column]) for column in paths if row[column].strip()]
        if not cells:
            rest.append((number, row))
            continue
        column, cell, files = _meant(cells, index, among)
        if len(files) == 1:
            matched.append(((number, row), cell, files[0]))
            use.file_columns += [] if column in use.file_columns else [column]
        elif files or not index.find(cell):
            strays.append(((number, row), _unclear(column, cell, files)))
        else:
            several = " and ".join(f"its {column} {cell!r}" for column, cell in cells if among(cell))
            strays.append(((number, row), f"{several} are different files (row {number})"))
    rest = _match_hashes(rest, names, hash_of, matched, use)
    column = _column_of_names(table, index, rest)
    if column:
        use.file_columns.append(column)
    for number, row in rest if column else ():
        files = index.find(row[column])
        if len(files) == 1:
            matched.append(((number, row), row[column], files[0]))
        elif files:
            strays.append(((number, row), _unclear(column, row[column], files)))
    return matched, strays


def _meant(
    cells: Sequence[tuple[str, str]], index: FileNames, among: Callable[[str], Collection[str]]
) -> tuple[str, str, Sequence[str]]:
    """Return the column and the cell that say most about which file a row is of, and the files that all cells mean.

    Cells that fit nothing are left out, unless the others only name folders: what is in one is not what isn't there.
    """
    files = [(column, cell) for column, cell in cells if index.find(cell, folders=False)]
    missing = next(((column, cell) for column, cell in cells if not among(cell)), None)
    if not files and missing is not None:
        return *missing, ()
    column, cell = min(files or cells, key=lambda pair: len(among(pair[1])))
    fitting = [names for _, other in cells if other != cell and (names := among(other))]
    return column, cell, [name for name in index.find(cell) if all(name in names for names in fitting)]


def _unclear(column: str, cell: str, files: Sequence[str]) -> str:
    if not files:
        return f"its {column} {cell[:200]!r} does not exist"
    return f"its {column} {cell[:200]!r} fits {len(files)} files: {', '.join(files[:3])}"


def _match_hashes(
    rows: list[Row], names: Sequence[str], hash_of: Callable[[str], str], matched: list[_Match], use: TableUse
) -> list[Row]:
    """Match rows by the contents of the files, and return the others."""
    wanted = {row[ID_COLUMN].strip().lower() for _, row in rows if ID_COLUMN in row}
    wanted = {name for name in wanted if is_content_hash(name)}
    if not wanted:
        return rows
    files: dict[str, str] = {}
    for name in names:
        files.setdefault(hash_of(name), name)
    rest = []
    for number, row in rows:
        file = files.get(row[ID_COLUMN].strip().lower())
        if file is None:
            rest.append((number, row))
        else:
            matched.append(((number, row), "", file))
    if len(rest) < len(rows):
        use.file_columns.append(_BY_HASH)
    return rest


def _column_of_names(table: Table, index: FileNames, rows: Sequence[Row]) -> str:
    """Return the column whose names fit the most rows, or nothing. Raises a ValueError where two fit differently."""
    fits: dict[str, dict[int, str]] = {}
    unclear: list[str] = []
    for column in _NAMES:
        if column in table.columns:
            fitting = [(number, index.find(row[column])) for number, row in rows if row[column].strip()]
            fits[column] = {number: files[0] for number, files in fitting if len(files) == 1}
            unclear += [column] if any(files for _, files in fitting) else []
    most = max(map(len, fits.values()), default=0)
    if not most:
        return unclear[0] if unclear else ""
    best = [column for column, rows_fit in fits.items() if len(rows_fit) == most]
    for other in best[1:]:
        if fits[other] != fits[best[0]]:
            raise ValueError(
                f"{table.path}: its columns {best[0]!r} and {other!r} both name {most} files, but not the same "
                "for each row: add a column 'file' that says which file a row is about"
            )
    return best[0]


def _by_file(matched: Sequence[_Match]) -> tuple[dict[str, list[Row]], list[tuple[Row, str]]]:
    """Return the rows of each file, and those that only seem to be of the same one."""
    groups: dict[str, list[_Match]] = {}
    for match in matched:
        groups.setdefault(match[2], []).append(match)
    rows: dict[str, list[Row]] = {}
    strays: list[tuple[Row, str]] = []
    for file, group in groups.items():
        called = [(row, given) for row, given, _ in group if given]
        if any(not same_path(called[0][1], given) for _, given in called):
            named = ", ".join(f"{given} (row {row[0]})" for row, given in called)
            strays += [(row, f"{named[:400]} are different files, but {file} is the only one") for row, _, _ in group]
        else:
            rows[file] = sorted((row for row, _, _ in group), key=lambda row: row[0])
    return rows, strays
