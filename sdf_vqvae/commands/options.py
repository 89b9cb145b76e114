"""Options that several programs share: what they say of shapes and tokenizers.

What every program has, whatever it is about, is in `utils.programs`.
"""

from __future__ import annotations

import argparse

from sdf_vqvae.geometry.up import AUTO, UP_AXES, read_up

_UP_DEFAULT = "y in glTF, by its specification; in other formats y or z, by the shape; a table's column `up` wins"


def add_up_option(parser: argparse._ActionsContainer, default: str = _UP_DEFAULT) -> None:
    """Add `--up`."""
    parser.add_argument(
        "--up",
        type=_up,
        metavar="AXIS",
        help=f"the axis of the source that points up: {', '.join(UP_AXES)}, or {AUTO} (looks at the shape); "
        f"default: {default}",
    )


def _up(text: str) -> str:
    try:
        axis = read_up(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if axis is None:
        raise argparse.ArgumentTypeError("it is empty")
    return axis


def add_vae_options(parser: argparse.ArgumentParser, default_config: str | None = None) -> None:
    """Add `--vae_config` and `--vae_ckpt`."""
    shipped = "the shipped tokenizer" if default_config is None else default_config
    parser.add_argument(
        "--vae_config", metavar="JSON", default=default_config, help=f"VAE configuration (default: {shipped})"
    )
    parser.add_argument(
        "--vae_ckpt",
        metavar="FILE",
        help="VAE weights: .safetensors, or .pt of the original system (default: those shipped for it)",
    )


def add_threshold_factor(parser: argparse.ArgumentParser) -> None:
    """Add `--threshold_factor`."""
    parser.add_argument(
        "--threshold_factor",
        type=float,
        metavar="T",
        help="half width in voxels of the field, for VAEs of the original system, which don't record it",
    )
