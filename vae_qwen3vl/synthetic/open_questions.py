"""Questions with an answer of their own, by rule: a table of kinds, `RULES`, and what each takes its answer from.

Every answer is true by the record or by a measure of the mesh; where neither decides, nothing is asked. A new kind is
a function in `RULES` and its phrases in `phrases.PHRASES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from vae_qwen3vl.data.texts import as_sentence
from vae_qwen3vl.synthetic.anatomy import SIDES, SYSTEMS, organ_model, sentences_of
from vae_qwen3vl.synthetic.classes import head_of, use_of
from vae_qwen3vl.synthetic.known_object import (
    ANATOMY_SOURCES,
    KnownObject,
    category_of,
    shape_of,
    thing_of,
)
from vae_qwen3vl.synthetic.words import CATEGORIES, COLLECTIONS, MILLIMETRES, PACKS, SHAPES, TAGGED_PACKS, THINGS

_FOUR_LEGGED = ("horse", "cow", "pig", "cat", "dog", "sheep", "fox", "alpaca", "donkey", "elephant", "deer")
_WITH_LEGS = ("armchair", "bed", "bench", "chair", "couch", "desk", "nightstand", "sofa", "stool", "table")
_KITS = ("Restaurant Bits",)
"""Packs whose tables are parts of larger ones."""
_NUMBERS = {
    2: ("two", "两"),
    3: ("three", "三"),
    4: ("four", "四"),
    5: ("five", "五"),
    6: ("six", "六"),
    7: ("seven", "七"),
    8: ("eight", "八"),
}
_CLEARLY_LONGEST = 1.15
_MOST_PIECES = 20
_MOST_RATIO = 50
_SENTENCES = 2
"""Of `anatomy`: so many sentences of an object's are asked for."""

Answers = dict[str, list[str]]
"""Language -> answers; several where there is more than one thing to say."""


# -- rules: an object, and a number that chooses among equally true things -> answers ------------------------------


def describe(known: KnownObject, choice: int) -> Answers:
    """One of the record's captions; in Chinese its thing and category, or its organ, if the tables have them."""
    answers: Answers = {}
    if known.captions:
        answers["en"] = [as_sentence(known.captions[choice % len(known.captions)])]
    thing, category = thing_of(known), category_of(known)
    if thing and category and category["zh"]:
        answers["zh"] = [f"{THINGS[thing][1]}，属于“{category['zh']}”类别。"]
    elif known.structure and known.structure.chinese:
        answers["zh"] = [f"{known.structure.chinese}的三维表面。"]
    return answers


def name(known: KnownObject, choice: int) -> Answers:
    """The record's name, without the number of the variant; organs are asked for by `organ`."""
    if known.source in ANATOMY_SOURCES:
        return {}
    answers = {"en": [as_sentence(_without_variant(known))]}
    thing = thing_of(known)
    return answers | ({"zh": [f"{THINGS[thing][1]}。"]} if thing else {})


def category(known: KnownObject, choice: int) -> Answers:
    """The record's category, where its source has several."""
    words = category_of(known)
    return {} if words is None else _both(as_sentence(words["en"]), words["zh"])


def collection(known: KnownObject, choice: int) -> Answers:
    """The source, from the id."""
    names = COLLECTIONS.get(known.source)
    return {} if names is None else _both(f"The {names[0]}.", names[1])


def part_of(known: KnownObject, choice: int) -> Answers:
    """The pack a game model was published in (category or tag), the organ model an organ's tag names."""
    if known.source == "hubmap":
        model = organ_model(known.tags)
        return {} if model is None else _both(as_sentence(model[0]), model[1])
    if known.source in PACKS:
        pack = known.category
    elif known.source in TAGGED_PACKS and len(known.tags) == 1:
        pack = known.tags[0]
    else:
        return {}
    maker = COLLECTIONS[known.source]
    chinese = CATEGORIES.get(pack)
    return _both(f'"{pack}", a set of the {maker[0]}.', f"{maker[1]}中的“{chinese}”" if chinese else None)


def organ(known: KnownObject, choice: int) -> Answers:
    """The anatomical name of the record, with its side first where it has one."""
    structure = known.structure
    return {} if structure is None else _both(as_sentence(structure.english), structure.chinese)


def side(known: KnownObject, choice: int) -> Answers:
    """Left or right as the organ's name or its file says; nothing where they disagree."""
    which = known.structure.side if known.structure else None
    return {} if which is None else _both(as_sentence(which), f"{SIDES[which]}侧")


def system(known: KnownObject, choice: int) -> Answers:
    """The organ system that the words of the organ's name belong to."""
    systems = known.structure.systems if known.structure else ()
    return {} if not systems else _both(f"The {SYSTEMS[systems[0]][0]}.", SYSTEMS[systems[0]][1])


