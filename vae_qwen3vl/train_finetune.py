"""Train the projector, and adapters of the language model, on shapes with words; also `vae-qwen3vl train`."""

import argparse
import sys
from collections.abc import Sequence

from sdf_vqvae.utils.programs import main_of, parser_of
from vae_qwen3vl.commands import train

PROGRAM = "train_finetune"


def make_parser() -> argparse.ArgumentParser:
    """Return the program's parser."""
    return parser_of(train, PROGRAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return main_of(train, PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
