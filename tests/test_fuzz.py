"""Whatever is done to a file, its reader returns or raises a ValueError or an OSError of one line, and soon."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from file_edits import edit
from valid_files import targets, write_input

SECONDS = 5
"""Longest time of one small file, on a slow core."""


TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_that_fuzzing_starts_from_are_valid(tmp_path: Path, name: str) -> None:
    suffix, seeds, read = TARGETS[name]
    for seed in seeds:
        read(write_input(tmp_path, suffix, seed))


@st.composite
def damages(draw: st.DrawFn, seeds: list[bytes], suffix: str) -> bytes:
    """Draw a file with some damage: bits flipped, cut short, parts moved or repeated, values edited."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["edit", "edit", "edit", "flip", "cut", "splice", "remove", "number"]))
        if kind == "edit":
            data = edit(suffix, data, random.Random(draw(st.integers(0, 2**32))))
        elif kind == "flip" and data:
            data = data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place]
        elif kind == "splice":
            start = draw(st.integers(0, len(data)))
            data = data[:place] + data[start : start + draw(st.integers(1, 64))] + data[place:]
        elif kind == "remove":
            data = data[:place] + data[place + draw(st.integers(1, 16)) :]
        else:
            number = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0"]))
            data = data[:place] + number + data[place + 4 :]
    return data


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
