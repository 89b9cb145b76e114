"""The program `demo`: everything on one mesh."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdf_vqvae.commands.options import add_up_option, add_vae_options
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.utils.programs import add_run_options, print_json, print_stages
from vae_qwen3vl.commands.options import add_language_options, quiet_transformers

ABOUT = "Do all of it on one mesh: voxels, codes, a description, the mesh rebuilt, a picture of both."
EXAMPLES = "  vae-qwen3vl demo examples/chair.glb -o demo_out"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("mesh", metavar="MESH", type=Path, help="GLB, glTF, OBJ, PLY, STL or OFF")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument("--prompt", help="the question (default: what the projector was trained with)")
    add_up_option(parser)
    add_vae_options(parser)
    add_language_options(parser)
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Run it and say what came out."""
    from vae_qwen3vl.demo import run_demo

    if options.mesh.is_dir():
        raise ValueError(
            f"{options.mesh} is a folder, and demo takes one mesh: give a file of it, or describe all of them with "
            f"`vae-qwen3vl describe {options.mesh} -o answers.jsonl`"
        )
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
        print_json(result.to_dict())
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
