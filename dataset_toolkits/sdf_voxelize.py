"""Meshes with captions to a dataset of sparse signed distance fields; also `vae-qwen3vl voxelize`."""

import argparse
import sys
from collections.abc import Sequence

from sdf_vqvae.commands import voxelize
from sdf_vqvae.utils.programs import main_of, parser_of

PROGRAM = "sdf_voxelize.py"


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    return parser_of(voxelize, PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return main_of(voxelize, PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
