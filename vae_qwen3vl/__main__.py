"""`python -m vae_qwen3vl` is the console script `vae-qwen3vl`."""

import sys

from vae_qwen3vl.cli import main

if __name__ == "__main__":
    sys.exit(main())
