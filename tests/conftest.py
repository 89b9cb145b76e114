"""What every test shares: the reference data, where it is present, and a bounded number of threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Tests run beside each other on small machines; set before PyTorch starts its thread pools.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference meshes, scans and parity numbers beside the repository; skips where absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the reference data, which is not part of the project (../shared/data)")
    return folder
