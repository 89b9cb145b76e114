r"""CT scans with labels to masks, windows, and organs as a dataset of distance fields.

    python dataset_toolkits/process_m3d_seg_format.py --data_root M3D_Seg/0000 --output_dir out \
        --use_mask --compute_sdf
    python dataset_toolkits/process_m3d_seg_format.py --image ct.nii.gz --label organs.nii.gz --output_dir out \
        --use_mask --compute_sdf --sdf_resolution 128 --organs liver,spleen

Reads the M3D-Seg layout, NIfTI folders (`imagesTr`, `labelsTr`) and pairs of NIfTI files. With `--compute_sdf` the
folder `organs/` of the output is a dataset that `SDF3DCaptionDataset` reads. A run that was cut off goes on with the
same command. `docs/ct.md` has the layouts and the outputs.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_toolkits.ct_cases import M3D, CaseFiles, find_cases, pair_case
from dataset_toolkits.ct_organs import OrganSettings
from dataset_toolkits.ct_processing import Settings, finished, make_case_worker, remove_leftovers, write_tables
from dataset_toolkits.ct_windows import MAX_SIDE
from sdf_vqvae.geometry.mesh_writing import WRITABLE
from sdf_vqvae.geometry.volume import MAX_ANISOTROPY
from sdf_vqvae.geometry.voxelize import MAX_RESOLUTION
from sdf_vqvae.jobs import run_jobs
from sdf_vqvae.programs import USER_ERROR, positive_int, run_program
from sdf_vqvae.progress import follow
from sdf_vqvae.runtime import only_writer

logger = logging.getLogger(__name__)
PROGRAM = "process_m3d_seg_format.py"


def make_parser(subparsers: Any = None) -> argparse.ArgumentParser:
    """Return the program's parser; with `subparsers`, it is added to those as `process-ct`."""
    texts: dict[str, Any] = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    if subparsers is None:
        parser = argparse.ArgumentParser(prog=PROGRAM, **texts)
    else:
        parser = subparsers.add_parser("process-ct", help="CT scans with labels to a dataset of organs", **texts)
    source = parser.add_argument_group("input")
    source.add_argument("--data_root", type=Path, metavar="DIR", help="M3D-Seg folder, or one with imagesTr/labelsTr")
    source.add_argument("--image", type=Path, metavar="FILE", help="one CT, .nii or .nii.gz")
    source.add_argument("--label", type=Path, metavar="FILE", help="its labels, .nii or .nii.gz")
    source.add_argument(
        "--organ_labels", type=Path, metavar="JSON", help="names of the labels (default: found beside)"
    )
    source.add_argument(
        "--spacing", type=_spacing, metavar="X,Y,Z", help="millimetres between voxels; M3D-Seg records none"
    )
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
    made.add_argument("--sdf_resolution", type=_side, default=512, metavar="R", help="of the fields (default: 512)")
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
    parser.set_defaults(work=work)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = make_parser().parse_args(argv)
    return run_program(PROGRAM, options.work, options)


def work(options: argparse.Namespace) -> int:
    """Process the cases and print a summary; 2 if there is none that could be used."""
    settings = settings_of(options)
    cases = _cases(options)
    logger.info("%d cases", len(cases))
    if any(case.source == M3D and case.spacing is None for case in cases):
        logger.warning(
            "the M3D-Seg layout records no spacing: voxels of 1 mm are assumed; --spacing X,Y,Z sets others"
        )
    name = options.data_root.resolve().name if options.data_root is not None else cases[0].case_id
    settings.output.mkdir(parents=True, exist_ok=True)
    with only_writer(settings.output):
        remove_leftovers(settings.output)
        failed = process(
            cases, settings, workers=options.num_workers, device=options.device, skip=not options.no_skip
        )
        records = write_tables(settings, failed, name, cases[0].source)
    chosen = {case.case_id for case in cases}
    _print_summary([r for r in records if r["row"]["case_id"] in chosen], failed, settings)
    return 0 if len(failed) < len(cases) else USER_ERROR


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
        ),
    )


def _cases(options: argparse.Namespace) -> list[CaseFiles]:
    if options.data_root is None:
        if options.spacing is not None:
            raise ValueError("--spacing is for the M3D-Seg layout; NIfTI files bring their own")
        return [pair_case(options.image, options.label, options.organ_labels)]
    if options.image is not None or options.label is not None:
        raise ValueError("give --data_root, or --image and --label, not both")
    return find_cases(options.data_root, options.spacing, options.organ_labels)[: options.max_cases]


def _print_summary(records: Sequence[dict[str, Any]], failed: dict[str, str], settings: Settings) -> None:
    """Print what there is now: cases, windows, organs and what a training run can use of them."""
    organs = [organ for record in records for organ in record["organs"]]
    print(f"cases: {len(records)} done, {len(failed)} failed")
    for case, reason in list(failed.items())[:10]:
        print(f"  {case}: {reason}")
    refused = [r["row"] for r in records if r["row"]["windows_error"]]
    if refused:
        print(
            f"without windows: {len(refused)} (for instance {refused[0]['case_id']}: {refused[0]['windows_error']})"
        )
    print(f"organs: {len(organs)} in {sum(bool(r['organs']) for r in records)} cases")
    if settings.organ_names and not organs:
        print(f"  no case has a label called {', '.join(settings.organ_names)}")
    if settings.compute_sdf:
        bad = [o for o in organs if o["error"]]
        print(f"trainable samples: {len(organs) - len(bad)} in {settings.output / 'organs'}")
        for organ in bad[:10]:
            print(f"  no field of {json.dumps(organ['name'])}: {organ['error']}")
    print(f"tables: {settings.output / 'metadata.csv'}")


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
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _spacing(text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 1.5,1.5,3") from error
    if not (min(x, y, z) > 0 and max(x, y, z) < min(1e4, MAX_ANISOTROPY * min(x, y, z))):
        raise argparse.ArgumentTypeError(f"{text!r} holds a spacing that no scan has")
    return x, y, z


if __name__ == "__main__":
    raise SystemExit(main())
