"""Scans with labels to folders of masks, windows and organs: what `process_m3d_seg_format.py` does.

Which cases there are, those that an earlier run has finished, what became of the rest, and the tables over all of
them; a case itself is the business of `processing`.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdf_vqvae.data.tables import METADATA, write_table
from sdf_vqvae.preprocessing.ct.cases import names_of
from sdf_vqvae.preprocessing.ct.layouts import M3D, CaseFiles, CaseSet, find_case_sets, pair_case
from sdf_vqvae.preprocessing.ct.masks import LabelNames
from sdf_vqvae.preprocessing.ct.names import check_chosen
from sdf_vqvae.preprocessing.ct.processing import (
    ORGANS,
    PROCESSED,
    finished,
    make_case_worker,
    read_info,
    remove_leftovers,
)
from sdf_vqvae.preprocessing.ct.settings import ScanSettings, Settings
from sdf_vqvae.utils.files import only_writer, write_json
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.progress import follow

logger = logging.getLogger(__name__)

_COLUMNS = (
    "case_id", "original_shape", "adapted_shape", "resolution", "has_segmentation", "organs_present",
    "windows_processed", "file_size_mb", "processing_time_sec", "use_mask", "ct_path", "masks_path",
    "organ_labels_file", "source_format", "spacing", "spacing_known", "orientation_known", "hounsfield",
    "windows_error", "organs_absent", "organs_failed", "notes", "error",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run made of one dataset."""

    name: str
    settings: Settings
    records: Sequence[dict[str, Any]]
    """Of the cases that are done, now or earlier."""
    failed: Mapping[str, str]
    """Case -> reason."""
    unpaired: Mapping[str, str]
    """Case -> what it lacks."""


def process_scans(settings: ScanSettings) -> list[Outcome]:
    """Process the cases of all datasets, and write their tables.

    Raises:
        ValueError: there is no such case or organ, or options contradict each other.
        OSError: the disk is full, or another program is writing to the output.
    """
    case_sets = _case_sets(settings)
    if settings.organs:
        check_chosen(settings.organs, _label_names(case_sets))
    chosen_sets = _first_cases(case_sets, settings.max_cases)
    return [_process_set(chosen, whole, settings) for chosen, whole in zip(chosen_sets, case_sets, strict=False)]


def process(
    cases: Sequence[CaseFiles], settings: Settings, *, workers: int = 1, device: str = "cpu", skip: bool = True
) -> dict[str, str]:
    """Process cases, and return case id -> reason for those that failed; tables are the caller's business.

    Args:
        cases: see `find_case_sets`.
        settings: what to make.
        workers: processes.
        device: where fields are computed.
        skip: leave out what an earlier run with the same settings and files has finished.

    Raises:
        OSError: the disk is full.
    """
    waiting = [case for case in cases if not (skip and finished(case, settings))]
    if len(waiting) < len(cases):
        logger.info("%d of them were finished by an earlier run", len(cases) - len(waiting))
    failed: dict[str, str] = {}
    make_worker = functools.partial(make_case_worker, settings)
    done = run_jobs(make_worker, waiting, workers=max(1, min(workers, len(waiting))), devices=(device,))
    for item in follow(done, "cases", "case", total=len(waiting)):
        if item.error:
            case = waiting[item.number].case_id
            failed[case] = item.error
            logger.warning("%s: %s", case, item.error)
    return failed


def _process_set(chosen: CaseSet, whole: CaseSet, scans: ScanSettings) -> Outcome:
    """Process the chosen cases of a dataset and write its tables."""
    settings = scans.of_cases(chosen.folder)
    logger.info("%s: %d cases", chosen.name, len(chosen.cases))
    for note in chosen.notes:
        logger.warning("%s: %s", chosen.name, note)
    if any(case.source == M3D and case.spacing is None for case in chosen.cases):
        logger.warning(
            "the M3D-Seg layout records no spacing: voxels of 1 mm are assumed; --spacing X,Y,Z sets others"
        )
    names = {case.case_id for case in chosen.cases}
    lacking = whole.unpaired(with_windows=not settings.use_mask)
    # A label given by itself was meant so.
    unpaired = {case: lacking[case] for case in sorted(names & lacking.keys()) if scans.data_root is not None}
    for case, reason in unpaired.items():
        logger.warning("%s: %s", case, reason)
    settings.output.mkdir(parents=True, exist_ok=True)
    with only_writer(settings.output):
        remove_leftovers(settings.output)
        failed = process(
            chosen.cases, settings, workers=scans.num_workers, device=scans.device, skip=not scans.no_skip
        )
        records = _write_tables(settings, failed, chosen.name, chosen.cases[0].source, unpaired)
    return Outcome(
        name=chosen.name,
        settings=settings,
        records=[record for record in records if record["row"]["case_id"] in names],
        failed=failed,
        unpaired=unpaired,
    )


