"""The program `describe`: an answer to a question about a shape."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from sdf_vqvae.commands.options import add_threshold_factor, add_up_option, add_vae_options
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.utils.programs import add_run_options, naming, positive_int, print_json
from vae_qwen3vl.commands.options import add_language_options, quiet_transformers

ABOUT = "Answer a question about a mesh, its field or its codes."
EXAMPLES = (
    "  vae-qwen3vl describe chair.glb\n"
    '  vae-qwen3vl describe chair.safetensors --prompt "Which category does it belong to?"\n'
    "  vae-qwen3vl describe chair.glb --vl_model Qwen/Qwen3-VL-2B-Instruct --projector_ckpt projector_final.pt"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "shape",
        metavar="MESH|FIELD|CODES",
        type=Path,
        help="mesh file, field file (.npz) or codes file (.safetensors)",
    )
    add_threshold_factor(parser)
    add_up_option(parser)
    parser.add_argument("--prompt", help="the question (default: what the projector was trained with)")
    parser.add_argument(
        "--max_new_tokens", type=positive_int, default=64, metavar="N", help="length of the answer (64)"
    )
    add_vae_options(parser)
    add_language_options(parser)
    add_run_options(parser)


def work(options: argparse.Namespace) -> int:
    """Answer."""
    from sdf_vqvae.codes.pipeline import encode_field, field_for, load_shape, up_for
    from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from sdf_vqvae.utils.runtime import Stopwatch, resolve_device
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
        print_json({**about, **vars(words), "stages": stages})
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
