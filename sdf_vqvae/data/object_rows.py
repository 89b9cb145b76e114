"""Several rows of one object become one: all its captions, and of every other column the first value.

Knows columns; which rows are of one object is said by their ids, or by their readers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sdf_vqvae.data.captions import CAPTION_COLUMNS, CAPTIONS, PARTS, captions_cell, captions_of_row, columns_called
from sdf_vqvae.data.file_names import same_path
from sdf_vqvae.data.tables import FILE_COLUMNS, ID_COLUMN

logger = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_LINES = 5


def is_content_hash(name: str) -> bool:
    """Return whether an id is a SHA-256: objects of the same one have the same content."""
    return _HASH.fullmatch(name) is not None


def merged(rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Return one row for several of the same object, and the columns in which they contradict each other.

    It has the captions of all rows in their order, each once, and of every other column the first value.
    """
    row_of_all: dict[str, str] = {}
    differing: list[str] = []
    captions = [text for row in rows for text in captions_of_row(row)]
    ours = {column for name in (*CAPTION_COLUMNS, *PARTS) for row in rows for column in columns_called(name, row)}
    for row in rows:
        for column, value in row.items():
            if not row_of_all.get(column):
                row_of_all[column] = value
            elif value and value != row_of_all[column] and column not in ours and column not in differing:
                differing.append(column)
    if captions:
        row_of_all[CAPTIONS] = captions_cell(captions)
    return row_of_all, differing


@dataclass(kw_only=True)
class OneRowAnObject:
    """The rows of a table whose ids are objects: one row for each, and the ids that stand for several."""

    rows: list[dict[str, str]] = field(default_factory=list)
    """In the order in which the ids come."""
    contradicting: dict[str, str] = field(default_factory=dict)
    """Id -> why it is not clear which object it is."""

    @classmethod
    def of(cls, table: Iterable[dict[str, str]], where: object) -> OneRowAnObject:
        """Gather the rows of a table.

        Rows of one id are of one object, unless they name different files and the id is no hash of contents. A row
        that says `sdf_computed` is false adds nothing to one that has a field.

        Args:
            table: rows with `sha256`.
            where: what messages call the table.
        """
        gathered = cls()
        notes = []
        groups: dict[str, list[tuple[int, dict[str, str]]]] = {}
        for number, row in enumerate(table, 1):
            groups.setdefault(row[ID_COLUMN], []).append((number, row))
        for name, group in groups.items():
            if len(group) == 1 or not name:
                gathered.rows += [row for _, row in group]
                continue
            used = [numbered for numbered in group if not _is_false(numbered[1])] or group
            reason = "" if is_content_hash(name) else _contradiction(name, used)
            if reason:
                gathered.contradicting[name] = reason
                continue
            row, differing = merged([row for _, row in used])
            gathered.rows.append(row)
            notes += [f"{name}: rows {_numbers(used)} differ in {', '.join(differing)}"] if differing else []
        more = sum(len(group) - 1 for name, group in groups.items() if name)
        if more:
            logger.info("%s: %d rows repeat an object's id: one row an object, with the captions of all", where, more)
        for note in notes[:_MOST_LINES]:
            logger.warning("%s: %s: the first value counts", where, note)
        if len(notes) > _MOST_LINES:
            logger.warning("%s: %d more objects have rows that differ", where, len(notes) - _MOST_LINES)
        for reason in list(gathered.contradicting.values())[:_MOST_LINES]:
            logger.warning("%s: %s", where, reason)
        return gathered


def _is_false(row: Mapping[str, str]) -> bool:
    return row.get("sdf_computed", "").strip().lower() in ("false", "0", "0.0")


def _numbers(group: Sequence[tuple[int, object]]) -> str:
    return ", ".join(str(number) for number, _ in group)


def _contradiction(name: str, group: Sequence[tuple[int, Mapping[str, str]]]) -> str:
    """Return why rows of one id are not of one object, or nothing."""
    for column in FILE_COLUMNS:
        named = [(number, row[column]) for number, row in group if row.get(column)]
        if any(not same_path(named[0][1], path) for _, path in named):
            return several_files(name, named)
    return ""


def several_files(name: str, named: Iterable[tuple[int, str]]) -> str:
    """Return what is said of an id that stands for several files, given as (row, file)."""
    files = ", ".join(f"{file} (row {number})" for number, file in named)
    return f"its id {name[:80]!r} stands for different files: {files[:400]}"
