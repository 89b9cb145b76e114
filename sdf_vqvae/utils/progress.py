"""How far a long loop is: a bar on a terminal; where there is none, a line in the log from time to time.

What has no count (loading, one object's encoding) gets such lines on both. Knows nothing of what is done. A log that
is read later, or by a batch system, has no terminal: a bar would fill it with control characters, and nothing at all
would leave the reader to guess whether the program still works.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

_FIRST_LINES = (2.0, 10.0, 30.0, 60.0)
"""Seconds after which the first lines come."""
_LATER = 60.0, 600.0
"""Then a line every minute, and in runs of hours less often, down to one in ten minutes."""

Item = TypeVar("Item")


class _Lines:
    """A line in the log from time to time, from each `start` to the next `stop`; with `once`, to the first `stop`."""

    def __init__(self, words: Callable[[], str], *, once: bool = False) -> None:
        self._words, self._once = words, once
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.said = False

    def start(self) -> None:
        """Begin; the first line is due after two seconds."""
        if self._once and self._over.is_set():
            return
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, args=(self._over,), name="progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write no more lines."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, over: threading.Event) -> None:
        start = time.perf_counter()
        for moment in line_times():
            if over.wait(max(0.0, moment - (time.perf_counter() - start))):
                return
            self.said = True
            logger.info("%s", self._words())


class _Waits:
    """What is waited for now, the innermost last: it alone is told, and a loop that people watch tells itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack: list[_Lines | None] = []

    @contextlib.contextmanager
    def inside(self, lines: _Lines | None) -> Iterator[None]:
        """Tell of this in place of what is outside; None stands for a loop."""
        with self._lock:
            self._tell(False)
            self._stack.append(lines)
            self._tell(True)
        try:
            yield
        finally:
            with self._lock:
                self._tell(False)
                self._stack.remove(lines)
                self._tell(True)

    def _tell(self, begin: bool) -> None:
        innermost = self._stack[-1] if self._stack else None
        if innermost is not None and None not in self._stack:
            (innermost.start if begin else innermost.stop)()


_waits = _Waits()


@contextlib.contextmanager
def waiting(doing: str, *, once: bool = False) -> Iterator[None]:
    """Write a line after 2, 10, 30 and 60 seconds and then at growing intervals while something is waited for.

    Of waits inside each other the innermost is told; inside a loop with `Progress`, none.

    Args:
        doing: what is done, without an end that could be counted.
        once: whether it is over as soon as something inside begins.
    """
    start = time.perf_counter()
    with _waits.inside(_Lines(lambda: f"{doing}: {in_time(time.perf_counter() - start)} so far", once=once)):
        yield


class Progress:
    """A count that people can watch, from `with Progress(...)` or until `close`.

    On a terminal it is a bar. Elsewhere it is a line in the log after 2, 10, 30 and 60 seconds and then at growing
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
        self._initial, self._start = initial, time.perf_counter()
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
        self._until_closed = contextlib.ExitStack()
        if shown:
            self._until_closed.enter_context(_waits.inside(None))
        self._lines = _Lines(self.in_words) if shown and self._bar.disable else None
        if self._lines is not None:
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
        self._until_closed.close()
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.stop()
            if lines.said:
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
