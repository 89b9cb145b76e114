"""Tables of objects, whoever wrote them: `metadata.csv` and what else people call and write them.

Knows encodings, separators, headers and JSON; which row belongs to which file or object is its readers' business.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import gzip
import io
import itertools
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from sdf_vqvae.data.captions import CAPTION_COLUMNS, PARTS, plain_name
from sdf_vqvae.utils.files import atomic_path, regular_file
from sdf_vqvae.utils.strict_files import parse_json

logger = logging.getLogger(__name__)

METADATA = "metadata.csv"
ID_COLUMN = "sha256"
"""The column of objects' ids."""
UP_COLUMN = "up"
"""The column that says which axis of an object's source points up."""
FILE_COLUMNS = (
    "file", "file_name", "filename", "file_path", "filepath", "glb_file", "mesh_file", "mesh_path", "model_path",
    "local_path", "path", "file_identifier",
)  # fmt: skip
"""Columns that may hold an object's file."""
NAME_COLUMNS = ("id", "uid", "uuid", "object_id", "object_uid", "model_id", "modelid", "name", "file_id")
"""Columns that may hold what an object's file is called, without its folder and its ending."""
_OTHERS = ("split", "source", "category", "aesthetic_score", "sdf_computed", UP_COLUMN, "image_dir_path", "view_keys")
KNOWN_COLUMNS = frozenset((ID_COLUMN, *FILE_COLUMNS, *NAME_COLUMNS, *CAPTION_COLUMNS, *PARTS, *_OTHERS))
"""Names of columns that mean something to us; they are found in capitals and with spaces round them too."""
TABLES = tuple(
    stem + ending + packed
    for stem in ("metadata", "captions")
    for ending in (".csv", ".tsv", ".jsonl", ".json")
    for packed in ("", ".gz")
)
"""Names of the tables that are read beside files; the first one that is there counts."""
_TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".xls", ".ods", ".parquet", ".csv.gz", ".tsv.gz")
_SEPARATORS = (",", ";", "\t", "|")
_OF_EXCEL = re.compile(r'"?sep=.?"?\s*', re.IGNORECASE)
_LONGEST_CELL = 2**24  # characters; captions of the original's table exceed the csv module's default
_MOST_TIMES = 200
"""A packed JSON file unpacks to at most so many times its bytes; tables of paths and captions to ten times."""
_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it was written."""

    path: Path
    columns: tuple[str, ...]
    rows: list[tuple[int, dict[str, str]]]
    """Number, 1 for the first row after the header, and cells by column; rows of empty cells are left out."""
    header: bool = True
    """False where the first line is a row already."""


def find_table(folder: Path) -> Path | None:
    """Return the table of a folder of files, or None."""
    return next((folder / name for name in TABLES if (folder / name).is_file()), None)


def warn_of_other_tables(folder: Path) -> None:
    """Name in a warning what looks like a table of a folder, but is not the one that is read."""
    there = [name for name in TABLES if (folder / name).is_file()]
    unread = there[1:]
    if not there:
        unread = sorted(file.name for file in folder.iterdir() if file.name.lower().endswith(_TABLE_ENDINGS))
    if unread:
        read = f"{there[0]} is" if there else f"a table is called {METADATA} (or {', '.join(TABLES[1:6])} ...)"
        logger.warning("%s: %s not read: %s", folder, ", ".join(unread[:5]), read)


def read_table(path: Path, needed: tuple[str, ...] = (ID_COLUMN,)) -> Iterator[dict[str, str]]:
    """Yield the rows of a table that has a header.

    Raises:
        ValueError: the file is not readable, lacks a needed column, or a row has more cells than the header.
    """
    for _, row in _rows(path, needed, headless=None)[1]:
        yield row


def load_table(path: Path, names_a_file: Callable[[str], bool]) -> Table:
    """Read a whole table, which may have no header.

    Args:
        path: the table.
        names_a_file: whether a cell names one of the files that the table may be about. A table of two columns
            without a header is known by it, and is taken for ids with captions.

    Raises:
        ValueError: the file is not readable, or a row has more cells than the header.
    """
    columns, rows, header = _rows(path, (), headless=names_a_file)
    return Table(path=path, columns=columns, rows=list(rows), header=header)


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as `metadata.csv`, with every column that one of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_packed_json(path: Path, what: str) -> Any:
    """Return what a JSON file holds, packed (`.gz`) or not. Raises a ValueError for anything else, or a key twice."""
    file = regular_file(path, what)
    try:
        with _opened(file) as stream:
            most = _MOST_TIMES * file.stat().st_size + 2**20
            content = stream.read(most + 1)
        if len(content) > most:
            raise ValueError(f"it unpacks to more than {_MOST_TIMES} times its size")
        return parse_json(content.decode(_encoding(content[:1024])), unique_keys=True)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def nearest_names(columns: Iterable[str], known: Sequence[str]) -> str:
    """Return a hint for columns that are nearly called as known ones, or nothing."""
    unknown = [column for column in columns if plain_name(column) not in known]
    near = {c: close[0] for c in unknown if (close := difflib.get_close_matches(plain_name(c), known, 1, 0.7))}
    return "; did you mean " + ", ".join(f"{name!r} for {c!r}" for c, name in near.items()) + "?" if near else ""


# -- any file -----------------------------------------------------------------------------------------------------

_Numbered = Iterator[tuple[int, dict[str, str]]]


def _rows(
    path: Path, needed: tuple[str, ...], headless: Callable[[str], bool] | None
) -> tuple[tuple[str, ...], _Numbered, bool]:
    """Return the columns of a table, its rows, and whether it has a header."""
    file = regular_file(path, "table")
    name = file.name.lower().removesuffix(".gz")
    if not name.endswith((".json", ".jsonl")):
        return _separated(file, needed, headless, ("\t",) if name.endswith(".tsv") else _SEPARATORS)
    records = list(_json_rows(file) if name.endswith(".json") else _json_lines(file))
    columns = tuple(dict.fromkeys(column for _, row in records for column in row))
    _check_needed(file, needed, columns)
    return columns, ((number, dict.fromkeys(columns, "") | row) for number, row in records), True


def _check_needed(path: Path, needed: tuple[str, ...], columns: Sequence[str]) -> None:
    for name in needed:
        if name not in columns:
            raise ValueError(f"{path} has no column {name!r}; it has {list(columns)}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its bytes, unpacked."""
    with path.open("rb") as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield io.BufferedReader(unpacked)
        else:
            yield raw