def _case_sets(settings: ScanSettings) -> list[CaseSet]:
    if settings.data_root is None:
        if settings.spacing is not None:
            raise ValueError("--spacing is for the M3D-Seg layout; NIfTI files bring their own")
        case = pair_case(settings.image, settings.label, settings.organ_labels)
        return [CaseSet(name=case.case_id, folder="", cases=(case,))]
    if settings.image is not None or settings.label is not None:
        raise ValueError("give --data_root, or --image and --label, not both")
    return find_case_sets(settings.data_root, settings.spacing, settings.organ_labels)


def _first_cases(case_sets: Sequence[CaseSet], most: int | None) -> list[CaseSet]:
    """Return the datasets with the first so many cases of all."""
    chosen: list[CaseSet] = []
    for case_set in case_sets:
        left = None if most is None else max(0, most - sum(len(earlier.cases) for earlier in chosen))
        if case_set.cases[:left]:
            chosen.append(replace(case_set, cases=case_set.cases[:left]))
    return chosen


def _label_names(case_sets: Sequence[CaseSet]) -> list[LabelNames]:
    """Return the names of labels of all datasets. A file that is damaged is left to the cases that need it.

    Raises:
        ValueError: all are damaged.
    """
    names: dict[Any, LabelNames] = {}
    damage: dict[Any, ValueError] = {}
    for case in (case for case_set in case_sets for case in case_set.cases):
        key = (case.names, case.organ_files)
        if key in names or key in damage:
            continue
        try:
            names[key] = names_of(case)
        except ValueError as error:
            damage[key] = error
    if not names:
        raise next(iter(damage.values()))
    return list(names.values())


def _write_tables(
    settings: Settings,
    failed: Mapping[str, str],
    dataset_name: str,
    source_format: str,
    unpaired: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Write all tables from the finished cases' records, and return those.

    Args:
        settings: where to, and what was made.
        failed: case -> why it has no record.
        dataset_name: for `dataset_config.json`.
        source_format: likewise.
        unpaired: case -> what it lacks, likewise.
    """
    processed = settings.output / PROCESSED
    folders = sorted(p for p in processed.iterdir() if not p.name.startswith(".")) if processed.is_dir() else []
    records = [r for p in folders if p.name not in failed and (r := read_info(p)) is not None]
    rows = [{**r["row"], "error": ""} for r in records]
    rows += [{"case_id": case, "error": reason} for case, reason in failed.items()]
    rows.sort(key=lambda row: row["case_id"])
    write_table(settings.output / METADATA, [{c: row.get(c, "") for c in _COLUMNS} for row in rows])
    organ_rows = [row for r in records for row in r["organ_rows"]]
    if organ_rows:
        write_table(settings.output / ORGANS / METADATA, organ_rows)
    failures = [{"case_id": case, "error": reason} for case, reason in failed.items()]
    write_json(settings.output / "failed_cases.json", failures, indent=1, ensure_ascii=False)
    write_json(
        settings.output / "dataset_config.json",
        {
            "dataset_name": dataset_name,
            "modality": "CT",
            "source_format": source_format,
            "num_cases": len(records),
            "num_organs": len(organ_rows),
            "unpaired": dict(unpaired),
            "default_resolution": settings.default_resolution,
            "sdf_resolution": settings.organ.resolution if settings.compute_sdf else None,
            "sdf_threshold_factor": settings.organ.band if settings.compute_sdf else None,
            "processing_date": time.strftime("%Y-%m-%d"),
        },
        indent=1,
        ensure_ascii=False,
    )
    return records
