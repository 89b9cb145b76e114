"""From known objects to their questions: of which kinds, in which words, and as many with yes as with no.

What is asked is in `open_questions`, `yes_no_questions`, `decided_questions` and `unseen_answers`; in which words, in
`wordings`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic.decided_questions import DECIDED, balanced_pairs
from vae_qwen3vl.synthetic.known_object import KnownObject
from vae_qwen3vl.synthetic.open_questions import ANATOMY, RULES, Answers, anatomy
from vae_qwen3vl.synthetic.unseen_answers import unseen_answer
from vae_qwen3vl.synthetic.wordings import (
    LANGUAGES,
    PROPERTIES,
    UNSEEN,
    WORDING_SETS,
    YES_NO_ANSWERS,
    templates,
    worded,
)
from vae_qwen3vl.synthetic.yes_no_questions import CLAIMS, exchange

YES_NO = (*CLAIMS, *DECIDED)
KINDS = (*RULES, ANATOMY, UNSEEN, *YES_NO)
_OFTEN_UNSEEN = ("colour", "material")
"""Asked of every object; of the other properties one."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an object, with its answer."""

    id: str
    """The object."""
    kind: str
    language: str
    question: str
    answer: str
    wordings: str = WORDING_SETS[0]
    """The set of wordings it is asked in."""
    unseen: str = ""
    """Of the kind `UNSEEN`: the property that is asked for."""

    def record(self) -> dict[str, str]:
        """Return a line of the records that `data.texts.read_records` reads."""
        return {
            "sample_id": self.id,
            "kind": self.kind,
            "language": self.language,
            "question": self.question,
            "answer": self.answer,
            "wordings": self.wordings,
            **({"unseen": self.unseen} if self.unseen else {}),
        }


def make_questions(
    objects: Sequence[KnownObject],
    *,
    seed: int = 0,
    languages: Sequence[str] = LANGUAGES,
    kinds: Sequence[str] = KINDS,
    terms: Mapping[str, Sequence[str]] | None = None,
    wordings: str = WORDING_SETS[0],
) -> list[Question]:
    """Return the questions of objects, in the order of the objects; the same for the same seed and objects.

    Args:
        objects: what is known of them; their ids differ.
        seed: chooses wordings, captions, sentences, and the wrong ones of yes/no questions.
        languages: of `LANGUAGES`; what has no Chinese name in the tables is asked in English alone.
        kinds: of `KINDS`.
        terms: anatomical term -> sentences, for the kind `anatomy`.
        wordings: of `WORDING_SETS`, which share no wording.

    Raises:
        ValueError: a kind, language or set of wordings is unknown, or an id occurs twice.
    """
    known_words = (
        ("language", languages, LANGUAGES),
        ("kind", kinds, KINDS),
        ("set of wordings", [wordings], WORDING_SETS),
    )
    for what, given, allowed in known_words:
        for word in given:
            if word not in allowed:
                raise ValueError(f"the {what} {word!r} is unknown; use some of {', '.join(allowed)}")
    if len({known.id for known in objects}) < len(objects):
        raise ValueError("an id occurs twice among the objects")
    made = _Made(seed, languages, wordings)
    by_id = sorted(objects, key=lambda known: known.id)
    for kind in (kind for kind in KINDS if kind in kinds):
        if kind in DECIDED:
            _ask_decided(made, by_id, kind, seed)
        elif kind in CLAIMS:
            _ask_claims(made, by_id, kind, seed)
        elif kind == UNSEEN:
            _ask_unseen(made, by_id, seed)
        else:
            for known in by_id:
                choice = pick(seed, kind, known.id)
                answers = anatomy(known, choice, terms or {}) if kind == ANATOMY else RULES[kind](known, choice)
                made.open(known.id, kind, answers)
    return [question for known in objects for question in made.by_object.get(known.id, ())]


