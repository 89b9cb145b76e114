"""Yes/no questions: a table of what can be claimed of an object, `CLAIMS`, and of which others that is false.

They come in pairs, one right and one wrong, so that a model that always says yes is right for half of them; the wrong
one is another object's right one, so that what is asked about does not give the answer away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vae_qwen3vl.synthetic.anatomy import SIDES, SYSTEMS
from vae_qwen3vl.synthetic.known_object import KnownObject, category_of, shape_of, thing_of
from vae_qwen3vl.synthetic.wordings import LANGUAGES
from vae_qwen3vl.synthetic.words import COLLECTIONS, SHAPES, THINGS, with_article

if TYPE_CHECKING:
    import numpy as np

_TRIES = 400
_SMALL_WORDS = ("of", "the", "and", "with", "for", "in", "on")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something true of an object that a question can ask about, and of which others it is certainly false."""

    key: str
    """Equal claims have equal keys."""
    words: Mapping[str, str]
    """Language -> what stands in the question."""
    scope: str = ""
    """Only claims of one scope are exchanged."""
    excluded: frozenset[str] = frozenset()
    """A claim with one of these marks may be true of the object as well, or nearly."""
    marks: frozenset[str] = frozenset()


def is_name(known: KnownObject) -> Claim | None:
    """The thing that its name is; wrong ones are things of other groups that none of its texts mentions."""
    thing = thing_of(known)
    if thing is None:
        return None
    group, chinese = THINGS[thing]
    return Claim(
        key=thing,
        words={"en": with_article(thing), "zh": chinese},
        excluded=_words(*known.captions, known.name, *known.tags) | {f"group {group}"},
        marks=_words(thing) | {f"group {group}"},
    )


def is_category(known: KnownObject) -> Claim | None:
    """Its category; wrong ones are categories of its source that share no word with its name and tags."""
    words = category_of(known)
    if words is None:
        return None
    return Claim(
        key=known.category,
        words=words,
        scope=known.source,
        excluded=_words(known.name, *known.tags),
        marks=_words(known.category),
    )


def is_collection(known: KnownObject) -> Claim | None:
    """Its source; wrong ones are other sources."""
    names = COLLECTIONS.get(known.source)
    return None if names is None else Claim(key=names[0], words=dict(zip(LANGUAGES, names, strict=True)))


def is_organ(known: KnownObject) -> Claim | None:
    """Its anatomical name without its side; wrong ones are structures of organ systems that it is no part of."""
    structure = known.structure
    if structure is None or not structure.systems:
        return None
    chinese = structure.chinese or ""
    if structure.named_side:
        chinese = chinese.removeprefix(SIDES[structure.named_side]).removeprefix("侧")
    systems = frozenset(f"system {name}" for name in structure.systems)
    return Claim(
        key=structure.base,
        words={"en": structure.base, "zh": chinese},
        excluded=systems | _words(structure.base),
        marks=systems | _words(structure.base),
    )


def is_side(known: KnownObject) -> Claim | None:
    """Its side; the wrong one is the other."""
    side = known.structure.side if known.structure else None
    return None if side is None else Claim(key=side, words={"en": side, "zh": SIDES[side]})


def is_system(known: KnownObject) -> Claim | None:
    """Its organ system; wrong ones are systems that no word of its name belongs to."""
    systems = known.structure.systems if known.structure else ()
    if not systems:
        return None
    words = dict(zip(LANGUAGES, SYSTEMS[systems[0]], strict=True))
    return Claim(key=systems[0], words=words, excluded=frozenset(systems), marks=frozenset({systems[0]}))


def is_shape(known: KnownObject) -> Claim | None:
    """Flat, rod-like or compact (`shape_of`); wrong ones are the other two."""
    proportions = shape_of(known.facts)
    return (
        None if proportions is None else Claim(key=proportions, words={"en": proportions, "zh": SHAPES[proportions]})
    )


CLAIMS: dict[str, Callable[[KnownObject], Claim | None]] = {
    claim.__name__: claim for claim in (is_name, is_category, is_collection, is_organ, is_side, is_system, is_shape)
}


def certainly_false(claim: Claim, other: Claim) -> bool:
    """Return whether the other claim can't be true of the object that the first is about."""
    return other.key != claim.key and not (other.marks & claim.excluded)


def exchange(claims: Sequence[Claim], rng: np.random.Generator) -> list[int | None]:
    """Give each object the claim of another that is false of it; None where none was found.

    Each claim is given away once, so that it is asked as often with the answer no as with yes.
    """
    count = len(claims)
    given = rng.permutation(count)

    def fits(number: int, other: int) -> bool:
        return certainly_false(claims[number], claims[other])

    for number in range(count):
        if fits(number, given[number]):
            continue
        for place in rng.integers(count, size=_TRIES):
            better = fits(number, given[place]) and (fits(place, given[number]) or not fits(place, given[place]))
            if better:
                given[number], given[place] = given[place], given[number]
                break
    return [int(other) if fits(number, other) else None for number, other in enumerate(given)]


def _words(*texts: str) -> frozenset[str]:
    """Return the words of texts in small letters, plurals as singulars, small ones left out."""
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    return frozenset(word.removesuffix("s") for word in words if word not in _SMALL_WORDS)
