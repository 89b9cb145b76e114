"""Long loops say how far they are, on a terminal and in a log."""

from __future__ import annotations

import itertools
import logging
import sys
import time

import pytest

from sdf_vqvae.utils import progress
from sdf_vqvae.utils.progress import Progress, follow, in_time, line_times, waiting


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Lines come after hundredths of a second instead of tens of seconds."""
    monkeypatch.setattr(progress, "_FIRST_LINES", (0.02, 0.06))
    monkeypatch.setattr(progress, "_LATER", (0.05, 0.05))
    monkeypatch.setattr(progress, "_waits", progress._Waits())  # none of another test's
    caplog.set_level(logging.INFO, "sdf_vqvae.utils.progress")
    return caplog


def test_a_log_without_a_terminal_gets_lines_with_count_pace_and_time_left(soon, capfd):
    for _ in follow(range(6), "encode"):
        time.sleep(0.03)
    *lines, last = soon.messages
    assert len(lines) >= 2
    assert all(line.startswith("encode: ") and " of 6 objects in 0:00" in line for line in lines)
    assert any("a second, about 0:00 left" in line for line in lines)
    assert last.startswith("encode: 6 of 6 objects in 0:00")
    assert capfd.readouterr().err == ""  # no bar, whose control characters would fill a log


def test_one_item_that_takes_long_does_not_silence_the_log(soon):
    with Progress(2, "cases", "case"):
        time.sleep(0.1)
    assert any(line.startswith("cases: 0 of 2 cases in 0:00") for line in soon.messages)


def test_a_short_loop_says_nothing(caplog):
    caplog.set_level(logging.INFO)
    assert list(follow(iter("abc"), "read", total=3)) == ["a", "b", "c"]
    assert caplog.messages == []


def test_a_loop_that_fails_or_is_left_ends_its_lines(soon):
    with pytest.raises(ZeroDivisionError), Progress(1, "divide"):
        raise ZeroDivisionError
    following = follow(range(100), "search")
    next(following)
    following.close()
    said = len(soon.messages)
    time.sleep(0.1)
    assert len(soon.messages) == said


def test_processes_but_the_first_say_nothing(soon):
    with Progress(5, "train", "step", shown=False):
        time.sleep(0.1)
    assert soon.messages == []


def test_of_waits_inside_each_other_the_innermost_is_told(soon):
    with waiting("start", once=True):
        time.sleep(0.1)
        with waiting("pack"):
            with waiting("load"):
                time.sleep(0.1)
            time.sleep(0.1)
        time.sleep(0.1)
    names = [line.split(":")[0] for line in soon.messages]
    assert [name for name, _ in itertools.groupby(names)] == ["start", "load", "pack"]
    assert all(line.endswith(": 0:00 so far") for line in soon.messages)


def test_inside_a_loop_the_loop_alone_is_told(soon):
    @waiting("load")
    def load():
        time.sleep(0.1)

    with waiting("start"), Progress(2, "encode") as shown:
        load()
        shown.update(2)
    assert {line.split(":")[0] for line in soon.messages} == {"encode"}
    soon.clear()
    load()
    assert soon.messages[0] == "load: 0:00 so far"


def test_a_terminal_gets_a_bar_and_no_lines(soon, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(4, "encode") as shown:
        shown.update(4)
        shown.say(loss="0.5")
        time.sleep(0.1)
    drawn = capsys.readouterr().err
    assert "encode: 100%" in drawn
    assert "4/4" in drawn
    assert soon.messages == []


def test_what_is_left_follows_the_pace_of_this_run_alone(monkeypatch):
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    shown = Progress(1_030, "train", "step", initial=1_000, shown=False)
    shown.update(10)
    shown.say(loss="0.5")
    assert shown.in_words() == "train: 1,010 of 1,030 steps in 1:00, 12.0 s each, about 6:00 left, loss 0.5"


def test_lines_grow_rare():
    times = line_times()
    assert [next(times) for _ in range(5)] == [2, 10, 30, 60, 120]
    day = [moment for moment in (next(times) for _ in range(200)) if moment < 86_400]
    assert 100 < len(day) < 200
    assert max(b - a for a, b in itertools.pairwise(day)) == pytest.approx(600)


def test_times_read_like_a_clock():
    assert [in_time(seconds) for seconds in (0.2, 9.6, 59.7, 754, 10_860)] == [
        "0:00",
        "0:10",
        "1:00",
        "12:34",
        "3:01:00",
    ]
