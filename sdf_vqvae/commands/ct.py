"""The program `ct` (`dataset_toolkits/process_m3d_seg_format.py`): scans with labels to a dataset of organs."""

from __future__ import annotations

import argparse
import functools
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdf_vqvae.commands.options import add_up_option
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.geometry.formats.writing import WRITABLE
from sdf_vqvae.geometry.up import AUTO, UP_IN_SCANS, up_of
from sdf_vqvae.geometry.volume import MAX_ANISOTROPY
from sdf_vqvae.geometry.voxelizer.voxelize import MAX_RESOLUTION
from sdf_vqvae.model.checkpoint import shipped_config
from sdf_vqvae.preprocessing.ct.cases import names_of
from sdf_vqvae.preprocessing.ct.layouts import M3D, CaseFiles, CaseSet, find_case_sets, pair_case
from sdf_vqvae.preprocessing.ct.masks import LabelNames
from sdf_vqvae.preprocessing.ct.names import check_chosen, chosen_labels
from sdf_vqvae.preprocessing.ct.organs import OrganSettings
from sdf_vqvae.preprocessing.ct.processing import (
    ORGANS,
    Settings,
    finished,
    make_case_worker,
    remove_leftovers,
    write_tables,
)
from sdf_vqvae.preprocessing.ct.windows import MAX_SIDE
from sdf_vqvae.utils.files import only_writer
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.programs import USER_ERROR, positive_int
from sdf_vqvae.utils.progress import follow

ABOUT = """\
CT scans with labels to masks, windows, and organs as a dataset of distance fields.

Reads the M3D-Seg layout, NIfTI folders (`imagesTr` and `labelsTr`, or a folder a case) and pairs of NIfTI files. A
folder of several datasets becomes a folder of as many outputs. With `--compute_sdf` the folder `organs/` of an
output is a dataset that `SDF3DCaptionDataset` reads. A run that was cut off goes on with the same command. The exit
code is 0 if every case was done whole, 3 if some failed or lack an image or a label, and 2 if none could be done.
`docs/ct.md` has the layouts and the outputs."""
EXAMPLES = """\
  python dataset_toolkits/process_m3d_seg_format.py --data_root M3D_Seg/0000 --output_dir out \\
      --use_mask --compute_sdf
  vae-qwen3vl ct --image ct.nii.gz --label organs.nii.gz --output_dir out \\
      --use_mask --compute_sdf --sdf_resolution 128 --organs liver,spleen"""
