"""The program `decode`: a codes file back to a mesh."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.utils.programs import add_run_options, naming, positive_int, print_json, print_stages

ABOUT = "Turn codes back into a mesh, in the units and place of the mesh they came from."
EXAMPLES = (
    "  vae-qwen3vl decode chair.safetensors -o chair_rebuilt.glb\n"
    "  vae-qwen3vl decode chair.safetensors -o chair.obj --voxel_resolution 128"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
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


def work(options: argparse.Namespace) -> int:
    """Decode one object."""
    from sdf_vqvae.codes.pipeline import decode_codes, surface_of
    from sdf_vqvae.codes.shape_codes import ShapeCodes
    from sdf_vqvae.geometry.formats.registry import WRITABLE
    from sdf_vqvae.geometry.mesh import write_mesh
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import Stopwatch

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
    report = {
        "codes_file": str(options.codes),
        "codes": codes.count,
        "decoded_voxels": len(decoded),
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "up": codes.up,
        "output": str(options.output),
        "offset": taken,
    }
    if options.json:
        print_json({**report, "stages": [dataclasses.asdict(cost) for cost in watch.costs]})
        return 0
    print(f"{report['codes_file']}: {report['codes']} codes -> {report['faces']} faces in {report['output']}")
    if taken is not None:
        print(f"moved near the origin: add {', '.join(map(repr, taken))} to x, y and z for its own place")
    print_stages(watch.costs)
    return 0
