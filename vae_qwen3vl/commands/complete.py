"""The program `complete`: a part of an object stays, the rest of it is made anew."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.utils.programs import add_run_options, naming
from sdf_vqvae.utils.settings import add_options, given
from vae_qwen3vl.commands.made import add_made_options, check_output, say_made
from vae_qwen3vl.creation.config import Sampling

if TYPE_CHECKING:
    from sdf_vqvae.codes.shape_codes import ShapeCodes
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

ABOUT = """\
Keep a part of an object and make the rest anew: complete it, or vary it.

Inside --keep the codes stay exactly what they are, and cells that are empty stay empty; the mesh may still move by a
voxel or two where the new part begins, since the tokenizer's decoder sees both. With --vary, a share of the object's
blocks (4^3 cells) is made anew instead. Boxes are in shares of the object's bounding box as it stands, along +y. The
result is in the units and the place of the object; codes (.safetensors) and a picture (.png) are written beside it.
The generator is the folder of a run of `train-generator`; none is shipped so far."""
EXAMPLES = """\
  vae-qwen3vl complete chair.glb --keep bottom -o other_back.glb --generator my_generator
  vae-qwen3vl complete chair.glb --keep 0,0,0,1,0.4,1 -o chair2.glb --words "an armchair" --generator my_generator
  vae-qwen3vl complete chair.glb --vary 0.3 -o like_it.glb --count 4 --generator my_generator"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("shape", metavar="MESH", type=Path, help="mesh file, field file (.npz) or codes file")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--keep",
        metavar="BOX",
        help="what stays: left, right (along x), bottom, top (y), back, front (z), or x0,y0,z0,x1,y1,z1 from 0 to 1",
    )
    what.add_argument(
        "--vary", type=_share, metavar="SHARE", help="share of the object's blocks that is made anew, above 0 to 1"
    )
    parser.add_argument(
        "--words", default="", metavar="TEXT", help="what the whole is, in English (default: nothing)"
    )
    add_made_options(parser)
    add_options(parser, Sampling)
    add_threshold_factor(parser)
    add_up_option(parser)
    add_vae_options(parser)
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Complete or vary an object."""
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.commands.options import quiet_transformers
    from vae_qwen3vl.creation.generator_file import generator_folder
    from vae_qwen3vl.creation.known import all_but_blocks, box_region, read_box
    from vae_qwen3vl.creation.making import ShapeMaker

    check_output(options.output)
    box = None if options.keep is None else read_box(options.keep)
    sampling = Sampling(**given(options, Sampling))
    folder = generator_folder(options.generator)
    quiet_transformers(options.verbose)
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    maker = ShapeMaker.load(folder, vae)
    with naming(options.shape):
        source = _codes(vae, options)
        cells, side = source.coords, source.latent_resolution
        if box is not None:
            region = box_region(box, cells, side)
        else:
            region = all_but_blocks(cells, options.vary, side, options.seed)
    made = maker.complete(source, region, options.words, count=options.count, seed=options.seed, sampling=sampling)
    return say_made(made, options, options.words or str(options.shape))


def _codes(vae: SparseSDFVQVAE, options: argparse.Namespace) -> ShapeCodes:
    from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes

    if options.shape.suffix == CODES_SUFFIX:
        return ShapeCodes.load(options.shape)
    source = load_shape(options.shape)
    up = up_for(options.shape, source, options.up)
    print(up.in_words(), file=sys.stderr)
    return encode_field(vae, field_for(vae, source, threshold_factor=options.threshold_factor, up=up))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"a number above 0 and up to 1, not {text!r}")
    return share
