"""Questions whose answers are one of a known set: what classification asks, one set a kind of question.

Made of the records that `make-questions` writes, for the objects that are evaluated and for those of training, whose
answers are candidates too. Knows texts; nothing of shapes or models.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdf_vqvae.utils.files import regular_file
from vae_qwen3vl.data.texts import pick, read_lines

OPEN_KINDS = ("describe", "name", "ratio", "size", "anatomy")
"""Kinds whose answers are sentences or numbers without end."""
MERGED_KINDS = ("organ",)
"""Kinds in which left and right count as one answer; the side has questions of its own."""
LEAST_OBJECTS = 5
Question = Mapping[str, Any]
"""A record with kind, sample_id, question and answer."""
_LANGUAGE = "en"
_SIDE = re.compile(r"^(left|right) ", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ClosedSet:
    """The questions of one kind, an object each, and what may be answered."""

    kind: str
    names: tuple[str, ...]
    """Ids of the objects that are asked."""
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    """The right one of each object."""
    candidates: tuple[str, ...]
    """All answers of this kind, of training's records and of these; yes and no where the kind asks for that."""
    known: Mapping[str, int]
    """How often each occurs among training's records; empty where there are none."""

    @property
    def groups(self) -> list[str]:
        """Return what each candidate counts as: itself, or for organs its name without the side."""
        return [group_of(self.kind, candidate) for candidate in self.candidates]


def group_of(kind: str, answer: str) -> str:
    """Return what an answer counts as."""
    if kind not in MERGED_KINDS:
        return answer
    bare = _SIDE.sub("", answer)
    return bare[:1].upper() + bare[1:]


def closed_sets(
    asked: Sequence[Question], names: Sequence[str], known: Sequence[Question] = (), *, seed: int = 0
) -> list[ClosedSet]:
    """Return the closed sets of questions about some objects, kinds with fewer than five objects left out.

    Of several English questions of a kind about an object, one is chosen, always the same for the same seed.

    Args:
        asked: of `closed_questions`, about the objects.
        names: ids of the objects.
        known: the same about the objects of training.
        seed: of the choice.
    """
    wanted = set(names)
    found: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for record in asked:
        if record["sample_id"] in wanted:
            own = found.setdefault(record["kind"], {}).setdefault(record["sample_id"], [])
            own.append((record["question"], record["answer"]))
    of_training: dict[str, Counter[str]] = {}
    for record in known:
        of_training.setdefault(record["kind"], Counter())[record["answer"]] += 1
    made = []
    for kind, by_name in sorted(found.items()):
        if len(by_name) < LEAST_OBJECTS:
            continue
        order = [name for name in names if name in by_name]
        pairs = [by_name[name][pick(seed, kind, name) % len(by_name[name])] for name in order]
        counts = of_training.get(kind, Counter())
        made.append(
            ClosedSet(
                kind=kind,
                names=tuple(order),
                questions=tuple(question for question, _ in pairs),
                answers=tuple(answer for _, answer in pairs),
                candidates=tuple(sorted({answer for _, answer in pairs} | set(counts))),
                known=counts,
            )
        )
    return made


def answers_of(questions: Sequence[Question]) -> dict[str, dict[str, str]]:
    """Return kind -> object -> an answer."""
    found: dict[str, dict[str, str]] = {}
    for record in questions:
        found.setdefault(record["kind"], {}).setdefault(record["sample_id"], record["answer"])
    return found


def closed_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Return the English questions of closed kinds in a JSONL file of `make-questions`.

    Raises:
        ValueError: the file can't be read, or a line is damaged.
    """
    return list(filter(None, read_lines(regular_file(path, "questions"), _closed_question)))


def _closed_question(record: dict[str, Any]) -> Question | None:
    if record.get("language", _LANGUAGE) != _LANGUAGE or record.get("kind", OPEN_KINDS[0]) in OPEN_KINDS:
        return None
    if not all(isinstance(record.get(key), str) for key in ("kind", "sample_id", "question", "answer")):
        raise ValueError("a question has kind, sample_id, question and answer, all text")
    return record
