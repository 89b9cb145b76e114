"""What is known of an object that questions are made about: its record in a pack, and measures of its mesh.

Reads records; knows nothing of how they are asked about.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vae_qwen3vl.synthetic.anatomy import Structure, structure_of
from vae_qwen3vl.synthetic.words import CATEGORIES, NO_CATEGORY, THINGS, VARIANT_WORDS

if TYPE_CHECKING:
    from vae_qwen3vl.synthetic.mesh_facts import MeshFacts

ANATOMY_SOURCES = ("hubmap", "totalseg")
_FLAT, _ROD, _COMPACT = 0.2, 0.25, 0.7


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
        structure = structure_of(self.name, self.key) if self.source in ANATOMY_SOURCES else None
        object.__setattr__(self, "structure", structure)

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
