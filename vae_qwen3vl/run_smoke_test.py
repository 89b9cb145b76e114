"""Check that the whole path works on this machine; also `vae-qwen3vl smoke-test`."""

import argparse
import sys
from collections.abc import Sequence

from sdf_vqvae.utils.programs import main_of, parser_of
from vae_qwen3vl.commands import smoke_test

PROGRAM = "run_smoke_test"


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    return parser_of(smoke_test, PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return main_of(smoke_test, PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
