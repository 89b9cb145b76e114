"""CT scans with labels to masks, windows and organs; also `vae-qwen3vl ct`."""

import argparse
import sys
from collections.abc import Sequence

from sdf_vqvae.commands import ct
from sdf_vqvae.utils.programs import main_of, parser_of

PROGRAM = "process_m3d_seg_format.py"


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    return parser_of(ct, PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return main_of(ct, PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