logger = logging.getLogger(__name__)
INCOMPLETE = 3
"""Exit code where some cases were done and others failed, or lack their image or label."""
_FEW = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    source = parser.add_argument_group("input")
    source.add_argument(
        "--data_root", type=Path, metavar="DIR", help="a dataset, or several (docs/ct.md has the layouts)"
    )
    source.add_argument("--image", type=Path, metavar="FILE", help="one CT, .nii or .nii.gz")
    source.add_argument(
        "--label", type=Path, metavar="FILE", help="its labels, .nii or .nii.gz, or a folder of one an organ"
    )
    source.add_argument(
        "--organ_labels", type=Path, metavar="JSON", help="names of the labels (default: found beside)"
    )
    source.add_argument(
        "--spacing", type=_spacing, metavar="X,Y,Z", help="millimetres between voxels; M3D-Seg records none"
    )
    add_up_option(source, f"{UP_IN_SCANS.axis}, {UP_IN_SCANS.known_from}")
    source.add_argument("--organs", type=_names, default=(), metavar="A,B", help="only these labels, by name")
    source.add_argument("--max_cases", type=positive_int, metavar="N", help="only the first N cases")
    source.add_argument("--assume_hu", action="store_true", help="take intensities as Hounsfield units unseen")
    made = parser.add_argument_group("output")
    made.add_argument("--output_dir", type=Path, metavar="DIR", required=True)
    made.add_argument(
        "--default_resolution",
        type=_side,
        default=512,
        metavar="R",
        help="side of the padded arrays; scans that don't fit get 1024 (default: %(default)s)",
    )
    made.add_argument("--use_mask", action="store_true", help="masks of the labels instead of image and windows")
    made.add_argument("--compute_sdf", action="store_true", help="also fields and meshes, and the dataset organs/")
    made.add_argument(
        "--sdf_resolution",
        type=_side,
        default=512,
        metavar="R",
        help="of the fields (default: 512; the shipped tokenizer reads 256)",
    )
    made.add_argument(
        "--sdf_threshold_factor", type=_band, default=3.0, metavar="T", help="half width in voxels (default: 3)"
    )
    made.add_argument("--replace_npy", action="store_true", help="leave out the dense array of what has a field")
    made.add_argument(
        "--mesh_format", choices=("none", *(s[1:] for s in WRITABLE)), default="ply", help="default: ply"
    )
    run = parser.add_argument_group("run")
    run.add_argument("--num_workers", type=positive_int, default=4, metavar="N", help="processes (default: 4)")
    run.add_argument("--device", default="cpu", help="where fields are computed: cpu (default), cuda, cuda:1")
    run.add_argument("--no_skip", action="store_true", help="process finished cases again")
    run.add_argument("--verbose", action="store_true", help="log what the libraries do")


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What a run made of one dataset."""

    name: str
    settings: Settings
    records: Sequence[dict[str, Any]]
    """Of the cases that are done, now or earlier."""
    failed: Mapping[str, str]
    """Case -> reason."""
    unpaired: Mapping[str, str]
    """Case -> what it lacks."""


def work(options: argparse.Namespace) -> int:
    """Process the cases and print a summary; 2 if none could be used, 3 if some failed or lack a part."""
    settings = settings_of(options)
    sets = _case_sets(options)
    if settings.organ_names:
        check_chosen(settings.organ_names, _label_names(sets))
    outcomes = [
        _work_on(one, whole, replace(settings, output=settings.output / one.folder), options)
        for one, whole in zip(_first_cases(sets, options.max_cases), sets, strict=False)
    ]
    for outcome in outcomes:
        if len(outcomes) > 1:
            print(f"-- {outcome.name}")
        _print_summary(outcome)
    if not any(outcome.records for outcome in outcomes):
        return USER_ERROR
    return INCOMPLETE if any(outcome.failed or outcome.unpaired for outcome in outcomes) else 0


def _work_on(cases: CaseSet, whole: CaseSet, settings: Settings, options: argparse.Namespace) -> _Outcome:
    """Process the chosen cases of a dataset and write its tables."""
    logger.info("%s: %d cases", cases.name, len(cases.cases))
    for note in cases.notes:
        logger.warning("%s: %s", cases.name, note)
    if any(case.source == M3D and case.spacing is None for case in cases.cases):
        logger.warning(
            "the M3D-Seg layout records no spacing: voxels of 1 mm are assumed; --spacing X,Y,Z sets others"
        )
    chosen = {case.case_id for case in cases.cases}
    lacking = whole.unpaired(with_windows=not settings.use_mask)
    # A label given by itself was meant so.
    unpaired = {case: lacking[case] for case in sorted(chosen & lacking.keys()) if options.data_root is not None}
    for case, reason in unpaired.items():
        logger.warning("%s: %s", case, reason)
    settings.output.mkdir(parents=True, exist_ok=True)
    with only_writer(settings.output):
        remove_leftovers(settings.output)
        failed = process(
            cases.cases, settings, workers=options.num_workers, device=options.device, skip=not options.no_skip
        )
        records = write_tables(settings, failed, cases.name, cases.cases[0].source, unpaired)
    return _Outcome(
        name=cases.name,
        settings=settings,
        records=[r for r in records if r["row"]["case_id"] in chosen],
        failed=failed,
        unpaired=unpaired,
    )


def process(
    cases: Sequence[CaseFiles], settings: Settings, *, workers: int = 1, device: str = "cpu", skip: bool = True
) -> dict[str, str]:
    """Process cases, and return case id -> reason for those that failed; tables are the caller's business.

    Args:
        cases: see `find_cases`.
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


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings that the options give."""
    if options.replace_npy and not options.compute_sdf:
        raise ValueError("--replace_npy replaces arrays by fields: it needs --compute_sdf")
    if options.up == AUTO:
        raise ValueError(f"--up {AUTO}: organs stand as their scan does; give an axis")
    return Settings(
        output=options.output_dir,
        default_resolution=options.default_resolution,
        use_mask=options.use_mask,
        compute_sdf=options.compute_sdf,
        replace_npy=options.replace_npy,
        assume_hu=options.assume_hu,
        organ_names=options.organs,
        organ=OrganSettings(
            resolution=options.sdf_resolution,
            band=options.sdf_threshold_factor,
            mesh_suffix="" if options.mesh_format == "none" else f".{options.mesh_format}",
            up=up_of("", options.up) if options.up else UP_IN_SCANS,
        ),
    )


def _case_sets(options: argparse.Namespace) -> list[CaseSet]:
    if options.data_root is None:
        if options.spacing is not None:
            raise ValueError("--spacing is for the M3D-Seg layout; NIfTI files bring their own")
        case = pair_case(options.image, options.label, options.organ_labels)
        return [CaseSet(name=case.case_id, folder="", cases=(case,))]
    if options.image is not None or options.label is not None:
        raise ValueError("give --data_root, or --image and --label, not both")
    return find_case_sets(options.data_root, options.spacing, options.organ_labels)


def _first_cases(sets: Sequence[CaseSet], most: int | None) -> list[CaseSet]:
    """Return the datasets with the first so many cases of all."""
    chosen: list[CaseSet] = []
    for one in sets:
        kept = one.cases if most is None else one.cases[: max(0, most - sum(len(c.cases) for c in chosen))]
        if kept:
            chosen.append(replace(one, cases=kept))
    return chosen


def _label_names(sets: Sequence[CaseSet]) -> list[LabelNames]:
    """Return the names of labels of all datasets. A file that is damaged is left to the cases that need it.

    Raises:
        ValueError: all are damaged.
    """
    found: dict[Any, LabelNames] = {}
    damage: dict[Any, ValueError] = {}
    for case in (case for one in sets for case in one.cases):
        key = (case.names, case.organ_files)
        if key in found or key in damage:
            continue
        try:
            found[key] = names_of(case)
        except ValueError as error:
            damage[key] = error
    if not found:
        raise next(iter(damage.values()))
    return list(found.values())


# -- the summary -------------------------------------------------------------------------------------------------


def _print_summary(outcome: _Outcome) -> None:
    """Print what there is now: cases, windows, organs and what a training run can use of them."""
    records, settings = outcome.records, outcome.settings
    organs = [organ for record in records for organ in record["organs"]]
    failed = {case: reason for case, reason in outcome.failed.items() if case not in outcome.unpaired}
    print(
        f"cases: {len(records)} done, {len(failed)} failed"
        + f", {len(outcome.unpaired)} unpaired" * bool(outcome.unpaired)
    )
    _print_some([f"{case}: {reason}" for case, reason in failed.items()])
    _print_some(
        [
            f"{case}: {reason}" + (f"; {outcome.failed[case]}" if case in outcome.failed else "")
            for case, reason in outcome.unpaired.items()
        ]
    )
    _print_notes(records)
    refused = [r["row"] for r in records if r["row"]["windows_error"]]
    if refused:
        print(
            f"without windows: {len(refused)} (for instance {refused[0]['case_id']}: {refused[0]['windows_error']})"
        )
    print(f"organs: {len(organs)} in {sum(bool(r['organs']) for r in records)} cases")
    for name in _without_organ(settings.organ_names, organs):
        print(f"  no case has a voxel of {name}")
    if settings.compute_sdf:
        _print_samples(organs, settings)
    print(f"tables: {settings.output / 'metadata.csv'}")


def _print_some(lines: Sequence[str]) -> None:
    for line in lines[:_FEW]:
        print(f"  {line}")
    if len(lines) > _FEW:
        print(f"  and {len(lines) - _FEW} more")


def _print_notes(records: Sequence[dict[str, Any]]) -> None:
    """Print, and log, what is to be known of how cases were read, each note once with the cases that it is about."""
    notes: dict[str, list[str]] = {}
    for record in records:
        for note in json.loads(record["row"]["notes"]):
            notes.setdefault(note, []).append(record["row"]["case_id"])
    lines = [f"{', '.join(c[:3])}{f' and {len(c) - 3} more' if len(c) > 3 else ''}: {n}" for n, c in notes.items()]
    for line in lines:
        logger.warning("%s", line)
    if lines:
        print("to know:")
        _print_some(lines)


def _without_organ(wanted: Sequence[str], organs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the wanted names that no organ has."""
    present = dict(enumerate(dict.fromkeys(organ["name"] for organ in organs)))
    return chosen_labels(wanted, present)[1]  # type: ignore[arg-type]


