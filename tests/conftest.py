"""What every test shares: the reference data, where it is present, and a bounded number of threads."""

from __future__ import annotations

import os
from collections.abc import Callable
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


@pytest.fixture(scope="session")
def user_document() -> str:
    """The text of the user's document beside the repository; skips where absent."""
    folder = REPOSITORY.parent / "shared" / "brief"
    if not folder.is_dir():
        pytest.skip("needs the user's document, which is not part of the project (../shared/brief)")
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.iterdir()))


_COMMANDS = pytest.StashKey[list[tuple[str, int]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the list that `record_command` fills."""
    config.stash[_COMMANDS] = []


@pytest.fixture
def record_command(pytestconfig: pytest.Config) -> Callable[[str, int], None]:
    """Leave a documented command and its exit code for the end of the report."""
    return lambda command, code: pytestconfig.stash[_COMMANDS].append((command, code))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the documented commands that were run, with their exit codes."""
    if config.stash[_COMMANDS]:
        terminalreporter.section("documented commands and their exit codes")
        for command, code in config.stash[_COMMANDS]:
            terminalreporter.write_line(f"{code}  {command}")
