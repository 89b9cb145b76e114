"""The program `encode`: one shape to a codes file, or a whole dataset to a folder of codes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.jobs import ENGINES
from sdf_vqvae.utils.programs import (
    USER_ERROR,
    add_run_options,
    devices_of,
    naming,
    positive_int,
    print_json,
    print_stages,
)

ABOUT = "Turn a mesh, a field file, or a whole dataset into discrete codes."
EXAMPLES = (
    "  vae-qwen3vl encode chair.glb -o chair.safetensors\n"
    "  vae-qwen3vl encode 0123abcd_r512.npz -o x.safetensors --vae_config configs/vae/sdf_vqvae_stage2.json "
    "--vae_ckpt vqvae_step0000459.pt\n"
    "  vae-qwen3vl encode scan.ply -o scan.safetensors --json\n"
    "  vae-qwen3vl encode train_sdf_dataset -o train_codes          a folder of fields, of meshes, or a pack;\n"
    "                                                               the same command goes on where it stopped"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "mesh", metavar="MESH|FIELD|FOLDER", type=Path, help="GLB, glTF, OBJ, PLY, STL or OFF; .npz; or a dataset"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE|FOLDER",
        type=Path,
        required=True,
        help="codes file, .safetensors; for a dataset the folder of codes",
    )
    add_threshold_factor(parser)
    add_up_option(parser)
    add_vae_options(parser)
    many = parser.add_argument_group("datasets")
    many.add_argument("--split", help="only objects whose row says so in its column `split`")
    many.add_argument("--max_samples", type=positive_int, metavar="N", help="the first N objects")
    many.add_argument(
        "--mirror",
        action="store_true",
        help="encode mirror images, left and right exchanged: a second folder of codes, for training's mirrored_dir",
    )
    many.add_argument("--workers", type=positive_int, metavar="N", help="processes (default: one a device)")
    many.add_argument("--gpu_nums", type=int, metavar="N", help="use N GPUs (default -1: all, or the CPU)")
    many.add_argument("--engine", choices=ENGINES, default="local", help="processes here, or a Ray cluster")
    many.add_argument(
        "--batch_voxels",
        type=positive_int,
        default=2_000_000,
        metavar="N",
        help="voxels that go through the tokenizer at a time (default %(default)s)",
    )
    many.add_argument(
        "--shard_seconds",
        type=float,
        default=10.0,
        metavar="S",
        help="write what is encoded so often; a killed run loses no more (default %(default)g)",
    )
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Encode one shape or a dataset."""
    return _encode_dataset(options) if options.mesh.is_dir() else _encode_one(options)


def _encode_one(options: argparse.Namespace) -> int:
    import torch

    from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX
    from sdf_vqvae.fields.sparse_sdf import SparseSDF
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import Stopwatch

    if options.mirror:
        raise ValueError("--mirror is for datasets: what is said of one shape is said of it as it is")
    if options.output.suffix != CODES_SUFFIX:
        raise ValueError(f"--output {options.output}: a codes file ends in {CODES_SUFFIX}")
    source = load_shape(options.mesh)
    with naming(options.mesh):
        up = up_for(options.mesh, source, options.up)
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    watch = Stopwatch(vae.device)
    with watch("voxelize"), naming(options.mesh):
        field = field_for(vae, source, threshold_factor=options.threshold_factor, up=up)
    with watch("encode"), naming(options.mesh):
        codes = encode_field(vae, field)
    codes.save(options.output)
    found: dict[str, Any] = {
        "mesh": str(options.mesh),
        "faces": None if isinstance(source, SparseSDF) else len(source.faces),
        "watertight": field.watertight,
        "sign_method": field.sign_method,
        "up": up.axis,
        "up_from": up.known_from,
        "resolution": field.field.resolution,
        "voxels": len(field.sdf),
        "codes": len(codes.codes),
        "distinct_codes": len(torch.unique(codes.codes)),
        "output": str(options.output),
    }
    if options.json:
        print_json({**found, "stages": [dataclasses.asdict(cost) for cost in watch.costs]})
        return 0
    made_of = "" if found["faces"] is None else f"{found['faces']} faces -> "
    print(
        f"{found['mesh']}: {made_of}{found['voxels']} voxels at {found['resolution']}^3 "
        f"({found['sign_method']}) -> {found['codes']} codes ({found['distinct_codes']} distinct) "
        f"in {found['output']}"
    )
    print(up.in_words())
    print_stages(watch.costs)
    return 0


def _encode_dataset(options: argparse.Namespace) -> int:
    from sdf_vqvae.codes.encoding import EncodeSettings, encode_dataset

    devices = devices_of(options)
    settings = EncodeSettings(
        source=options.mesh,
        output=options.output,
        vae_config=options.vae_config,
        vae_ckpt=options.vae_ckpt,
        threshold_factor=options.threshold_factor,
        up=options.up,
        split=options.split,
        max_samples=options.max_samples,
        mirror=options.mirror,
        batch_voxels=options.batch_voxels,
        shard_seconds=options.shard_seconds,
        workers=options.workers or len(devices),
        devices=devices,
        engine=options.engine,
    )
    with contextlib.redirect_stdout(sys.stderr):  # Ray has things to say
        found = encode_dataset(settings)
    rate = found.encoded / found.seconds if found.seconds else 0.0
    if options.json:
        print_json(dataclasses.asdict(found), indent=None)
    else:
        print(
            f"{options.mesh}: {found.encoded:,} objects encoded ({rate:.1f} a second), {found.kept:,} kept, "
            f"{len(found.failed):,} failed; {found.codes:,} codes in {options.output}"
        )
        for name, reason in list(found.failed.items())[:10]:
            print(f"  {name}: {reason}")
        if len(found.failed) > 10:
            print(f"  and {len(found.failed) - 10} more: column codes_error of {options.output / 'metadata.csv'}")
    return 0 if found.encoded or found.kept else USER_ERROR