def _encoding(start: bytes) -> str:
    """Return the encoding of a file by its first bytes. Raises a ValueError where nothing says which one it is."""
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return name
    if b"\0" in start:
        raise UnicodeError("it has null bytes; if it is UTF-16, save it as UTF-8, or with a byte order mark")
    return "utf-8"


@contextlib.contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    """Open a table for its text; errors of reading become a ValueError that names the table."""
    previous = csv.field_size_limit(_LONGEST_CELL)
    try:
        with _opened(path) as stream:
            encoding = _encoding(stream.read(1024))
        with _opened(path) as stream:
            yield io.TextIOWrapper(stream, encoding=encoding, newline="")
    except UnicodeDecodeError as error:
        byte = error.object[error.start : error.start + 1]
        where = error.object[max(0, error.start - 20) : error.start + 20].decode("cp1252", "replace")
        raise ValueError(
            f"{path} is not UTF-8: the byte 0x{byte.hex()} in {' '.join(where.split())!r} (read here as "
            "Windows-1252, which may be its encoding); save it as UTF-8"
        ) from error
    except (csv.Error, UnicodeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable table: {error}") from error
    finally:
        csv.field_size_limit(previous)


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield lines that have an end, but not the one by which Excel knows the separator."""
    first = True
    while line := stream.readline(_LONGEST_CELL):
        if len(line) >= _LONGEST_CELL:
            raise csv.Error(f"a line is longer than {_LONGEST_CELL:,} characters")
        if not (first and _OF_EXCEL.fullmatch(line)):
            yield line
        first = False


# -- separated cells ----------------------------------------------------------------------------------------------


def _separated(
    path: Path,
    needed: tuple[str, ...],
    headless: Callable[[str], bool] | None,
    separators: Sequence[str],
) -> tuple[tuple[str, ...], _Numbered, bool]:
    firsts: dict[str, list[str]] = {}
    errors: list[ValueError] = []
    for candidate in separators:
        try:
            firsts[candidate] = _first_record(path, candidate)
        except ValueError as error:  # quotes round cells make no sense where another character separates them
            errors.append(error)
    if not firsts:
        raise errors[0]
    if not any(firsts.values()):
        raise ValueError(f"{path} is empty")
    separator = _separator(path, firsts, needed)
    columns, header = _names(path, firsts[separator]), True
    if headless is not None and not any(plain_name(column) in KNOWN_COLUMNS for column in columns):
        for other, cells in firsts.items():
            if len(cells) == 2 and _is_headless(path, other, cells, headless):
                separator, columns, header = other, ("id", "caption"), False
                break
    _check_needed(path, needed, columns)
    return columns, _cells(path, separator, columns, needed, header), header


def _first_record(path: Path, separator: str) -> list[str]:
    with _text(path) as stream:
        return next((cells for cells in _reader(stream, separator) if any(map(str.strip, cells))), [])


def _reader(stream: TextIO, separator: str) -> Any:
    return csv.reader(_lines(stream), delimiter=separator, strict=True, skipinitialspace=separator != "\t")


def _separator(path: Path, firsts: dict[str, list[str]], needed: tuple[str, ...]) -> str:
    """Return what separates the cells: that which makes known names of the first line, or else most cells."""

    def known(separator: str) -> int:
        names = {plain_name(cell) for cell in firsts[separator]}
        return len(names & (KNOWN_COLUMNS | set(needed)))

    most = max(map(known, firsts))
    best = [separator for separator in firsts if known(separator) == most]
    if most and any(firsts[separator] != firsts[best[0]] for separator in best):
        readings = " or ".join(f"{' | '.join(firsts[separator])} (by {separator!r})" for separator in best)
        raise ValueError(f"{path}: its first line is {readings}: separate the cells by commas alone")
    return max(best, key=lambda separator: len(firsts[separator]))


def _names(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns, each once; known ones without capitals and spaces."""
    names: list[str] = []
    for cell in cells:
        name = plain_name(cell) if plain_name(cell) in KNOWN_COLUMNS else cell.strip("\ufeff \t")
        if name in names:
            number = next(n for n in itertools.count(2) if f"{name}_{n}" not in names)
            logger.warning("%s has the column %r more than once: one is called %r", path, name, f"{name}_{number}")
            name = f"{name}_{number}"
        names.append(name)
    return tuple(names)


def _is_headless(path: Path, separator: str, first: list[str], names_a_file: Callable[[str], bool]) -> bool:
    """Return whether the first line is a row: its first cell names a file, or it has text and a later one does."""
    if names_a_file(first[0]):
        return True
    if len(first[1].split()) < 3:
        return False
    with _text(path) as stream:
        return any(cells and names_a_file(cells[0]) for cells in _reader(stream, separator))


def _cells(
    path: Path, separator: str, columns: tuple[str, ...], needed: tuple[str, ...], header: bool
) -> Iterator[tuple[int, dict[str, str]]]:
    with _text(path) as stream:
        reader = _reader(stream, separator)
        skip, number = header, 0
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue
            if skip:
                skip = False
                continue
            if any(map(str.strip, cells[len(columns) :])):
                raise ValueError(
                    f"{path}, line {reader.line_num}: the row does not fit the header, it has {len(cells)} cells for "
                    f"{len(columns)} columns (text with {separator!r} in it stands in double quotes)"
                )
            row = dict(itertools.zip_longest(columns, cells[: len(columns)], fillvalue=""))
            if any(columns.index(name) >= len(cells) for name in needed):
                raise ValueError(f"{path}, line {reader.line_num}: the row does not fit the header")
            number += 1
            yield number, row


# -- JSON ---------------------------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with _text(path) as stream:
        number = 0
        for line_number, line in enumerate(_lines(stream), 1):
            if not line.strip():
                continue
            number += 1
            try:
                row = _json_row(parse_json(line, unique_keys=True))
            except ValueError as error:
                raise ValueError(f"{path}, line {line_number}: {error}") from error
            yield number, row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the records of a list, or of a mapping from objects' names to records or captions."""
    records = read_packed_json(path, "table")
    if isinstance(records, Mapping):
        records = [{"id": n, **v} if isinstance(v, Mapping) else {"id": n, "captions": v} for n, v in records.items()]
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold a list of records, or a mapping from names to captions")
    for number, record in enumerate(records, 1):
        try:
            yield number, _json_row(record)
        except ValueError as error:
            raise ValueError(f"{path}, record {number}: {error}") from error


def _json_row(record: Any) -> dict[str, str]:
    if not isinstance(record, Mapping):
        raise ValueError("a row must be a JSON object of column: value")
    names = _names(Path("a record"), list(record))
    return {name: _json_cell(value) for name, value in zip(names, record.values(), strict=True)}


def _json_cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
