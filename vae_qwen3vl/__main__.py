"""`python -m vae_qwen3vl` is the console script `vae-qwen3vl`.

A library of the core that is missing or broken (PyTorch without its CUDA libraries, say) stops every command, even
`doctor`; this says so in one line.
"""

import sys
from collections.abc import Sequence

from sdf_vqvae.utils.programs import say_unloadable
from vae_qwen3vl.commands.main import PROGRAM
from vae_qwen3vl.commands.main import main as run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    try:
        return run(argv)
    except (ImportError, OSError) as error:  # a shared library that can't be loaded is an OSError
        return say_unloadable(PROGRAM, error)


if __name__ == "__main__":
    sys.exit(main())
