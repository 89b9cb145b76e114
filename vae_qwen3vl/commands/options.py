"""Options that several programs of the language branch share, and quiet libraries."""

from __future__ import annotations

import argparse
from pathlib import Path

from sdf_vqvae.utils.runtime import without_collector


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


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add `--dtype`, for programs that answer several questions at a time."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="what the language model computes in (default: bfloat16 where the device multiplies it, else float32). "
        "In float32 an answer is the same whatever is answered beside it; in 16 bits, which are faster, other words "
        "may come where two are nearly tied",
    )


def quiet_transformers(verbose: bool = False) -> None:
    """Turn transformers' progress bars and advice off for this process (unless `verbose`)."""
    with without_collector():
        from transformers.utils import logging as transformers_logging

    if verbose:
        return
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
