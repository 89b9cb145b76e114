"""The table and the summary of a voxelized dataset.

`metadata.csv` has the input's columns, and for each resolution R `r{R}_num_points` and `r{R}_error`, then
`sdf_computed`, `sign_method`, `watertight`, `up`, `up_from` and `error`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdf_vqvae.data.captions import CAPTIONS
from sdf_vqvae.data.field_file import SAFE_ID, StoredField, field_file_name
from sdf_vqvae.data.field_folder import plain_reason
from sdf_vqvae.data.folder_table import TableUse
from sdf_vqvae.data.objects import StoredObject
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, UP_COLUMN, read_table, write_table

_OF_RESOLUTION = re.compile(r"r(\d{1,4})_(num_points|error)")
_OURS = ("sdf_computed", "sign_method", "watertight", "up_from", "error")
_SECONDS_BETWEEN_WRITES = 10.0
_SHARE_OF_WRITING = 0.02
"""Most of the run's time that rewriting the table may take."""
_MOST_REASONS = 20


@dataclass(kw_only=True)
class Outcome:
    """What became of one row so far."""

    item: StoredObject
    fields: dict[int, StoredField] = field(default_factory=dict)
    """By resolution."""
    errors: dict[int, str] = field(default_factory=dict)
    """By resolution."""
    error: str = ""
    """Why none of the missing fields could be made."""

    @property
    def reason(self) -> str:
        """Why the row has no mesh, or the mesh no field."""
        return self.item.error or self.error


class DatasetTable:
    """The `metadata.csv` of a run, rewritten now and then.

    Objects of an earlier run that this one doesn't name stay, before this one's. What an earlier run says of other
    resolutions stays too, where their files are there.

    Raises:
        ValueError: the earlier table is damaged.
    """

    def __init__(self, folder: Path, outcomes: list[Outcome], resolutions: tuple[int, ...]) -> None:
        self._path = folder / METADATA
        self._outcomes = outcomes
        self._resolutions = resolutions
        named = {outcome.item.id for outcome in outcomes}
        earlier = list(read_table(self._path)) if self._path.is_file() else []
        self._others = [row for row in earlier if row[ID_COLUMN] and row[ID_COLUMN] not in named]
        self._known: dict[str, dict[str, str]] = {}
        for row in earlier:
            if row[ID_COLUMN] in named and row[ID_COLUMN] not in self._known:
                self._known[row[ID_COLUMN]] = _of_other_resolutions(row, resolutions, folder)
        self._written = time.monotonic()
        self._cost = 0.0

    def rows(self) -> list[dict[str, str]]:
        """Return the rows of this run, in the order of the input."""
        return [self._row(outcome) for outcome in self._outcomes]

    def write(self) -> None:
        """Write the table."""
        start = time.monotonic()
        write_table(self._path, self._others + self.rows())
        self._written = time.monotonic()
        self._cost = self._written - start

    def write_if_due(self) -> None:
        """Write the table if some time has passed, so that a run that is killed leaves a useful one."""
        if time.monotonic() - self._written > max(_SECONDS_BETWEEN_WRITES, self._cost / _SHARE_OF_WRITING):
            self.write()

    @contextlib.contextmanager
    def written_at_the_end(self) -> Iterator[None]:
        """Write the table if the block is cut off by an error or by Ctrl-C; after it, the caller does."""
        whole = False
        try:
            yield
            whole = True
        finally:
            if not whole:
                with contextlib.suppress(OSError):  # the disk may be full
                    self.write()

    def _row(self, outcome: Outcome) -> dict[str, str]:
        given = outcome.item.row
        row = {key: text for key, text in given.items() if not _OF_RESOLUTION.fullmatch(key) and key not in _OURS}
        earlier = {} if outcome.item.error else self._known.get(outcome.item.id, {})
        fields = outcome.fields
        row["sdf_computed"] = str(bool(fields) or any(key.endswith("points") for key in earlier))
        row |= earlier
        for resolution in self._resolutions:
            stored = fields.get(resolution)
            row[f"r{resolution}_num_points"] = str(stored.voxels) if stored else ""
            row[f"r{resolution}_error"] = "" if stored else outcome.errors.get(resolution, outcome.reason)
        finest = fields[max(fields)] if fields else None
        row["sign_method"] = finest.sign_method if finest else ""
        row["watertight"] = str(finest.watertight) if finest else ""
        row[UP_COLUMN] = finest.up.axis if finest else given.get(UP_COLUMN, "")
        row["up_from"] = finest.up.known_from if finest else ""
        row["error"] = outcome.reason
        return row


