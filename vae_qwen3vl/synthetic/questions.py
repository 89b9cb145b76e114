"""Questions and answers about objects, made by rule from their records and from measures of their meshes.

Every answer is true by the record or by the measure; where neither decides, nothing is asked. Each rule says in its
docstring what it takes an answer from. Yes/no questions come in pairs, one right and one wrong, so that a model that
always says yes is right for half of them; the wrong one is another object's right one, so that what is asked about
does not give the answer away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from vae_qwen3vl.data.texts import as_sentence
from vae_qwen3vl.synthetic.anatomy import SIDES, SYSTEMS, Structure, organ_model, sentences_of, structure_of
from vae_qwen3vl.synthetic.words import (
    CATEGORIES,
    COLLECTIONS,
    MILLIMETRES,
    NO_CATEGORY,
    PACKS,
    TAGGED_PACKS,
    THINGS,
    VARIANT_WORDS,
)

if TYPE_CHECKING:
    from vae_qwen3vl.synthetic.mesh_facts import MeshFacts

Language = Literal["en", "zh"]
LANGUAGES: tuple[str, ...] = get_args(Language)
ANATOMY_SOURCES = ("hubmap", "totalseg")
_CLEARLY_LONGEST = 1.15
_FLAT, _ROD, _COMPACT = 0.2, 0.25, 0.7
_MOST_PIECES = 20
_MOST_RATIO = 50
_SENTENCES = 2
"""Of `anatomy`: so many sentences of an object's are asked for."""

Answers = dict[str, list[str]]
"""Language -> answers; several where there is more than one thing to say."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an object, with its answer."""

    id: str
    """The object."""
    kind: str
    language: str
    question: str
    answer: str

    def record(self) -> dict[str, str]:
        """Return a line of the records that `captions.read_records` reads."""
        return {
            "sample_id": self.id,
            "kind": self.kind,
            "language": self.language,
            "question": self.question,
            "answer": self.answer,
        }


@dataclass(frozen=True, kw_only=True)
class KnownObject:
    """What is known of an object: its record, as a pack has it, and measures of its mesh."""

    id: str
    """Under which datasets know it."""
    source: str
    name: str
    category: str
    captions: tuple[str, ...]
    tags: tuple[str, ...]
    key: str
    extent: float
    """Longest side in the source's units."""
    components: int
    """Connected parts of the mesh as published."""
    facts: MeshFacts
    structure: Structure | None = field(init=False)
    """What an organ's name says; None for everything else."""

    def __post_init__(self) -> None:
        """Read the name."""
        found = structure_of(self.name, self.key) if self.source in ANATOMY_SOURCES else None
        object.__setattr__(self, "structure", found)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], facts: MeshFacts, *, sample_id: str = "") -> KnownObject:
        """Read a record of a pack.

        Raises:
            ValueError: a field is missing or is something else.
        """
        texts = {name: record.get(name) for name in ("id", "name", "category", "key")}
        lists = {name: record.get(name) for name in ("captions", "tags")}
        for name, text in texts.items():
            if not isinstance(text, str) or (name in ("id", "name") and not text.strip()):
                raise ValueError(f"its {name!r} must be text, not {text!r}")
        for name, items in lists.items():
            if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
                raise ValueError(f"its {name!r} must be a list of texts, not {items!r}")
        extent, components = record.get("extent"), record.get("components")
        if not isinstance(extent, int | float) or isinstance(extent, bool) or not 0 < extent < 1e9:
            raise ValueError(f"its 'extent' must be a positive number, not {extent!r}")
        if type(components) is not int or components < 1:
            raise ValueError(f"its 'components' must be a positive integer, not {components!r}")
        return cls(
            id=sample_id or str(texts["id"]),
            source=str(texts["id"]).partition("/")[0],
            name=" ".join(str(texts["name"]).split()),
            category=str(texts["category"]).strip(),
            captions=tuple(item.strip() for item in record["captions"] if item.strip()),
            tags=tuple(item.strip() for item in record["tags"] if item.strip()),
            key=str(texts["key"]),
            extent=float(extent),
            components=components,
            facts=facts,
        )


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
    found = category_of(known)
    return {} if found is None else _both(as_sentence(found["en"]), found["zh"])


def collection(known: KnownObject, choice: int) -> Answers:
    """The source, from the id."""
    found = COLLECTIONS.get(known.source)
    return {} if found is None else _both(f"The {found[0]}.", found[1])


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
    found = known.structure
    return {} if found is None else _both(as_sentence(found.english), found.chinese)


def side(known: KnownObject, choice: int) -> Answers:
    """Left or right as the organ's name or its file says; nothing where they disagree."""
    found = known.structure.side if known.structure else None
    return {} if found is None else _both(as_sentence(found), f"{SIDES[found]}侧")


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
    found = shape_of(known.facts)
    return {} if found is None else _both(as_sentence(found), SHAPES[found])


def ratio(known: KnownObject, choice: int) -> Answers:
    """Longest by shortest side of the bounding box."""
    longest, shortest = max(known.facts.sides), min(known.facts.sides)
    if longest > _MOST_RATIO * shortest:
        return _both(f"More than {_MOST_RATIO} times.", f"超过 {_MOST_RATIO} 倍")
    text = _rounded(longest / shortest)
    return _both(f"About {text} times.", f"约 {text} 倍")


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
    found = sentences_of(known.structure, terms) if known.structure else []
    first = choice % max(1, len(found))
    return {"en": [as_sentence(text) for text in (found[first:] + found[:first])[:_SENTENCES]]} if found else {}


RULES: dict[str, Callable[[KnownObject, int], Answers]] = {
    rule.__name__: rule
    for rule in (
        *(describe, name, category, collection, part_of, organ, side, system),
        *(longest_side, shape, ratio, size, pieces),
    )
}
ANATOMY = anatomy.__name__

SHAPES = {"flat": "扁平", "rod-like": "细长", "compact": "紧凑"}


def shape_of(facts: MeshFacts) -> str | None:
    """Return what a bounding box with sides a <= b <= c is, or None.

    Flat: a <= c / 5 and b >= c / 2. Rod-like: b <= c / 4. Compact: a >= 0.7 c.
    """
    shortest, middle, longest = sorted(facts.sides)
    if shortest <= _FLAT * longest and middle >= longest / 2:
        return "flat"
    if middle <= _ROD * longest:
        return "rod-like"
    return "compact" if shortest >= _COMPACT * longest else None


def thing_of(known: KnownObject) -> str | None:
    """Return the entry of `THINGS` that a record's name is once variant words and numbers are dropped, or None."""
    if known.source in (*ANATOMY_SOURCES, "ldraw"):
        return None
    words = re.findall(r"[a-z]+", known.name.lower())
    bare = " ".join(word for word in words if len(word) > 1 and word not in VARIANT_WORDS)
    return bare if bare in THINGS else None


def category_of(known: KnownObject) -> dict[str, str] | None:
    """Return the category of a record in both languages (no Chinese: empty), where its source has several."""
    if known.source in NO_CATEGORY or not known.category:
        return None
    return {"en": known.category, "zh": CATEGORIES.get(known.category, "")}


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
