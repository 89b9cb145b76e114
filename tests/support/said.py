"""What a program said on standard error, apart from how long it waited: that depends on the machine."""

from __future__ import annotations


def without_waits(stderr: str) -> str:
    """Return the lines that `sdf_vqvae.utils.progress.waiting` did not write."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.endswith(" so far\n"))
