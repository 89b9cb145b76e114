"""What programs share: one pattern, exit codes, and how they fail.

A program is a module of a `commands` folder with `ABOUT`, `EXAMPLES`, `add_arguments(parser)` and `work(options)`;
the subcommand of `vae-qwen3vl` and the documented script are doors to it. What its options mean is the module's
business, and what it does that of the modules it calls, which it imports in `work`: parsers and `--help` stay quick.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

from sdf_vqvae.utils.errors import one_line
from sdf_vqvae.utils.extras import DISTRIBUTION, said_of

if TYPE_CHECKING:
    from sdf_vqvae.utils.runtime import StageCost

USER_ERROR = 2
"""Exit code of everything that the user can mend, as argparse's own."""
_AXIS = re.compile(r"-[xyz]")


_MOST_SHOWN = 10
"""Failures that a program names on the screen."""


class Command(Protocol):
    """What a module of `commands` has."""

    ABOUT: str
    """What `--help` says first."""
    EXAMPLES: str
    """Command lines, a line each, indented by two spaces."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options."""

    def work(self, options: argparse.Namespace) -> int:
        """Do it, and return the exit code."""


def parser_of(command: Command, program: str) -> argparse.ArgumentParser:
    """Return the parser of a program that is called `program`."""
    parser = argparse.ArgumentParser(prog=program, **help_texts(command))
    add_version(parser)
    command.add_arguments(parser)
    parser.set_defaults(program=program)
    return parser


def help_texts(command: Command) -> dict[str, Any]:
    """Return what a parser of a command is made with."""
    return {
        "description": command.ABOUT,
        "epilog": f"examples:\n{command.EXAMPLES}" if command.EXAMPLES else None,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def main_of(command: Command, program: str, argv: Sequence[str] | None = None) -> int:
    """Run a program on a command line (`sys.argv` by default), and return its exit code."""
    return run_program(program, command.work, parse_options(parser_of(command, program), argv))


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Return a command line's options; `--up -z` is read, which argparse takes for two options."""
    words = list(sys.argv[1:] if argv is None else argv)
    for place, word in enumerate(words[:-1]):
        if word == "--up" and _AXIS.fullmatch(words[place + 1]):
            words[place : place + 2] = [f"--up={words[place + 1]}"]
            break
    return parser.parse_args(words)


def add_run_options(parser: argparse._ActionsContainer, *, device: bool = True, json_output: bool = True) -> None:
    """Add `--verbose` and, where they apply, `--device` and `--json`."""
    if device:
        parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is any)")
    parser.add_argument("--verbose", action="store_true", help="log what the libraries do")
    if json_output:
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_gpu_option(parser: argparse._ActionsContainer) -> None:
    """Add `--gpu_nums`, for work on many items; `devices_of` reads it."""
    parser.add_argument(
        "--gpu_nums", type=int, metavar="N", help="use N GPUs (default -1: all, or the CPU where there is none)"
    )


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
    from sdf_vqvae.utils.jobs import devices_for
    from sdf_vqvae.utils.runtime import resolve_device

    return (str(resolve_device(options.device)),) if options.device else devices_for(options.gpu_nums)


def print_json(values: Mapping[str, Any], indent: int | None = 2) -> None:
    """Print a result as one JSON object; a line of its own without `indent`."""
    print(json.dumps(values, indent=indent, ensure_ascii=indent is not None))


def print_failures(failures: Sequence[str], rest: str) -> None:
    """Print the first failures, a line each, and how many more there are and where (`rest`)."""
    for failure in failures[:_MOST_SHOWN]:
        print(f"  {failure}")
    if len(failures) > _MOST_SHOWN:
        print(f"  and {len(failures) - _MOST_SHOWN} more: {rest}")


def print_stages(stages: Sequence[StageCost]) -> None:
    """Print time and peak memory of each stage as a table."""
    on_gpu = any(stage.peak_device_bytes for stage in stages)
    print(f"{'stage':<12}  {'seconds':>8}  {'host peak':>10}" + (f"  {'GPU peak':>10}" if on_gpu else ""))
    for stage in stages:
        line = f"{stage.name:<12}  {stage.seconds:>8.2f}  {stage.peak_host_bytes / 2**20:>6.0f} MiB"
        print(line + (f"  {stage.peak_device_bytes / 2**20:>6.0f} MiB" if on_gpu else ""))
    print("host peak: the whole process, up to the end of the stage")


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
    with contextlib.ExitStack() as stack:
        try:
            from sdf_vqvae.utils.progress import waiting
            from sdf_vqvae.utils.runtime import without_collector

            prepare(verbose=getattr(options, "verbose", False))
            stack.enter_context(waiting(f"{program}: starting", once=True))
            atexit.register(gc.freeze)  # a process that ends gives all memory back: its cycles need no search
            with without_collector():
                import torch  # noqa: F401 (every program stands on it: without it nothing else is worth saying)
        except (ImportError, OSError) as error:
            return say_unloadable(program, error)
        return _exit_code(program, work, options)


def _exit_code(program: str, work: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
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


def say_unloadable(program: str, error: ImportError | OSError) -> int:
    """Say that a library of the core is missing or broken, which stops every program, and return the exit code."""
    why = f"a library can't be loaded ({one_line(error)}): pip install {DISTRIBUTION}"
    print(f"{program.partition(' ')[0]}: error: {why}", file=sys.stderr)
    return USER_ERROR


def prepare(verbose: bool = False) -> None:
    """Set up logging and how threads wait; libraries that draw bars and log every request are quiet unless `verbose`.

    PyTorch's threads that wait for each other soon leave their cores to others, here and in what this process starts.
    By default they keep them: where anything else runs, everything takes twice as long or longer. Leaving at once
    (`OMP_WAIT_POLICY=PASSIVE`) would cost more than half where nothing else runs.
    """
    from sdf_vqvae.utils.runtime import setup_logging

    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # of 300,000; read once, when PyTorch is imported
    setup_logging(verbose)
    if verbose:
        return
    if not sys.warnoptions:  # nobody asked for them; ours are log records, and what libraries deprecate is theirs
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
    for name in ("gguf", "huggingface_hub", "httpx", "httpx2", "trimesh", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
