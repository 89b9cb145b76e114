"""A small grammar of wordings: templates with choices, written out in full and always in the same order.

    [is|'s] <it> flat?

`[a|b]` is a choice and may be nested, an empty part leaves it out (`[really|]`); `<it>` is one of the words that the
caller gives under that name, which may hold choices too; `{}` stays, for what a question claims. Knows text alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

_PART = re.compile(r"[\[\]|]|[^\[\]|]+")
_NAME = re.compile(r"<(\w+)>")
_Choices = list[str]


def expand(template: str, words: Mapping[str, str]) -> tuple[str, ...]:
    """Return all texts of a template, each once, in the order in which its choices are written.

    Args:
        template: see above.
        words: name in angle brackets -> choices, `this|it`.

    Raises:
        ValueError: brackets don't fit together, or a name is not among the words.
    """
    return _expanded(_with_words(template, words))


def _with_words(template: str, words: Mapping[str, str]) -> str:
    """Return a template with its names written out."""

    def chosen(match: re.Match[str]) -> str:
        if match[1] not in words:
            raise ValueError(f"{template!r}: no words are called {match[1]!r}, but {', '.join(words)}")
        return f"[{words[match[1]]}]"

    while (text := _NAME.sub(chosen, template)) != template:
        template = text
    return template


@lru_cache(maxsize=8192)
def _expanded(template: str) -> tuple[str, ...]:
    parts = _PART.findall(template)
    texts, place = _choices(parts, 0, template)
    if place != len(parts):
        raise ValueError(f"{template!r}: a bracket closes that was not opened")
    return tuple(dict.fromkeys(_tidy(text) for text in texts))


def _choices(parts: Sequence[str], place: int, template: str) -> tuple[_Choices, int]:
    """Return the texts of what stands up to a closing bracket or the end, and where that is."""
    every: _Choices = []
    row: list[_Choices] = []
    while place < len(parts) and parts[place] != "]":
        part = parts[place]
        if part == "|":
            every += _joined(row)
            row = []
        elif part == "[":
            inner, place = _choices(parts, place + 1, template)
            if place == len(parts):
                raise ValueError(f"{template!r}: a bracket does not close")
            row.append(inner)
        else:
            row.append([part])
        place += 1
    return every + _joined(row), place


def _joined(row: Sequence[_Choices]) -> _Choices:
    return ["".join(texts) for texts in itertools.product(*row)]


def _tidy(text: str) -> str:
    """Return text without the spaces that parts left out leave behind."""
    return re.sub(r" +([?,.!])", r"\1", " ".join(text.split()))
