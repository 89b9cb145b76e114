"""The program `create`: words in, a mesh out, with its codes and a picture beside it."""

from __future__ import annotations

import argparse

from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.utils.programs import add_run_options, positive_int
from sdf_vqvae.utils.settings import add_options, given
from vae_qwen3vl.commands.made import add_made_options, check_output, say_made
from vae_qwen3vl.creation.config import Sampling

ABOUT = """\
Make a mesh from English words. The codes (.safetensors) and a picture (.png) are written beside it.

The generator is the folder of a run of `train-generator`; none is shipped so far. It makes what it has seen kinds of.
The same seed, words and settings give the same object on the same device; a draw that has no surface is passed over
and the next seed is taken. The mesh stands along +y in a cube of side 1 round the origin: words have no size."""
EXAMPLES = """\
  vae-qwen3vl create "a wooden stool" -o stool.glb --generator my_generator
  vae-qwen3vl create "a wooden stool" -o stool.glb --generator my_generator --seed 3 --count 4
  vae-qwen3vl create "a wardrobe" -o wardrobe.glb --generator my_generator --proportions 1,2,0.5 --guidance 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("words", metavar="WORDS", help="what to make, in English")
    add_made_options(parser)
    parser.add_argument(
        "--proportions",
        type=_proportions,
        metavar="X,Y,Z",
        help="width, height and depth to each other (default: as the words suggest)",
    )
    parser.add_argument(
        "--cells",
        type=positive_int,
        metavar="N",
        help="about how many cells of the latent grid it fills, for bulk and detail (default: as the words suggest)",
    )
    add_options(parser, Sampling)
    add_vae_options(parser)
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Make objects."""
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.commands.options import quiet_transformers
    from vae_qwen3vl.creation.generator_file import generator_folder
    from vae_qwen3vl.creation.making import ShapeMaker

    check_output(options.output)
    sampling = Sampling(**given(options, Sampling))
    folder = generator_folder(options.generator)
    quiet_transformers(options.verbose)
    maker = ShapeMaker.load(folder, load_vae_from_config(options.vae_config, options.vae_ckpt, options.device))
    made = maker.make(
        options.words,
        count=options.count,
        seed=options.seed,
        sampling=sampling,
        proportions=options.proportions,
        cells=options.cells,
    )
    return say_made(made, options, options.words)


def _proportions(text: str) -> tuple[float, ...]:
    try:
        sides = tuple(float(part) for part in text.split(","))
    except ValueError:
        sides = ()
    if len(sides) != 3 or not all(0 < side < 1e6 for side in sides):
        raise argparse.ArgumentTypeError(f"three positive numbers with commas, such as 1,2,0.5; not {text!r}")
    return sides
