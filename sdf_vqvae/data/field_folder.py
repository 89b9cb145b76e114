"""A dataset of field files: a folder with `metadata.csv` and `{sha256}_r{R}.npz`, of which some objects can be used.

Knows the columns of the table that concern fields (`sha256`, `sdf_computed`, `r{R}_num_points`) and keeps all others.
Captions are for the language branch.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sdf_vqvae.data.field_file import SAFE_ID, field_file_name, grid_sides, id_in_file_name
from sdf_vqvae.data.object_rows import OneRowAnObject
from sdf_vqvae.data.tables import (
    FILE_COLUMNS,
    ID_COLUMN,
    NAME_COLUMNS,
    find_table,
    read_table,
    warn_of_other_tables,
)
from sdf_vqvae.fields.sparse_sdf import SparseSDF

logger = logging.getLogger(__name__)


class FieldFolder:
    """The objects of a dataset folder that have a field file at a resolution.

    With a `metadata.csv`, its rows in their order; without, all files `{id}_r{R}.npz` in the order of their names.

    Args:
        folder: the dataset.
        resolution: grid side R in the file names.
        min_points: least number of voxels (the table's `r{R}_num_points`), as in the original's configs.
        max_points: most voxels. Larger objects are left out whole: thinning them, as the original does, makes holes.
        resampled: objects without a file of R count with one of twice R, or of half of it, which tokenizers read as
            well (see `as_read`).

    Raises:
        ValueError: no such folder, a table without the column `sha256`, or no object is left.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resolution: int = 512,
        *,
        min_points: int = 0,
        max_points: int | None = None,
        resampled: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.resolution = resolution
        self._sides = (resolution, 2 * resolution, resolution // 2) if resampled else (resolution,)
        if not self.folder.is_dir():
            raise ValueError(f"the dataset folder {self.folder} does not exist")
        self.rows: list[dict[str, str]] = []
        gathered = read_field_table(self.folder)
        if gathered is None:
            gathered = OneRowAnObject(
                rows=[{ID_COLUMN: n} for n, sides in self._resolutions.items() if sides.intersection(self._sides)]
            )
        self._table, self._contradicting = gathered.rows, tuple(gathered.contradicting)
        self.left_out = dict(gathered.contradicting)
        """Id -> why its row is not among `rows`."""
        for row in self._table:
            reason = self._reason_against(row, min_points, max_points)
            if reason is None:
                self.rows.append(row)
            else:
                self.left_out[row[ID_COLUMN]] = reason
        if not self.rows:
            some = "; ".join(f"{name}: {why}" for name, why in list(self.left_out.items())[:2])
            raise ValueError(
                f"{self.folder} holds no usable field of {resolution}^3"
                + (self._other_grids() or (f" ({some})" if some else ""))
            )
        log_left_out(self.left_out, len(self.left_out) + len(self.rows), self.folder)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> SparseSDF:
        """Read one field. Raises a ValueError if its file is damaged."""
        return SparseSDF.load(self.path(self.rows[number][ID_COLUMN]))

    def path(self, name: str) -> Path:
        """Return the file of an object by its id."""
        return self.folder / field_file_name(name, self.side(name))

    def side(self, name: str) -> int:
        """Return the grid side of the file of an object: R, unless it has another alone that is taken as well."""
        there = self._resolutions.get(name, ())
        return next((side for side in self._sides if side in there), self.resolution)

    def table(self) -> Iterator[dict[str, str]]:
        """Yield a row of each object, usable or not; an id that stands for several has a row without words."""
        yield from self._table
        yield from ({ID_COLUMN: name} for name in self._contradicting)

    def _reason_against(self, row: dict[str, str], min_points: int, max_points: int | None) -> str | None:
        """Return why a row can't be used, or None."""
        name = row[ID_COLUMN]
        if not SAFE_ID.fullmatch(name):
            return "its id is not a plain name"
        if row.get("sdf_computed", "True").strip().lower() not in ("true", "1", "1.0"):
            return "sdf_computed is not True"
        column = f"r{self.side(name)}_num_points"
        points = row.get(column)
        if points is not None:
            try:
                count = float(points or "nan")
            except ValueError:
                return f"{column} is {points!r}"
            if not count >= min_points:
                return f"it has {points or 'no'} voxels, fewer than {min_points}"
            if max_points is not None and count > max_points:
                return f"it has {points} voxels, more than {max_points}"
        if not self.path(name).is_file():
            others = " and ".join(f"{r}^3" for r in sorted(self._resolutions.get(name, ())))
            return f"its field is of {others}, not of {self.resolution}^3" if others else "its file does not exist"
        return None

    @functools.cached_property
    def _resolutions(self) -> dict[str, set[int]]:
        """Id -> grid sides of the files that are there."""
        return grid_sides(self.folder)

    def _other_grids(self) -> str:
        """Return what to do where there are no files, or all are of other grid sides; empty where neither is so."""
        sides = {side for of_object in self._resolutions.values() for side in of_object}
        if not self._resolutions and not self.left_out:
            return ": make some with `vae-qwen3vl voxelize` (meshes) or `vae-qwen3vl ct` (scans), or give other data"
        if not sides or self.resolution in sides:
            return ""
        others = " and ".join(f"{side}^3" for side in sorted(sides))
        return (
            f": its fields are of {others}. Make them with --sdf_resolution {self.resolution} (CT scans) or "
            f"--resolutions {self.resolution} (meshes), or convert them with "
            f"`vae-qwen3vl convert {self.folder} -o OUT` (--vae_config for a VAE that is not the shipped one)"
        )


def read_field_table(folder: Path) -> OneRowAnObject | None:
    """Read the table of a dataset of fields, a row an object; None where it has none.

    Raises:
        ValueError: the table can't be read, or no column of it names field files.
    """
    table = find_table(folder)
    if table is None:
        return None
    warn_of_other_tables(folder)
    rows = list(read_table(table, ()))
    column = _id_column(rows, table)
    if column != ID_COLUMN:
        rows = [{ID_COLUMN: _id_in(row[column]), **row} for row in rows]
    return OneRowAnObject.of(rows, table)


def _id_column(rows: Sequence[Mapping[str, str]], table: Path) -> str:
    """Return the column that names the objects: `sha256`, or where there is none the one that fits most files."""
    columns = list(rows[0]) if rows else []
    if ID_COLUMN in columns or not rows:
        return ID_COLUMN
    there = grid_sides(table.parent)
    fits = {
        column: sum(_id_in(row[column]) in there for row in rows)
        for column in (*NAME_COLUMNS, *FILE_COLUMNS)
        if column in columns
    }
    best = max(fits, key=lambda column: fits[column], default="")
    if not best or not fits[best]:
        raise ValueError(
            f"{table} has no column {ID_COLUMN!r}, and no other that names field files; it has {columns}"
        )
    logger.info("%s: objects by %s; %d of %d rows have a field", table.name, best, fits[best], len(rows))
    return best


def _id_in(cell: str) -> str:
    """Return the id that a cell names, alone or as a field file."""
    return id_in_file_name(cell.strip().replace("\\", "/").rpartition("/")[2])


def log_left_out(left_out: Mapping[str, str], among: int, where: object) -> None:
    """Say how many objects are left out, and why: a line for each reason, with one of them."""
    counted: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        counted.setdefault(plain_reason(reason), []).append(name)
    for names in sorted(counted.values(), key=len, reverse=True):
        first = f"{'e.g. ' if len(names) > 1 else ''}{names[0]}: {left_out[names[0]]}"
        logger.warning("%s: %d of %d objects left out, %s", where, len(names), among, first)


def plain_reason(reason: str) -> str:
    """Return a reason without names and numbers, which is the same for all objects that have it."""
    return re.sub(r"\d[\d,.]*", "#", re.sub(r"'[^']*'", "…", reason))
