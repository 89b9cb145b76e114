"""Whatever is done to a file, its reader returns or raises a ValueError or an OSError of one line, and soon."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from damages import damages
from valid_files import targets, write_input

SECONDS = 5
"""Longest time of one small file, on a slow core."""


TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_that_fuzzing_starts_from_are_valid(tmp_path: Path, name: str) -> None:
    suffix, seeds, read = TARGETS[name]
    for seed in seeds:
        read(write_input(tmp_path, suffix, seed))


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, name: str) -> None:
    suffix, seeds, read = TARGETS[name]

    @settings(
        max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(data=damages(seeds, suffix))
    def check(data: bytes) -> None:
        path = write_input(tmp_path, suffix, data)
        started = time.perf_counter()
        try:
            read(path)
        except (ValueError, OSError) as error:
            assert "\n" not in str(error)
            assert path.name in str(error)
        assert time.perf_counter() - started < SECONDS

    check()
