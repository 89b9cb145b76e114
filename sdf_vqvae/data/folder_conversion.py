"""The fields of a dataset, converted to another description, into a folder of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdf_vqvae.data.field_file import field_file_name, grid_sides, stored_field
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, write_table
from sdf_vqvae.fields.conversion import convert_field
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.progress import follow


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What converting a folder came to."""

    converted: int
    kept: int
    """Files that an earlier run had made."""
    failed: dict[str, str]
    """Id -> reason."""


def convert_file(source: Path, target: Path, field: FieldDescription) -> int:
    """Convert one field file and return the number of its voxels. Raises a ValueError with the reason."""
    converted = convert_field(SparseSDF.load(source), field)
    converted.save(target)
    return len(converted.sdf)


def convert_folder(
    source: Path, target: Path, field: FieldDescription, *, resolution: int | None = None, workers: int = 1
) -> Conversion:
    """Convert the fields of a dataset folder into another; a second run goes on where the first stopped.

    Writes `{id}_r{R}.npz` and a `metadata.csv` with the source's columns and `r{R}_num_points`, `r{R}_error`.
    An object that can't be converted is recorded with its reason, and the rest goes on.

    Args:
        source: dataset folder.
        target: where to; another folder, created where missing.
        field: description of the results.
        resolution: R in the names of the source's files; by default the one that all of them have.
        workers: processes.

    Raises:
        ValueError: the folders are the same, or the source has no field or fields of several resolutions.
    """
    if target.resolve() == source.resolve():
        raise ValueError(f"--output {target} is the source itself: give another folder")
    if not source.is_dir():
        raise ValueError(f"the dataset folder {source} does not exist")
    fields = FieldFolder(source, resolution or _only_resolution(source))
    target.mkdir(parents=True, exist_ok=True)
    points: dict[str, str] = {}
    failed = dict(fields.left_out)
    there = 0
    jobs = []
    for row in fields.rows:
        output = target / field_file_name(row[ID_COLUMN], field.resolution)
        stored = stored_field(output, field)
        if stored is None:
            jobs.append((row[ID_COLUMN], (fields.path(row[ID_COLUMN]), output)))
        else:
            there += 1
            points[row[ID_COLUMN]] = str(stored.voxels)
    done = run_jobs(functools.partial(_make_converter, field=field), (files for _, files in jobs), workers=workers)
    for outcome in follow(done, "convert", "field", total=len(jobs)):
        name = jobs[outcome.number][0]
        if outcome.error:
            failed[name] = outcome.error
        else:
            points[name] = str(outcome.result)
    rows = []
    for row in fields.table():
        name = row[ID_COLUMN]
        count = {f"r{field.resolution}_num_points": points.get(name, "")}
        rows.append({"sdf_computed": "True", **row, **count, f"r{field.resolution}_error": failed.get(name, "")})
    write_table(target / METADATA, rows)
    return Conversion(converted=len(points) - there, kept=there, failed=failed)


def _only_resolution(folder: Path) -> int:
    resolutions = {side for sides in grid_sides(folder).values() for side in sides}
    if len(resolutions) != 1:
        raise ValueError(
            f"{folder} holds field files of the resolutions {sorted(resolutions)}: choose one with --resolution"
            if resolutions
            else f"{folder} holds no field file (ID_rR.npz)"
        )
    return resolutions.pop()


def _make_converter(device: str, *, field: FieldDescription) -> Callable[[tuple[Path, Path]], int]:
    return functools.partial(_convert, field=field)


def _convert(files: tuple[Path, Path], field: FieldDescription) -> int:
    return convert_file(*files, field)
