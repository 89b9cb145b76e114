"""A dataset of meshes to a folder of distance fields with `metadata.csv`: what `sdf_voxelize.py` does.

Every field file is whole or absent. A run that was killed goes on with the same call: whole files are kept, and
their numbers are read from their headers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from sdf_vqvae.data.field_file import field_file_name, stored_field
from sdf_vqvae.data.mesh_sources import Source, input_table
from sdf_vqvae.data.objects import StoredObject
from sdf_vqvae.preprocessing.voxelize.job import VoxelizeJob, make_voxelizer
from sdf_vqvae.preprocessing.voxelize.settings import VoxelizeSettings
from sdf_vqvae.preprocessing.voxelize.table import DatasetTable, Outcome, Summary, summarize
from sdf_vqvae.utils.files import only_writer, remove_temporaries, write_json
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.progress import Progress, follow
from sdf_vqvae.utils.runtime import usable_cores

logger = logging.getLogger(__name__)

SUMMARY = "voxelize_summary.json"
_WORKERS_A_GPU = 4
"""Reading meshes and packing files takes a CPU longer than the kernels take a GPU."""


def voxelize_dataset(settings: VoxelizeSettings) -> Summary:
    """Voxelize a dataset and return what came of it, which `voxelize_summary.json` has too.

    Objects that can't be used are recorded with their reasons, and the rest goes on.

    Raises:
        ValueError: the input is missing or holds no row; the output holds fields of another description.
        OSError: the disk is full, or another program is writing to the output.
        ImportError: a library is missing.
    """
    if not settings.input_dir.is_dir():
        raise ValueError(f"--input_dir {settings.input_dir} does not exist, or is no folder")
    table = input_table(settings.source_format, settings.input_dir)
    output = settings.output_dir.absolute()
    if table is not None and table.resolve().parent == output.resolve():
        raise ValueError(f"--output_dir {settings.output_dir} holds the input's {table.name}: choose another folder")
    output.mkdir(parents=True, exist_ok=True)
    with only_writer(output):
        if removed := remove_temporaries(output):
            logger.info("%d temporary files of a run that was killed are removed", removed)
        _check_earlier_run(settings, output)
        source = Source(settings.source_format, settings.input_dir, split=settings.split, up=settings.up)
        outcomes, left_out = _read_outcomes(settings, source)
        kept = _find_existing(settings, outcomes, output)
        target = DatasetTable(output, outcomes, settings.resolutions)
        counts: dict[str, Any] = {"kept": kept, "left_out": left_out, "settings": _as_json(settings)}
        counts |= {"table": source.table, "repeated": source.repeated}
        # Before the run too, for what its files don't say if it is killed.
        _write_summary(output, summarize(outcomes, target.rows(), output, finished=False, **counts))
        start = time.monotonic()
        worked_on = _run(settings, outcomes, output, target)
        counts |= {"worked_on": worked_on, "seconds": time.monotonic() - start}
        target.write()
        summary = summarize(outcomes, target.rows(), output, finished=True, **counts)
        _write_summary(output, summary)
    return summary


def default_workers(devices: tuple[str, ...]) -> int:
    """Return how many processes make use of a machine: one a core, or a few for each GPU."""
    cores = usable_cores()
    return cores if devices == ("cpu",) else max(len(devices), min(cores, _WORKERS_A_GPU * len(devices)))


def _check_earlier_run(settings: VoxelizeSettings, output: Path) -> None:
    """Refuse to mix bands where the files don't record them. Raises a ValueError."""
    if settings.signed or not settings.skip_existing or not (output / SUMMARY).is_file():
        return
    try:
        settings_then = json.loads((output / SUMMARY).read_bytes())["settings"]
        signed, earlier = settings_then["signed"], settings_then["threshold_factor"]
    except (ValueError, LookupError, TypeError):
        return
    if not signed and earlier != settings.threshold_factor:
        raise ValueError(
            f"{output} holds fields of --threshold_factor {earlier}, not {settings.threshold_factor:g}: give that, "
            "another --output_dir, or --no_skip to replace them"
        )


def _read_outcomes(settings: VoxelizeSettings, source: Source) -> tuple[list[Outcome], int]:
    """Return the chosen rows, with nothing done yet, and how many the aesthetic score left out."""
    left_out = 0

    def chosen() -> Iterator[StoredObject]:
        nonlocal left_out
        for item in follow(source, "reading the input", leave=False):
            if settings.filter_aesthetic_score is None or _score(item) >= settings.filter_aesthetic_score:
                yield item
            else:
                left_out += 1

    outcomes = [Outcome(item=item) for item in islice(chosen(), settings.max_samples or None)]
    if not outcomes:
        raise ValueError(
            f"{settings.input_dir} has no object"
            + (f" of the split {settings.split!r}" if settings.split is not None else "")
            + (f"; --filter_aesthetic_score left {left_out:,} out" if left_out else "")
        )
    return outcomes, left_out


def _score(item: StoredObject) -> float:
    try:
        score = float(item.row.get("aesthetic_score") or "-inf")
    except ValueError:
        return -math.inf
    return -math.inf if math.isnan(score) else score


def _find_existing(settings: VoxelizeSettings, outcomes: list[Outcome], output: Path) -> int:
    """Fill in the fields that whole files hold, and return how many there are. Raises a ValueError."""
    if not settings.skip_existing:
        return 0
    present = {entry.name for entry in os.scandir(output)}
    kept = 0
    for outcome in follow(outcomes, "looking for files", leave=False):
        place = outcome.item.place
        if place is None:
            continue
        for resolution in settings.resolutions:
            name = field_file_name(outcome.item.id, resolution)
            if name not in present:
                continue
            try:
                stored = stored_field(output / name, settings.kind.stored(resolution), place.up)
            except ValueError as error:
                raise ValueError(
                    f"{error}: choose another --output_dir, or --no_skip to replace the files"
                ) from error
            if stored is not None:
                outcome.fields[resolution] = stored
                kept += 1
    return kept


def _run(settings: VoxelizeSettings, outcomes: list[Outcome], output: Path, target: DatasetTable) -> int:
    """Voxelize what is missing, and return of how many objects something was."""
    todo = []
    for outcome in outcomes:
        missing = tuple(r for r in settings.resolutions if r not in outcome.fields)
        if outcome.item.place and missing:
            job = VoxelizeJob(name=outcome.item.id, place=outcome.item.place, resolutions=missing)
            todo.append((outcome, job))
    if not todo:
        return 0
    workers = min(settings.workers, len(todo))
    devices = settings.devices[:workers]
    make = functools.partial(make_voxelizer, folder=output, kind=settings.kind)
    done = run_jobs(make, (job for _, job in todo), workers=workers, devices=devices, engine=settings.engine)
    failed = 0
    # What was done is in the table even if the run is cut off.
    with (
        contextlib.closing(done),
        target.written_at_the_end(),
        Progress(len(todo), "voxelize") as progress,
    ):
        for finished in done:
            outcome = todo[finished.number][0]
            outcome.error = finished.error
            if finished.result is not None:
                outcome.fields |= finished.result.fields
                outcome.errors |= finished.result.errors
            if outcome.error or outcome.errors:
                failed += 1
                progress.say(failed=failed)
            target.write_if_due()
            progress.update()
    return len(todo)


def _as_json(settings: VoxelizeSettings) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}


def _write_summary(output: Path, summary: Summary) -> None:
    write_json(output / SUMMARY, asdict(summary), indent=1, ensure_ascii=False)
