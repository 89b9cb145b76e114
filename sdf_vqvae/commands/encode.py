"""The program `encode`: one shape to a codes file, or a whole dataset to a folder of codes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.programs import (
    USER_ERROR,
    add_gpu_option,
    add_run_options,
    devices_of,
    naming,
    print_failures,
    print_json,
    print_stages,
)
from sdf_vqvae.utils.progress import waiting
from sdf_vqvae.utils.settings import add_options, given

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
    add_options(parser, EncodeSettings, ("source", "output"))
    add_threshold_factor(parser)
    add_up_option(parser)
    add_vae_options(parser)
    many = parser.add_argument_group("datasets")
    shared = ("threshold_factor", "up", "vae_config", "vae_ckpt")
    add_options(many, EncodeSettings, ("split", "max_samples", "mirror", "turns", "workers"), by_hand=shared)
    add_gpu_option(many)
    add_options(many, EncodeSettings, ("engine", "batch_voxels", "shard_seconds"))
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Encode one shape or a dataset."""
    asked = given(options, EncodeSettings)
    if not asked["source"].is_dir():
        return _encode_one(EncodeSettings(**asked), options)
    devices = devices_of(options)
    return _encode_dataset(EncodeSettings(**{"workers": len(devices)} | asked, devices=devices), options)


def _encode_one(settings: EncodeSettings, options: argparse.Namespace) -> int:
    import torch

    from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX
    from sdf_vqvae.fields.sparse_sdf import SparseSDF
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import Stopwatch

    for flag in ("mirror", "turns"):
        if getattr(settings, flag):
            raise ValueError(f"--{flag} is for datasets: what is said of one shape is said of it as it is")
    if not settings.output.suffix and not settings.source.exists():  # a folder was meant
        raise ValueError(f"{settings.source} does not exist: give a mesh, a field file, or a folder of them")
    if settings.output.suffix != CODES_SUFFIX:
        raise ValueError(f"--output {settings.output}: a codes file ends in {CODES_SUFFIX}")
    with waiting(f"reading {settings.source}"), naming(settings.source):
        source = load_shape(settings.source)
        up = up_for(settings.source, source, settings.up)
    vae = load_vae_from_config(settings.vae_config, settings.vae_ckpt, options.device)
    watch = Stopwatch(vae.device)
    with watch("voxelize"), naming(settings.source):
        field = field_for(vae, source, threshold_factor=settings.threshold_factor, up=up)
    with watch("encode"), naming(settings.source):
        codes = encode_field(vae, field)
    codes.save(settings.output)
    report: dict[str, Any] = {
        "mesh": str(settings.source),
        "faces": None if isinstance(source, SparseSDF) else len(source.faces),
        "watertight": field.watertight,
        "sign_method": field.sign_method,
        "up": up.axis,
        "up_from": up.known_from,
        "resolution": field.field.resolution,
        "voxels": len(field.sdf),
        "codes": codes.count,
        "distinct_codes": len(torch.unique(codes.first)),
        "output": str(settings.output),
    }
    if options.json:
        print_json({**report, "stages": [dataclasses.asdict(cost) for cost in watch.costs]})
        return 0
    made_of = "" if report["faces"] is None else f"{report['faces']} faces -> "
    print(
        f"{report['mesh']}: {made_of}{report['voxels']} voxels at {report['resolution']}^3 "
        f"({report['sign_method']}) -> {report['codes']} codes ({report['distinct_codes']} distinct) "
        f"in {report['output']}"
    )
    print(up.in_words())
    print_stages(watch.costs)
    return 0


def _encode_dataset(settings: EncodeSettings, options: argparse.Namespace) -> int:
    from sdf_vqvae.codes.encoding import encode_dataset

    with contextlib.redirect_stdout(sys.stderr):  # Ray has things to say
        report = encode_dataset(settings)
    rate = report.encoded / report.seconds if report.seconds else 0.0
    if options.json:
        print_json(dataclasses.asdict(report), indent=None)
    else:
        print(
            f"{settings.source}: {report.encoded:,} objects encoded ({rate:.1f} a second), {report.kept:,} kept, "
            f"{len(report.failed):,} failed; {report.codes:,} codes in {settings.output}"
        )
        failures = [f"{name}: {reason}" for name, reason in report.failed.items()]
        print_failures(failures, f"column codes_error of {settings.output / 'metadata.csv'}")
    return 0 if report.encoded or report.kept else USER_ERROR
