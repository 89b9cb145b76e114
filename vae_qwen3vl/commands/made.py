"""What `create` and `complete` share: where results go, and what is said of them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.utils.programs import positive_int, print_json

if TYPE_CHECKING:
    from vae_qwen3vl.creation.making import Made

_LARGEST_SEED = 2**62


def add_made_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="GLB, PLY, OBJ, OFF or STL; with --count, name_1.glb and so on",
    )
    parser.add_argument("--generator", metavar="DIR", help="run folder of `train-generator`")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the draw (0)")
    parser.add_argument("--count", type=positive_int, default=1, metavar="N", help="objects, of a seed each (1)")


def check_output(output: Path) -> None:
    """Raise a ValueError if a mesh can't be written under that name."""
    from sdf_vqvae.geometry.formats.registry import WRITABLE

    if output.suffix.lower() not in WRITABLE:
        raise ValueError(f"--output {output}: a mesh file ends in one of {', '.join(WRITABLE)}")


def say_made(made: Iterator[Made], options: argparse.Namespace, caption: str) -> int:
    """Write each object as it is made, with codes and a picture, say so, and return the exit code."""
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX
    from sdf_vqvae.geometry.mesh import write_mesh
    from sdf_vqvae.geometry.picture import save_comparison

    written: list[dict[str, Any]] = []
    for number, thing in enumerate(made, 1):
        output: Path = options.output
        path = output if options.count == 1 else output.with_stem(f"{output.stem}_{number}")
        codes, picture = path.with_suffix(CODES_SUFFIX), path.with_suffix(".png")
        write_mesh(path, thing.mesh, up=thing.codes.up)
        thing.codes.save(codes)
        save_comparison(picture, [(f"seed {thing.seed}", thing.mesh)], caption)
        faces, cells = len(thing.mesh.faces), len(thing.codes.codes)
        written.append({"seed": thing.seed, "output": str(path), "codes": str(codes), "picture": str(picture)})
        written[-1] |= {"cells": cells, "faces": faces, "closed": bool(thing.mesh.is_watertight)}
        if not options.json:
            print(f"{path}: {cells} cells, {faces} faces, seed {thing.seed}; {codes.name}, {picture.name}")
    if options.json:
        print_json({"words": caption, "made": written})
    return 0


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= _LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"a whole number from 0, not {text!r}")
    return int(text)
