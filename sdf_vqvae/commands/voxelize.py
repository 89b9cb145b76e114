"""The program `voxelize` (`dataset_toolkits/sdf_voxelize.py`): meshes to a dataset of fields."""

from __future__ import annotations

import argparse
import contextlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from sdf_vqvae.commands.options import add_up_option
from sdf_vqvae.preprocessing.voxelize.settings import VoxelizeSettings
from sdf_vqvae.utils.programs import USER_ERROR, add_gpu_option, add_run_options, devices_of, print_json
from sdf_vqvae.utils.settings import add_options, given

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
    add_options(data, VoxelizeSettings, ("source_format", "input_dir", "output_dir"))
    add_up_option(data)
    add_options(data, VoxelizeSettings, ("split", "filter_aesthetic_score", "max_samples"), by_hand=("up",))
    fields = parser.add_argument_group("fields")
    add_options(fields, VoxelizeSettings, ("resolutions", "threshold_factor", "signed"))
    run = parser.add_argument_group("run")
    add_options(run, VoxelizeSettings, ("workers",))
    add_gpu_option(run)
    add_options(run, VoxelizeSettings, ("engine", "skip_existing"))
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Voxelize, and print a summary; 2 if no object has a field."""
    from sdf_vqvae.preprocessing.voxelize.dataset import default_workers, voxelize_dataset

    devices = devices_of(options)
    asked = given(options, VoxelizeSettings)
    settings = VoxelizeSettings(**{"workers": default_workers(devices)} | asked, devices=devices)
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
