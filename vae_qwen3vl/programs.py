"""What every program of this package shares: its options for models, and quiet libraries.

What programs of all packages share is in `sdf_vqvae.programs`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sdf_vqvae.programs import (
    USER_ERROR,
    add_run_options,
    add_up_option,
    add_version,
    naming,
    one_line,
    parse_options,
    positive_int,
    prepare,
    run_program,
)

__all__ = [
    "USER_ERROR",
    "add_language_options",
    "add_run_options",
    "add_up_option",
    "add_vae_options",
    "add_version",
    "check_records_name",
    "naming",
    "one_line",
    "parse_options",
    "positive_int",
    "prepare",
    "quiet_transformers",
    "run_program",
]


def add_vae_options(parser: argparse.ArgumentParser, default_config: str | None = None) -> None:
    """Add `--vae_config` and `--vae_ckpt`."""
    shipped = "the shipped tokenizer" if default_config is None else default_config
    parser.add_argument(
        "--vae_config", metavar="JSON", default=default_config, help=f"VAE configuration (default: {shipped})"
    )
    parser.add_argument("--vae_ckpt", metavar="FILE", help="VAE weights: .safetensors, or .pt of the original system")


def check_records_name(path: Path) -> None:
    """Raise a ValueError unless a file of records that `--output` names ends in .jsonl."""
    if path.suffix != ".jsonl":
        raise ValueError(f"--output {path}: a file of records ends in .jsonl")


def add_language_options(parser: argparse.ArgumentParser) -> None:
    """Add `--vl_model`, `--projector_ckpt` and `--lora_dir`."""
    parser.add_argument(
        "--vl_model",
        metavar="NAME",
        help="Qwen2-VL or Qwen3-VL: a folder, a Hub id, or smollm2-135m (the default, which needs no hub)",
    )
    parser.add_argument("--projector_ckpt", metavar="FILE", help="trained projector (default: the shipped one)")
    parser.add_argument(
        "--lora_dir", metavar="DIR", help="LoRA adapter trained with it; none to do without (default: beside it)"
    )


def quiet_transformers(verbose: bool = False) -> None:
    """Turn transformers' progress bars and advice off for this process (unless `verbose`)."""
    from transformers.utils import logging as transformers_logging

    if verbose:
        return
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
