"""The program `convert`: field files into those that a tokenizer reads."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.programs import USER_ERROR, add_run_options, positive_int, print_json

ABOUT = "Turn field files into those that a VAE reads: unsigned into signed, other grids, bands and sampling."
EXAMPLES = (
    "  vae-qwen3vl convert 0123abcd_r512.npz -o 0123abcd_r256.npz\n"
    "  vae-qwen3vl convert train_sdf_dataset -o train_sdf_dataset_signed --workers 8"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "fields",
        metavar="FIELD|DATASET",
        type=Path,
        help=".npz file, or folder of them (with metadata.csv or without)",
    )
    parser.add_argument("-o", "--output", metavar="PATH", type=Path, required=True, help=".npz file, or folder")
    parser.add_argument(
        "--vae_config", metavar="JSON", help="make the field that this VAE reads (default: the shipped tokenizer's)"
    )
    parser.add_argument(
        "--resolution", type=positive_int, metavar="R", help="grid side in the names of the dataset's files"
    )
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (1)")
    add_run_options(parser, device=False)


def work(options: argparse.Namespace) -> int:
    """Convert a file or a dataset."""
    from sdf_vqvae.config.architecture import VAEConfig
    from sdf_vqvae.data.folder_conversion import convert_file, convert_folder
    from sdf_vqvae.model.checkpoint import shipped_config

    field = VAEConfig.from_json(options.vae_config or shipped_config()).field
    if not options.fields.is_dir():
        if not options.output.suffix and not options.fields.exists():  # a folder was meant
            raise ValueError(f"{options.fields} does not exist: give a field file, or a folder of them")
        if options.output.suffix != ".npz":
            raise ValueError(f"--output {options.output}: a field file ends in .npz")
        voxels = convert_file(options.fields, options.output, field)
        report: dict[str, Any] = {"output": str(options.output), "voxels": voxels, "field": field.to_dict()}
        if options.json:
            print_json(report)
        else:
            print(f"{options.fields} -> {options.output}: {voxels} voxels, {field.in_words()}")
        return 0
    done = convert_folder(
        options.fields, options.output, field, resolution=options.resolution, workers=options.workers
    )
    code = 0 if done.converted or done.kept or not done.failed else USER_ERROR
    if options.json:
        print_json({"output": str(options.output), "field": field.to_dict(), **dataclasses.asdict(done)})
        return code
    print(
        f"{options.fields} -> {options.output}: {done.converted} converted, {done.kept} there already, "
        f"{len(done.failed)} failed; {field.in_words()}"
    )
    for name, reason in done.failed.items():
        print(f"failed: {name}: {reason}")
    return code
