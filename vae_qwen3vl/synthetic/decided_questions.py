"""Yes/no questions that a rule decides for an object by itself: a table of kinds, `DECIDED`.

As many objects where the answer is yes are asked as where it is no, of the same source and in the same words: neither
the question nor where the object is from tells the answer. Where the rule does not decide, nothing is asked. A new
kind is a function here and its wordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic.classes import CLASSES
from vae_qwen3vl.synthetic.known_object import KnownObject

_CLEARLY = 1.15
_FLAT, _NOT_FLAT = 0.2, 0.4


def is_mirrored(known: KnownObject) -> bool | None:
    """Whether its left half (along x) mirrors its right half, by points of its surface."""
    return known.facts.mirrored


def is_taller(known: KnownObject) -> bool | None:
    """Whether its height exceeds both of its horizontal sides by 15 %, or both of them exceed it."""
    width, height, depth = known.facts.sides
    if height >= _CLEARLY * max(width, depth):
        return True
    return False if _CLEARLY * height <= min(width, depth) else None


def is_longer(known: KnownObject) -> bool | None:
    """Whether its longer horizontal side exceeds its height by 15 %, or is exceeded by it."""
    width, height, depth = known.facts.sides
    if max(width, depth) >= _CLEARLY * height:
        return True
    return False if _CLEARLY * max(width, depth) <= height else None


def is_flat(known: KnownObject) -> bool | None:
    """Flat as `shape_of` has it (shortest side up to a fifth of the longest); not from two fifths on."""
    shortest, middle, longest = sorted(known.facts.sides)
    if shortest <= _FLAT * longest and middle >= longest / 2:
        return True
    return False if shortest >= _NOT_FLAT * longest else None


def is_symmetric(known: KnownObject) -> bool | None:
    """Whether it mirrors itself in any plane through its middle, see `MeshFacts.symmetric`."""
    return known.facts.symmetric


def has_hole(known: KnownObject) -> bool | None:
    """Whether a hole goes through it (a ring or a handle has one, a vase none), see `MeshFacts.holes`."""
    return None if known.facts.holes is None else known.facts.holes > 0


def is_one_piece(known: KnownObject) -> bool | None:
    """Whether its surface is connected, where the record and the stored mesh agree on the number of pieces."""
    return known.components == 1 if known.facts.pieces == known.components else None


DECIDED: dict[str, Callable[[KnownObject], bool | None]] = {
    **{
        rule.__name__: rule
        for rule in (is_mirrored, is_taller, is_longer, is_flat, is_symmetric, has_hole, is_one_piece)
    },
    **CLASSES,
}


def balanced_pairs(objects: Sequence[KnownObject], kind: str, seed: int) -> list[tuple[KnownObject, KnownObject]]:
    """Return pairs of an object where the answer is no and one where it is yes, each object in one at most.

    Both are of one category as far as there are such, then of one source; of two sources only where the kind asks
    what sort of thing it is.

    Args:
        objects: in any order.
        kind: of `DECIDED`.
        seed: of which ones are paired.
    """
    order = sorted(objects, key=lambda known: (pick(seed, kind, known.id), known.id))
    left: tuple[list[KnownObject], list[KnownObject]] = ([], [])
    for known in order:
        answer = DECIDED[kind](known)
        if answer is not None:
            left[answer].append(known)
    alike: list[Callable[[KnownObject], str]] = [
        lambda known: f"{known.source}/{known.category}",
        lambda known: known.source,
    ]
    pairs: list[tuple[KnownObject, KnownObject]] = []
    for group in (*alike, *([lambda known: ""] if kind in CLASSES else [])):
        more, left = _paired(left, group)
        pairs += more
    return pairs


def _paired(
    left: tuple[list[KnownObject], list[KnownObject]], group: Callable[[KnownObject], str]
) -> tuple[list[tuple[KnownObject, KnownObject]], tuple[list[KnownObject], list[KnownObject]]]:
    """Return pairs within groups, and what is left of both sides, in the same order."""
    pairs = []
    for name in sorted({group(known) for known in left[True]}):
        pairs += list(zip(*([known for known in side if group(known) == name] for side in left), strict=False))
    taken = {known.id for pair in pairs for known in pair}
    no, yes = ([known for known in side if known.id not in taken] for side in left)
    return pairs, (no, yes)
