"""Scans with labels to folders of masks, windows and organs: what `process_m3d_seg_format.py` does.

Which cases there are, those that an earlier run has finished, and what became of the rest; a case itself is the
business of `processing`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdf_vqvae.preprocessing.ct.cases import names_of
from sdf_vqvae.preprocessing.ct.layouts import M3D, CaseFiles, CaseSet, find_case_sets, pair_case
from sdf_vqvae.preprocessing.ct.masks import LabelNames
from sdf_vqvae.preprocessing.ct.names import check_chosen
from sdf_vqvae.preprocessing.ct.processing import finished, make_case_worker, remove_leftovers, write_tables
from sdf_vqvae.preprocessing.ct.settings import ScanSettings, Settings
from sdf_vqvae.utils.files import only_writer
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.progress import follow

logger = logging.getLogger(__name__)


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
        records = write_tables(settings, failed, chosen.name, chosen.cases[0].source, unpaired)
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
