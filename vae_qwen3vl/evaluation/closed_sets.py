"""Questions whose answers are one of a known set: what classification asks, one set a kind of question.

Made of the records that `make-questions` writes, for the objects that are evaluated and for those of training, whose
answers are candidates too. A kind of question is closed unless `OPEN_KINDS` has it. Knows texts and their files;
nothing of shapes or models.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.files import regular_file
from vae_qwen3vl.data.texts import RECORDS, pick, read_lines
from vae_qwen3vl.evaluation.users_questions import USERS_KINDS

OPEN_KINDS = ("describe", "name", "ratio", "long_to_wide", "size", "anatomy", *USERS_KINDS)
"""Kinds whose answers are sentences or numbers without end, or are measured by `users_questions`."""
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
    known_answers: Mapping[str, str] | None = None
    """Training object -> its answer; None where training's records are not known."""

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


def read_closed_sets(
    names: Sequence[str], *, questions: Path | None, folder: Path | None, split: str | None, seed: int = 0
) -> list[ClosedSet] | None:
    """Return the closed sets of questions about some objects; None where there is no file of questions.

    Args:
        names: ids of the objects.
        questions: the file; None takes the one of the objects' split in `folder`, if there is one.
        folder: of the objects' codes, where training's records lie, if there are any.
        split: of the objects.
        seed: of the choice among an object's questions.

    Raises:
        ValueError: a file can't be read, or a line is damaged.
    """
    questions = questions_of(questions, folder, split)
    if questions is None:
        return None
    known = None
    if folder is not None and (folder / RECORDS).is_file():
        own = set(names)  # they must not answer for themselves
        known = [record for record in closed_questions(folder / RECORDS) if record["sample_id"] not in own]
    return closed_sets(closed_questions(questions), names, known, seed=seed)


def questions_of(questions: Path | None, folder: Path | None, split: str | None) -> Path | None:
    """Return the file of questions about objects: the one that is given, or their split's beside their codes."""
    beside = None if folder is None else folder / f"conversations_{split}.jsonl"
    return beside if questions is None and beside is not None and beside.is_file() else questions


def closed_sets(
    asked: Sequence[Question], names: Sequence[str], known: Sequence[Question] | None = None, *, seed: int = 0
) -> list[ClosedSet]:
    """Return the closed sets of questions about some objects, kinds with fewer than five objects left out.

    Of several English questions of a kind about an object, one is chosen, always the same for the same seed.

    Args:
        asked: of `closed_questions`, about the objects.
        names: ids of the objects.
        known: the same about the objects of training; None where they are not known.
        seed: of the choice.
    """
    wanted = set(names)
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for record in asked:
        if record["sample_id"] in wanted:
            of_object = pairs.setdefault(record["kind"], {}).setdefault(record["sample_id"], [])
            of_object.append((record["question"], record["answer"]))
    sets = []
    for kind, by_name in sorted(pairs.items()):
        if len(by_name) < LEAST_OBJECTS:
            continue
        order = [name for name in names if name in by_name]
        chosen = [by_name[name][pick(seed, kind, name) % len(by_name[name])] for name in order]
        of_training = [record for record in known or () if record["kind"] == kind]
        counts = Counter(record["answer"] for record in of_training)
        # Of several answers of an object, the first stays.
        first = {record["sample_id"]: record["answer"] for record in reversed(of_training)}
        sets.append(
            ClosedSet(
                kind=kind,
                names=tuple(order),
                questions=tuple(question for question, _ in chosen),
                answers=tuple(answer for _, answer in chosen),
                candidates=tuple(sorted({answer for _, answer in chosen} | set(counts))),
                known=counts,
                known_answers=None if known is None else first,
            )
        )
    return sets


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