def _of_other_resolutions(row: dict[str, str], resolutions: tuple[int, ...], folder: Path) -> dict[str, str]:
    """Return what an earlier row says of fields that are there and that this run doesn't make."""
    cells = {}
    for key, text in row.items():
        match = _OF_RESOLUTION.fullmatch(key)
        if not match or int(match[1]) in resolutions or not SAFE_ID.fullmatch(row[ID_COLUMN]):
            continue
        there = (folder / field_file_name(row[ID_COLUMN], int(match[1]))).is_file()
        if text and there == (match[2] == "num_points"):
            cells[key] = text
    return cells


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a run came to."""

    settings: dict[str, Any]
    finished: bool
    """False in the file while the run goes on, and after it was cut off."""
    rows: int
    """Rows of the input that were chosen."""
    left_out: int
    """Rows below the aesthetic score, which are in no table."""
    computed: int
    """Fields made in this run."""
    kept: int
    """Fields of earlier runs."""
    fields: dict[str, int]
    """By resolution: fields there are."""
    trainable: dict[str, int]
    """By resolution: rows with sdf_computed, points, captions, and their file there."""
    failures: dict[str, int]
    """Rows without a field by reason (names and numbers left out), most frequent first."""
    failed_rows: int
    sign_methods: dict[str, int]
    """Fields by the way their signs were found."""
    watertight: int
    """Objects whose mesh is closed."""
    up: dict[str, int]
    """Objects by the axis that points up and where that is known from (without how sure that is)."""
    voxels: int
    bytes: int
    """Of all fields."""
    seconds: float
    """Of this run, without looking for earlier files."""
    objects_per_second: float
    """Objects worked on in this run, a second."""
    table: TableUse | None
    """What was understood of the input's table, where there is one."""
    repeated: list[str]
    """Meshes of the input that are there more than once, and rows of one object that differ."""


def summarize(
    outcomes: list[Outcome],
    rows: list[dict[str, str]],
    folder: Path,
    *,
    settings: dict[str, Any],
    finished: bool,
    kept: int,
    left_out: int,
    table: TableUse | None = None,
    repeated: Sequence[str] = (),
    worked_on: int = 0,
    seconds: float = 0.0,
) -> Summary:
    """Count what a run came to."""
    resolutions = settings["resolutions"]
    fields = [stored for outcome in outcomes for stored in outcome.fields.values()]
    failed = [outcome for outcome in outcomes if outcome.reason or outcome.errors]
    return Summary(
        settings=settings,
        finished=finished,
        rows=len(outcomes),
        left_out=left_out,
        computed=len(fields) - kept,
        kept=kept,
        fields={str(r): sum(r in outcome.fields for outcome in outcomes) for r in resolutions},
        trainable={str(r): sum(_is_trainable(row, r, folder) for row in rows) for r in resolutions},
        failures=_reasons(failed),
        failed_rows=len(failed),
        sign_methods=dict(Counter(stored.sign_method for stored in fields).most_common()),
        watertight=sum(any(f.watertight for f in outcome.fields.values()) for outcome in outcomes),
        up=_ups(outcomes),
        voxels=sum(stored.voxels for stored in fields),
        bytes=sum(stored.size for stored in fields),
        seconds=round(seconds, 3),
        objects_per_second=round(worked_on / seconds, 3) if seconds else 0.0,
        table=table,
        repeated=list(repeated),
    )


def _ups(outcomes: list[Outcome]) -> dict[str, int]:
    stand = [outcome.fields[max(outcome.fields)].up for outcome in outcomes if outcome.fields]
    return dict(Counter(f"{up.axis} ({up.known_from.split(',')[0]})" for up in stand).most_common())


def _is_trainable(row: dict[str, str], resolution: int, folder: Path) -> bool:
    return (
        row["sdf_computed"] == "True"
        and bool(row[f"r{resolution}_num_points"])
        and bool(row[CAPTIONS])
        and (folder / field_file_name(row[ID_COLUMN], resolution)).is_file()
    )


def _reasons(failed: list[Outcome]) -> dict[str, int]:
    """Count the reasons of rows, alike but for names, paths and numbers."""
    counted: Counter[str] = Counter()
    for outcome in failed:
        reason = outcome.reason or next(iter(outcome.errors.values()))
        place = outcome.item.place
        for name in () if place is None else (str(place.path), place.name):
            reason = reason.replace(name, "…")
        counted[plain_reason(reason).removeprefix("…: ")] += 1
    most = dict(counted.most_common(_MOST_REASONS))
    rest = counted.total() - sum(most.values())
    return most | ({"other reasons": rest} if rest else {})
