"""Train a tokenizer; also `vae-qwen3vl train-tokenizer`."""

import argparse
import sys
from collections.abc import Sequence

from sdf_vqvae.commands import train_tokenizer
from sdf_vqvae.utils.programs import main_of, parser_of

PROGRAM = "train_tokenizer"


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    return parser_of(train_tokenizer, PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return main_of(train_tokenizer, PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
