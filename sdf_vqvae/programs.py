"""What programs share: options, exit codes, and how they fail.

Knows argparse; what the programs do is in the modules they call.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

from sdf_vqvae.extras import DISTRIBUTION, said_of
from sdf_vqvae.geometry.up import AUTO, UP_AXES, read_up
from sdf_vqvae.jobs import devices_for
from sdf_vqvae.runtime import resolve_device, setup_logging

USER_ERROR = 2
"""Exit code of everything that the user can mend, as argparse's own."""


def add_run_options(parser: argparse.ArgumentParser, json_output: bool = True) -> None:
    """Add `--device`, `--verbose` and, where it applies, `--json`."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is any)")
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    if json_output:
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


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
        found = read_up(text, "it")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if found is None:
        raise argparse.ArgumentTypeError("it is empty")
    return found


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return a command line's options; `--up -z` is read, which argparse takes for two options."""
    words = list(sys.argv[1:] if argv is None else argv)
    for place, word in enumerate(words[:-1]):
        if word == "--up" and words[place + 1] in UP_AXES:
            words[place : place + 2] = [f"--up={words[place + 1]}"]
            break
    return parser.parse_args(words)


class _Version(argparse.Action):
    """Print which versions run, and on what, and end."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the line."""
        import torch

        try:
            version = metadata.version(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            version = "(not installed as a package)"
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"{DISTRIBUTION} {version}, torch {torch.__version__}, Python {python}, {device}")
        parser.exit()


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action=_Version, nargs=0, help="say which versions run, and on what")


def devices_of(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the devices that `--device` or `--gpu_nums` name, for work on many items.

    Raises:
        ValueError: both are given, or one of them can't be had.
    """
    if options.device and options.gpu_nums is not None:
        raise ValueError("give --device or --gpu_nums, not both")
    return (str(resolve_device(options.device)),) if options.device else devices_for(options.gpu_nums)


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
        words = said_of(error) if isinstance(error, ImportError) else one_line(error)
        print(f"{program}: error: {words}", file=sys.stderr)
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
    if not sys.warnoptions:  # nobody asked for them; ours are log records, and what libraries deprecate is theirs
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
    for name in ("huggingface_hub", "httpx", "httpx2", "trimesh"):
        logging.getLogger(name).setLevel(logging.ERROR)
