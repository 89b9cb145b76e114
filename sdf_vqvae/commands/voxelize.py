"""The program `voxelize` (`dataset_toolkits/sdf_voxelize.py`): meshes to a dataset of fields."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sdf_vqvae.commands.options import add_up_option
from sdf_vqvae.data import FORMATS
from sdf_vqvae.preprocessing.voxelize.settings import DEFAULT_BAND, VoxelizeSettings
from sdf_vqvae.utils.jobs import ENGINES
from sdf_vqvae.utils.programs import USER_ERROR, add_run_options, devices_of, positive_int, print_json

if TYPE_CHECKING:
    from sdf_vqvae.preprocessing.voxelize.table import Summary

ABOUT = """\
Meshes with captions to a dataset of sparse signed distance fields, ready for `SDF3DCaptionDataset`.

Writes `{sha256}_r{R}.npz` for each object and resolution, `metadata.csv` and `voxelize_summary.json`. A run that was
cut off goes on with the same command. `docs/datasets.md` has the formats and the columns."""
EXAMPLES = """\
  python dataset_toolkits/sdf_voxelize.py --format folder --input_dir examples \\
      --output_dir train_sdf_dataset --resolutions 256
  vae-qwen3vl voxelize --format pack --input_dir PACK --output_dir fields --resolutions 256,512"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--format",
        required=True,
        choices=FORMATS,
        help="trellis500k: ObjaverseXL (object-paths.json) or HSSD; custom: metadata.csv with glb_file; folder: mesh "
        "files, however deep; pack: meshes.bin and meshes.jsonl",
    )
    data.add_argument("--input_dir", required=True, type=Path, metavar="DIR", help="the meshes")
    data.add_argument("--output_dir", required=True, type=Path, metavar="DIR", help="the dataset; made where missing")
    add_up_option(data)
    data.add_argument("--split", help="only rows whose column `split` says this")
    data.add_argument(
        "--filter_aesthetic_score", type=float, metavar="X", help="only rows with an aesthetic_score of X or more"
    )
    data.add_argument("--max_samples", type=int, metavar="N", help="only the first N of them (0: all)")
    fields = parser.add_argument_group("fields")
    fields.add_argument(
        "--resolutions",
        default="512",
        type=_resolutions,
        metavar="R,R",
        help='grid sides, as in "256,512" (default 512)',
    )
    fields.add_argument(
        "--threshold_factor",
        type=float,
        default=DEFAULT_BAND,
        metavar="B",
        help="half width in voxels of the stored shell (default %(default)g, which the shipped tokenizer reads). The "
        "original's default, 0.01, keeps about a fiftieth of the voxels that the surface passes through, too few "
        "to rebuild it",
    )
    fields.add_argument(
        "--unsigned",
        action="store_true",
        help="the original's files: raw unsigned distances in the unit cube, samples at i / (R - 1) - 0.5",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--max_workers",
        type=positive_int,
        metavar="N",
        help="processes (default: one a core, or up to four a GPU)",
    )
    run.add_argument(
        "--gpu_nums", type=int, metavar="N", help="use N GPUs (default -1: all, or the CPU where there is none)"
    )
    run.add_argument("--engine", choices=ENGINES, default="local", help="processes here, or a Ray cluster")
    run.add_argument("--no_skip", action="store_true", help="make all files anew; the default keeps whole ones")
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Voxelize, and print a summary; 2 if no object has a field."""
    from sdf_vqvae.preprocessing.voxelize.dataset import default_workers, voxelize_dataset

    devices = devices_of(options)
    settings = VoxelizeSettings(
        source_format=options.format,
        input_dir=options.input_dir,
        output_dir=options.output_dir,
        resolutions=options.resolutions,
        threshold_factor=options.threshold_factor,
        signed=not options.unsigned,
        up=options.up,
        split=options.split,
        filter_aesthetic_score=options.filter_aesthetic_score,
        max_samples=options.max_samples,
        skip_existing=not options.no_skip,
        workers=options.max_workers or default_workers(devices),
        devices=devices,
        engine=options.engine,
    )
    with contextlib.redirect_stdout(sys.stderr):  # Ray has things to say
        summary = voxelize_dataset(settings)
    if options.json:
        print_json(asdict(summary), indent=None)
    else:
        print("\n".join(in_words(summary)))
    if any(summary.fields.values()):
        return 0
    print(f"{options.program}: error: no object has a field", file=sys.stderr)
    return USER_ERROR


def in_words(summary: Summary) -> list[str]:
    """Return the lines that the program prints."""
    lines = [
        f"{summary.rows:,} rows: {summary.computed:,} fields computed, {summary.kept:,} kept, "
        f"{summary.failed_rows:,} rows failed",
        f"{summary.seconds:.1f} s, {summary.objects_per_second:.3g} objects/s; {summary.voxels:,} voxels, "
        f"{summary.bytes / 2**20:,.1f} MiB",
    ]
    if summary.left_out:
        lines.append(f"{summary.left_out:,} rows left out by --filter_aesthetic_score")
    for resolution, count in summary.trainable.items():
        lines.append(f"{resolution}^3: {summary.fields[resolution]:,} fields, {count:,} trainable samples")
    total = sum(summary.sign_methods.values())
    methods = ", ".join(f"{name} {count / total:.1%}" for name, count in summary.sign_methods.items())
    lines += [f"signs: {methods}; {summary.watertight:,} meshes are watertight"] if total else []
    lines += [f"up: {', '.join(f'{count:,} × {up}' for up, count in summary.up.items())}"] if summary.up else []
    lines += [f"failed: {count:,} × {reason}" for reason, count in summary.failures.items()]
    if any(summary.fields.values()) and not any(summary.trainable.values()):
        lines.append("no sample has a caption: training with text needs a column `captions` (docs/datasets.md)")
    return lines


def _resolutions(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of grid sides such as 256,512") from error
