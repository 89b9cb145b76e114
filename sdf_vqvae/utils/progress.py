"""How far a long loop is: a bar on a terminal; where there is none, a line in the log from time to time.

Knows nothing of what the loop does. A log that is read later, or by a batch system, has no terminal: a bar would fill
it with control characters, and nothing at all would leave the reader to guess whether the program still works.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

_FIRST_LINES = (10.0, 30.0, 60.0)
"""Seconds after which the first lines come."""
_LATER = 60.0, 600.0
"""Then a line every minute, and in runs of hours less often, down to one in ten minutes."""

Item = TypeVar("Item")


class Progress:
    """A count that people can watch, from `with Progress(...)` or until `close`.

    On a terminal it is a bar. Elsewhere it is a line in the log after 10, 30 and 60 seconds and then at growing
    intervals, also while one item takes long; a loop that ends sooner says nothing.

    Args:
        total: items of the whole loop; None if that is unknown.
        doing: what the loop does, in a word or two.
        unit: what an item is, in the singular.
        initial: items that were done before.
        shown: False for nothing at all: the processes of a distributed run but the first.
        leave: whether the bar stays on the screen at the end.
    """

    def __init__(
        self,
        total: int | None,
        doing: str,
        unit: str = "object",
        *,
        initial: int = 0,
        shown: bool = True,
        leave: bool = True,
    ) -> None:
        self.total, self.doing, self.unit, self.done = total, doing, unit, initial
        self._initial, self._start, self._said = initial, time.perf_counter(), False
        self._more: dict[str, Any] = {}
        self._bar = tqdm(
            total=total,
            desc=doing,
            unit=unit,
            initial=initial,
            leave=leave,
            file=sys.stderr,
            disable=None if shown else True,
        )
        self._over = threading.Event()
        self._lines: threading.Thread | None = None
        if shown and self._bar.disable:
            self._lines = threading.Thread(target=self._write_lines, name=f"progress of {doing}", daemon=True)
            self._lines.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1) -> None:
        """Count items that are done."""
        self.done += count
        self._bar.update(count)

    def say(self, **values: Any) -> None:
        """Show values beside the count from now on: a loss, an epoch."""
        self._more = values
        self._bar.set_postfix(values)

    def close(self) -> None:
        """End it; the log gets a last line if it had one before."""
        self._bar.close()
        if self._lines is not None and not self._over.is_set():
            self._over.set()
            self._lines.join()
            if self._said:
                logger.info("%s", self.in_words())

    @property
    def count(self) -> int:
        """Items that were done since the start, without those before."""
        return self.done - self._initial

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @property
    def seconds_left(self) -> float | None:
        """How much longer it takes at the pace so far; None while there is none, or no total."""
        if self.total is None or self.count < 1:
            return None
        return max(0, self.total - self.done) * self.seconds / self.count

    def in_words(self) -> str:
        """Return the line: `encode: 12 of 400 objects in 0:10, 1.2 a second, about 5:23 left`."""
        of = "" if self.total is None else f" of {self.total:,}"
        one = self.unit.isupper() or (self.total or self.done) == 1  # units of measure have no plural
        plural = self.unit if one else f"{self.unit}s"
        words = [f"{self.doing}: {self.done:,}{of} {plural} in {in_time(self.seconds)}"]
        count, seconds, left = self.count, self.seconds, self.seconds_left
        if count:
            words.append(f"{count / seconds:.1f} a second" if count > seconds else f"{seconds / count:.1f} s each")
        if left:
            words.append(f"about {in_time(left)} left")
        return ", ".join([*words, *(f"{name} {value}" for name, value in self._more.items())])

    def _write_lines(self) -> None:
        for moment in line_times():
            if self._over.wait(max(0.0, moment - self.seconds)):
                return
            self._said = True
            logger.info("%s", self.in_words())


def follow(
    items: Iterable[Item], doing: str, unit: str = "object", *, total: int | None = None, leave: bool = True
) -> Iterator[Item]:
    """Yield the items and show how many are done, as `Progress` does; an item is done when the next one is asked for.

    Args:
        items: what the loop is over; its length is taken where it has one.
        doing: what the loop does.
        unit: what an item is.
        total: how many there are, of an iterator.
        leave: whether the bar stays on the screen at the end.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(total, doing, unit, leave=leave) as progress:
        for item in items:
            yield item
            progress.update()


def line_times() -> Iterator[float]:
    """Yield the seconds after the start at which lines are due, without end."""
    yield from _FIRST_LINES
    moment, (shortest, longest) = _FIRST_LINES[-1], _LATER
    while True:
        moment += min(longest, max(shortest, moment / 10))
        yield moment


def in_time(seconds: float) -> str:
    """Return seconds as `0:07`, `12:40` or `3:01:00`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
