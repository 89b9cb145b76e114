"""`python -m vae_qwen3vl` is the console script `vae-qwen3vl`.

A library of the core that is missing or broken (PyTorch without its CUDA libraries, say) stops every command, even
`doctor`; this says so in one line.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    from vae_qwen3vl.commands.main import main as run

    try:
        return run(argv)
    except (ImportError, OSError) as error:  # a shared library that can't be loaded is an OSError
        why = " ".join(str(error).split())
        print(f"vae-qwen3vl: error: a library can't be loaded ({why}): pip install vae-qwen3vl", file=sys.stderr)  # noqa: T201
        return 2


if __name__ == "__main__":
    sys.exit(main())
