"""Closed questions in a user's words, and questions that no shape can answer: what is asked, and what is right.

Made of the records of `make-questions`, whose wordings a split has for itself. Yes/no questions are asked of pairs of
objects in the same words; where a pair is broken (objects left out), means over the two answers keep yes alone at
half. Knows texts and their files; nothing of shapes or models.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.files import regular_file
from vae_qwen3vl.data.texts import pick, read_lines
from vae_qwen3vl.evaluation.free_answers import yes_or_no

YES_NO_KINDS = (
    *("is_longer", "is_taller", "is_flat", "is_symmetric", "has_hole", "is_one_piece"),
    *("is_furniture", "is_vehicle", "is_plant", "is_building", "is_body_part", "is_internal_organ"),
)
"""Kinds of `make-questions` whose answer is the object's own, yes or no."""
UNSEEN = "unseen"
"""The kind that asks for what a shape can't hold."""
USERS_KINDS = (*YES_NO_KINDS, UNSEEN)
LEAST_OBJECTS = 4
Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class UsersSet:
    """One kind of question in one language, an object each."""

    kind: str
    """Of `YES_NO_KINDS`, or the property that no shape shows."""
    language: str
    names: tuple[str, ...]
    """Ids of the objects that are asked."""
    questions: tuple[str, ...]
    yes: tuple[bool, ...]
    """Whether the answer is yes; empty where the question is to be declined."""
    answers: tuple[str, ...] = ()
    """What the records say for no and for yes."""

    @property
    def declined(self) -> bool:
        """Return whether the right answer is that the shape does not show it."""
        return not self.yes


def read_users_sets(names: Sequence[str], path: str | os.PathLike[str], *, seed: int = 0) -> list[UsersSet]:
    """Return what users ask about some objects; sets of fewer than four objects, or of one answer, are left out.

    Args:
        names: ids of the objects.
        path: a JSONL file of `make-questions`.
        seed: of the choice, where an object is asked the same thing in several wordings.

    Raises:
        ValueError: the file can't be read, or a line is damaged.
    """
    places = {name: number for number, name in enumerate(names)}
    groups: dict[tuple[str, str], dict[str, list[Record]]] = {}
    said: dict[tuple[str, str], dict[bool, str]] = {}
    for record in read_lines(regular_file(Path(path), "questions"), _users_record):
        if record is None:
            continue
        kind = record["unseen"] if record["kind"] == UNSEEN else record["kind"]
        if kind in YES_NO_KINDS:
            said.setdefault((kind, record["language"]), {}).setdefault(record["yes"], record["answer"])
        if record["sample_id"] in places:
            groups.setdefault((kind, record["language"]), {}).setdefault(record["sample_id"], []).append(record)
    order = (*YES_NO_KINDS, *sorted({kind for kind, _ in groups} - set(YES_NO_KINDS)))
    sets = []
    for kind, language in sorted(groups, key=lambda key: (order.index(key[0]), key[1])):
        own = groups[kind, language]
        asked = sorted(own, key=places.__getitem__)
        chosen = [own[name][pick(seed, kind, language, name) % len(own[name])] for name in asked]
        yes = tuple(record["yes"] for record in chosen) if kind in YES_NO_KINDS else ()
        if len(asked) < LEAST_OBJECTS or (yes and len(set(yes)) < 2):
            continue
        sets.append(
            UsersSet(
                kind=kind,
                language=language,
                names=tuple(asked),
                questions=tuple(record["question"] for record in chosen),
                yes=yes,
                answers=tuple(said[kind, language][which] for which in (False, True)) if yes else (),
            )
        )
    return sets


def _users_record(record: dict[str, Any]) -> Record | None:
    kind = record.get("kind")
    if kind not in USERS_KINDS:
        return None
    keys = ("kind", "sample_id", "question", "answer", "language", *(("unseen",) if kind == UNSEEN else ()))
    if not all(isinstance(record.get(key), str) for key in keys):
        raise ValueError(f"a question of a user has {', '.join(keys)}, all text")
    if kind == UNSEEN:
        return record
    yes = yes_or_no(record["answer"])
    if yes is None:
        raise ValueError(f"the answer to a question of the kind {kind!r} is yes or no, not {record['answer']!r}")
    return {**record, "yes": yes}