def balance(questions: Iterable[Question]) -> tuple[int, int]:
    """Return how many yes/no questions there are, and for how many of them the answer is yes."""
    yes = {pair[1] for pair in YES_NO_ANSWERS.values()}
    asked = [question.answer in yes for question in questions if question.kind in YES_NO]
    return len(asked), sum(asked)


class _Made:
    """Questions made so far, by object."""

    def __init__(self, seed: int, languages: Sequence[str], wordings: str) -> None:
        self.seed = seed
        self.languages = [language for language in LANGUAGES if language in languages]
        self.wordings = wordings
        self.by_object: dict[str, list[Question]] = {}

    def open(self, name: str, kind: str, answers: Answers) -> None:
        for language in self.languages:
            for number, answer in enumerate(answers.get(language, ())):
                self._add(
                    name,
                    kind,
                    language,
                    answer,
                    worded(kind, language, self.wordings, self.drawn(kind, language, name, number)),
                )

    def claim(self, name: str, kind: str, language: str, words: str, true: bool, *, like: str) -> None:
        """Ask whether something is true; claims that are asked like each other have the same wording."""
        text = worded(kind, language, self.wordings, self.drawn(kind, language, like), words)
        self._add(name, kind, language, YES_NO_ANSWERS[language][true], text)

    def unseen(self, known: KnownObject, language: str, asked: str) -> None:
        drawn = self.drawn(UNSEEN, language, known.id, asked)
        text = worded(UNSEEN, language, self.wordings, drawn, unseen=asked)
        answer = unseen_answer(known, asked, language, pick(self.seed, "answer", language, known.id, asked))
        self._add(known.id, UNSEEN, language, answer, text, asked)

    def drawn(self, *parts: str | int) -> int:
        return pick(self.seed, "wording", self.wordings, *parts)

    def _add(self, name: str, kind: str, language: str, answer: str, text: str, unseen: str = "") -> None:
        question = Question(
            id=name, kind=kind, language=language, question=text, answer=answer, wordings=self.wordings, unseen=unseen
        )
        self.by_object.setdefault(name, []).append(question)


def _ask_claims(made: _Made, objects: Sequence[KnownObject], kind: str, seed: int) -> None:
    """Ask of each object what is true of it, and what is true of another and certainly not of it."""
    import numpy as np

    for language in made.languages:
        claimed = [(known, claim) for known in objects if (claim := CLAIMS[kind](known)) and claim.words[language]]
        for scope in sorted({claim.scope for _, claim in claimed}):
            own = [(known, claim) for known, claim in claimed if claim.scope == scope]
            claims = [claim for _, claim in own]
            wrong = exchange(claims, np.random.default_rng(pick(seed, kind, language, scope)))
            for (known, claim), other in zip(own, wrong, strict=True):
                if other is not None:
                    made.claim(known.id, kind, language, claim.words[language], true=True, like=known.id)
                    words = claims[other].words[language]
                    made.claim(known.id, kind, language, words, true=False, like=known.id)


def _ask_decided(made: _Made, objects: Sequence[KnownObject], kind: str, seed: int) -> None:
    """Ask pairs of objects, one where the answer is no and one where it is yes, in the same words."""
    for pair in balanced_pairs(objects, kind, seed):
        for language in made.languages:
            for true, known in enumerate(pair):
                made.claim(known.id, kind, language, "", bool(true), like=pair[0].id)


def _ask_unseen(made: _Made, objects: Sequence[KnownObject], seed: int) -> None:
    """Ask each object for its colour and its material, and for one more property that it can't show."""
    for known in objects:
        for language in made.languages:
            others = [
                name
                for name in PROPERTIES
                if name not in _OFTEN_UNSEEN and templates(UNSEEN, language, made.wordings, unseen=name)
            ]
            for asked in (*_OFTEN_UNSEEN, others[pick(seed, UNSEEN, language, known.id) % len(others)]):
                made.unseen(known, language, asked)
