"""What every program of this package shares: its options for models, quiet libraries, and how it fails.

Knows argparse and exit codes; what the programs do is in the modules they call.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator

from sdf_vqvae.runtime import setup_logging

USER_ERROR = 2
"""Exit code of everything that the user can mend, as argparse's own."""


def add_vae_options(parser: argparse.ArgumentParser, default_config: str | None = None) -> None:
    """Add `--vae_config` and `--vae_ckpt`."""
    shipped = "the shipped tokenizer" if default_config is None else default_config
    parser.add_argument(
        "--vae_config", metavar="JSON", default=default_config, help=f"VAE configuration (default: {shipped})"
    )
    parser.add_argument("--vae_ckpt", metavar="FILE", help="VAE weights: .safetensors, or .pt of the original system")


def add_language_options(parser: argparse.ArgumentParser) -> None:
    """Add `--vl_model`, `--projector_ckpt` and `--lora_dir`."""
    parser.add_argument(
        "--vl_model",
        metavar="NAME",
        help="Qwen2-VL or Qwen3-VL: a folder, a Hub id, or smollm2-135m (the default, which needs no hub)",
    )
    parser.add_argument("--projector_ckpt", metavar="FILE", help="trained projector (default: the shipped one)")
    parser.add_argument("--lora_dir", metavar="DIR", help="LoRA adapter trained with it (default: the shipped one)")


def add_run_options(parser: argparse.ArgumentParser, json_output: bool = True) -> None:
    """Add `--device`, `--verbose` and, where it applies, `--json`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is any)")
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    if json_output:
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def positive_int(text: str) -> int:
    """Read an option that counts something (argparse's `type`)."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put a file's name before the message of a ValueError that does not say which file it is about."""
    try:
        yield
    except ValueError as error:
        if os.fspath(path) in str(error):
            raise
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def run_program(program: str, work: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a program's work and return its exit code.

    What the user can mend (a wrong file, an unreachable model, a missing package) becomes one line on standard
    error and exit code 2; anything else is a defect and keeps its traceback.
    """
    prepare(verbose=getattr(options, "verbose", False))
    try:
        return work(options)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ImportError) as error:
        if getattr(options, "verbose", False):
            logging.getLogger(__name__).debug("what went wrong", exc_info=True)
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def prepare(verbose: bool = False) -> None:
    """Set up logging; libraries that draw bars and log every request are quiet unless `verbose`."""
    setup_logging(verbose)
    if verbose:
        return
    for name in ("huggingface_hub", "httpx", "httpx2", "trimesh"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_transformers(verbose: bool = False) -> None:
    """Turn transformers' progress bars and advice off for this process (unless `verbose`)."""
    from transformers.utils import logging as transformers_logging

    if verbose:
        return
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