def longest_side(known: KnownObject, choice: int) -> Answers:
    """Width (x), height (y) or depth (z) of the bounding box, where it exceeds the others by 15 %."""
    sides = known.facts.sides
    order = sorted(range(3), key=lambda axis: -sides[axis])
    if sides[order[0]] < _CLEARLY_LONGEST * sides[order[1]]:
        return {}
    return _both(*(("Its width.", "宽度"), ("Its height.", "高度"), ("Its depth.", "深度"))[order[0]])


def shape(known: KnownObject, choice: int) -> Answers:
    """Flat, rod-like or compact by the ratios of the bounding box's sides, see `shape_of`."""
    proportions = shape_of(known.facts)
    return {} if proportions is None else _both(as_sentence(proportions), SHAPES[proportions])


def ratio(known: KnownObject, choice: int) -> Answers:
    """Longest by shortest side of the bounding box."""
    longest, shortest = max(known.facts.sides), min(known.facts.sides)
    if longest > _MOST_RATIO * shortest:
        return _both(f"More than {_MOST_RATIO} times.", f"超过 {_MOST_RATIO} 倍")
    text = _rounded(longest / shortest)
    return _both(f"About {text} times.", f"约 {text} 倍")


def long_to_wide(known: KnownObject, choice: int) -> Answers:
    """The longer by the shorter horizontal side of the bounding box, whichever way it is turned about its height."""
    width, _, depth = known.facts.sides
    longer, shorter = max(width, depth), min(width, depth)
    if longer > _MOST_RATIO * shorter:
        return _both(f"More than {_MOST_RATIO} times as long as wide.", f"长是宽的 {_MOST_RATIO} 倍以上")
    text = _rounded(longer / shorter)
    if text in ("1.0", "1.1"):
        return _both("About as long as wide.", "长和宽差不多")
    return _both(f"About {text} times as long as wide.", f"长约是宽的 {text} 倍")


def legs(known: KnownObject, choice: int) -> Answers:
    """The feet that a piece of furniture stands on, and of a four-legged animal whose four feet are apart."""
    feet = known.facts.feet
    if feet is None:
        return {}
    if thing_of(known) in _FOUR_LEGGED:
        return _both("Four legs.", "四条腿") if feet == 4 else {}
    if head_of(known) not in _WITH_LEGS or known.category in _KITS:
        return {}
    return _both(f"{_NUMBERS[feet][0].capitalize()} legs.", f"{_NUMBERS[feet][1]}条腿")


def used_for(known: KnownObject, choice: int) -> Answers:
    """What a thing of its name is for, what an organ does; by tables (`classes.use_of`)."""
    use = use_of(known)
    return {} if use is None else {"en": [use[0]], "zh": [use[1]]}


def size(known: KnownObject, choice: int) -> Answers:
    """The record's extent in millimetres, for sources with true units.

    An organ is as long as its surface, which may be cut off where the scan ends.
    """
    unit = MILLIMETRES.get(known.source)
    if unit is None:
        return {}
    text = _rounded(known.extent * unit)
    return _both(f"About {text} mm.", f"约 {text} 毫米")


def pieces(known: KnownObject, choice: int) -> Answers:
    """Connected parts of the surface, where the record and the stored mesh agree on their number."""
    count = known.facts.pieces
    if count != known.components:
        return {}
    if count > _MOST_PIECES:
        return _both(f"More than {_MOST_PIECES} pieces.", f"{_MOST_PIECES} 个以上")
    return _both("One piece." if count == 1 else f"{count} pieces.", f"{count} 个")


def anatomy(known: KnownObject, choice: int, terms: Mapping[str, Sequence[str]]) -> Answers:
    """Sentences of a table of anatomical terms about this structure and side, word for word, in English."""
    sentences = sentences_of(known.structure, terms) if known.structure else []
    first = choice % max(1, len(sentences))
    return (
        {"en": [as_sentence(text) for text in (sentences[first:] + sentences[:first])[:_SENTENCES]]}
        if sentences
        else {}
    )


RULES: dict[str, Callable[[KnownObject, int], Answers]] = {
    rule.__name__: rule
    for rule in (
        *(describe, name, category, collection, part_of, organ, side, system),
        *(longest_side, shape, ratio, long_to_wide, size, pieces, legs, used_for),
    )
}
ANATOMY = anatomy.__name__


def _without_variant(known: KnownObject) -> str:
    """Return a name without numbers and single letters at its end; LDraw's have meaning."""
    words = known.name.split()
    while known.source != "ldraw" and len(words) > 1 and re.fullmatch(r"\d+|[A-Za-z]", words[-1]):
        words.pop()
    return " ".join(words)


def _both(english: str, chinese: str | None) -> Answers:
    return {"en": [english]} | ({"zh": [f"{chinese}。"]} if chinese else {})


def _rounded(value: float) -> str:
    """Return a number as people say it: one decimal below ten."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
