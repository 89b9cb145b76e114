"""What a trained model says about shapes, beside blind controls; also `vae-qwen3vl eval`."""

import argparse
import sys
from collections.abc import Sequence

from sdf_vqvae.utils.programs import main_of, parser_of
from vae_qwen3vl.commands import eval as eval_command

PROGRAM = "eval_3d_vl"


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    return parser_of(eval_command, PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return main_of(eval_command, PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
