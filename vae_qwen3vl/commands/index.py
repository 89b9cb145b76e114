"""The program `index`: a folder of shapes becomes one that words and shapes search."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path

from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.programs import (
    USER_ERROR,
    add_gpu_option,
    add_run_options,
    devices_of,
    print_failures,
    print_json,
)
from sdf_vqvae.utils.settings import add_options, given

ABOUT = "Make an index of a folder of meshes, fields or codes, or of a pack; `search` asks it."
EXAMPLES = (
    "  vae-qwen3vl index my_meshes -o my_index      the same command goes on where it stopped, takes in what is new\n"
    "                                               and drops what is gone\n"
    "  vae-qwen3vl index my_codes -o my_index       codes that `encode` made: a thousand objects in seconds\n"
    '  vae-qwen3vl search my_index "a wooden chair"'
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "source", metavar="FOLDER", type=Path, help="meshes (folders below too), fields, codes, or a pack"
    )
    parser.add_argument("-o", "--output", metavar="INDEX", type=Path, required=True, help="folder of the index")
    add_threshold_factor(parser)
    add_up_option(parser)
    add_vae_options(parser)
    parser.add_argument(
        "--projector_ckpt", metavar="FILE", type=Path, help="trained projector (default: the shipped)"
    )
    parser.add_argument(
        "--search_head",
        metavar="FILE",
        type=Path,
        help="search head trained for that projector (default: the shipped)",
    )
    many = parser.add_argument_group("many objects")
    by_hand = ("source", "output", "threshold_factor", "up", "vae_config", "vae_ckpt")
    add_options(many, EncodeSettings, ("split", "max_samples", "workers"), by_hand=by_hand)
    add_gpu_option(many)
    add_options(many, EncodeSettings, ("engine", "batch_voxels"))
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Make or update the index."""
    from vae_qwen3vl.search.indexing import ERRORS, index_dataset
    from vae_qwen3vl.search.vectors import shipped_search_weights

    projector, head = options.projector_ckpt, options.search_head
    if (projector is None) != (head is None):
        raise ValueError("give --projector_ckpt and --search_head together: a head reads one projector's tokens")
    if projector is None:
        projector, head = shipped_search_weights()
    devices = devices_of(options)
    settings = EncodeSettings(**{"workers": len(devices)} | given(options, EncodeSettings), devices=devices)
    with contextlib.redirect_stdout(sys.stderr):  # Ray has things to say
        report = index_dataset(settings, projector, head)
    if options.json:
        print_json(dataclasses.asdict(report), indent=None)
    else:
        print(
            f"{settings.output}: {report.objects:,} objects ({report.added:,} new, {report.kept:,} kept, "
            f"{report.dropped:,} dropped, {len(report.failed):,} failed); encoded in {report.encode_seconds:.1f} s, "
            f"indexed in {report.seconds:.1f} s"
        )
        print_failures([f"{name}: {why}" for name, why in report.failed.items()], f"{settings.output / ERRORS}")
    return 0 if report.objects else USER_ERROR