def _print_samples(organs: Sequence[dict[str, Any]], settings: Settings) -> None:
    made = [organ for organ in organs if not organ["error"]]
    folder = settings.output / ORGANS
    nameless = len([organ for organ in made if not organ["named"]])
    print(
        f"up: {settings.organ.up.axis} ({settings.organ.up.known_from}): fields stand along +y, meshes lie as scanned"
    )
    without = f" ({nameless} more have no name, and so no caption: --organ_labels gives names)" if nameless else ""
    print(f"trainable samples: {len(made) - nameless} in {folder}{without}")
    for reason, count in Counter(f"{o['name']}: {o['error']}" for o in organs if o["error"]).most_common(_FEW):
        print(f"  no field of {reason}" + (f" ({count} times)" if count > 1 else ""))
    own, read = settings.organ.field, VAEConfig.from_json(shipped_config()).field
    if made and own != read:
        print(
            f"  the shipped tokenizer reads fields of {read.resolution}^3 and band {read.band:g}, these have "
            f"{own.resolution}^3 and {own.band:g}: make them with --sdf_resolution {read.resolution} "
            f"--sdf_threshold_factor {read.band:g}, or `vae-qwen3vl convert {folder} -o {folder}_r{read.resolution}`"
        )


def _side(text: str) -> int:
    value = int(text)
    if not 8 <= value <= min(MAX_RESOLUTION, MAX_SIDE):
        raise argparse.ArgumentTypeError(f"{value} does not lie in 8..{min(MAX_RESOLUTION, MAX_SIDE)}")
    return value


def _band(text: str) -> float:
    value = float(text)
    if not 0 < value <= MAX_RESOLUTION:
        raise argparse.ArgumentTypeError(f"{text} is no number of voxels above 0")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} holds no name")
    return names


def _spacing(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1.5,1.5,3") from error
    if not (min(x, y, z) > 0 and max(x, y, z) < min(1e4, MAX_ANISOTROPY * min(x, y, z))):
        raise argparse.ArgumentTypeError(f"{text!r} holds a spacing that no scan has")
    return x, y, z
