"""What is known of objects like one, as words in front of a question; and which of it a draw of training shows.

Retrieval-augmented answers: the nearest objects of an index lend their words, with how alike the shapes are, and the
language model reads them beside the shape. In training an object never lends itself words, some draws show none, and
some show those of another object, so that what does not fit the shape is not believed. Knows words and a file of
them; who is near is found elsewhere (`search.neighbors`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sdf_vqvae.utils.files import regular_file, write_json_lines
from sdf_vqvae.utils.strict_files import parse_json

NEIGHBORS = "neighbors.jsonl"
"""Name of the file beside a folder's codes."""
MOST_NEIGHBORS = 4
"""That are told of."""
SHOWN_SHARE, WRONG_SHARE = 0.5, 0.2
"""Of the draws of training: how many show any, and how many of these show another object's."""
_FORMAT = "vae-qwen3vl-neighbors/1"


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """An object that is like another."""

    words: str
    """What it is called."""
    likeness: float
    """Cosine of the two shapes' vectors."""


Neighbors = tuple[Neighbor, ...]
Draw = Callable[..., int]
"""Parts -> a number below 2^64 that is the same for the same parts, see `texts.pick`."""


def told_of(neighbors: Iterable[Neighbor]) -> str:
    """Return what is said of them: `Similar objects: chair (0.93), stool (0.81)`."""
    return "Similar objects: " + ", ".join(f"{one.words} ({one.likeness:.2f})" for one in neighbors)


def with_neighbors(question: str, neighbors: Sequence[Neighbor]) -> str:
    """Return a question behind what is said of them, a line of its own; alone where there are none."""
    return f"{told_of(neighbors)}\n{question}" if neighbors else question


def distinct_words(neighbors: Iterable[Neighbor], most: int = MOST_NEIGHBORS) -> Neighbors:
    """Return the nearest ones of those given best first, each wording once."""
    first: dict[str, Neighbor] = {}
    for one in neighbors:
        if one.words.strip():
            first.setdefault(one.words.casefold(), one)
    return tuple(first.values())[:most]


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """Which neighbors are shown with an object."""

    known: Mapping[str, Neighbors]
    """Object -> those it has, itself and its copies not among them."""
    shown_share: float = SHOWN_SHARE
    wrong_share: float = WRONG_SHARE

    def always_right(self) -> LookUp:
        """Return what shows every object its own: for validation."""
        return replace(self, shown_share=1.0, wrong_share=0.0)

    def __call__(self, name: str, draw: Draw) -> Neighbors:
        """Return what a draw shows with an object: nothing, its own neighbors or, on purpose, another object's."""
        if draw("look-up") >= self.shown_share * 2**64:
            return ()
        if draw("wrong look-up") < self.wrong_share * 2**64:
            return self.of_another(name, draw("whose"))
        return self.known.get(name, ())

    def of_another(self, name: str, number: int) -> Neighbors:
        """Return the neighbors of another object, which a number chooses; nothing where there is no other one."""
        names = list(self.known)
        at = number % max(1, len(names))
        others = (self.known[other] for other in (*names[at:], *names[:at]) if other != name)
        return next(others, ())


def write_neighbors(
    path: str | os.PathLike[str], about: Mapping[str, object], known: Mapping[str, Neighbors]
) -> None:
    """Write a file of neighbors: a line of what they were found with, then a line an object."""
    lines = (
        {"id": name, "neighbors": [[one.words, round(one.likeness, 4)] for one in own]} for name, own in known.items()
    )
    write_json_lines(path, [{"format": _FORMAT, **about}, *lines], ensure_ascii=False)


def read_neighbors(path: str | os.PathLike[str]) -> tuple[dict[str, object], dict[str, Neighbors]]:
    """Return what neighbors were found with, and each object's.

    Raises:
        ValueError: the file is none of neighbors, or damaged.
    """
    lines = regular_file(path, "file of neighbors").read_text(encoding="utf-8").splitlines()
    try:
        about = dict(parse_json(lines[0]))
        if about.pop("format") != _FORMAT:
            raise ValueError("another format")
        known = {}
        for line in lines[1:]:
            record = parse_json(line)
            pairs = record["neighbors"]
            known[str(record["id"])] = tuple(
                Neighbor(words=str(words), likeness=float(near)) for words, near in pairs
            )
    except (IndexError, KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no file of neighbors: delete it, and it is made anew") from error
    return about, known
