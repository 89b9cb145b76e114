"""From known objects to their questions: of which kinds, in which words, and as many with yes as with no.

What is asked is in `open_questions` and `yes_no_questions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic.known_object import KnownObject
from vae_qwen3vl.synthetic.open_questions import ANATOMY, RULES, Answers, anatomy
from vae_qwen3vl.synthetic.phrases import LANGUAGES, PHRASES, YES_NO_ANSWERS
from vae_qwen3vl.synthetic.yes_no_questions import CLAIMS, exchange

MIRRORED = "is_mirrored"
YES_NO = (*CLAIMS, MIRRORED)
KINDS = (*RULES, ANATOMY, *YES_NO)


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
        """Return a line of the records that `data.texts.read_records` reads."""
        return {
            "sample_id": self.id,
            "kind": self.kind,
            "language": self.language,
            "question": self.question,
            "answer": self.answer,
        }


def make_questions(
    objects: Sequence[KnownObject],
    *,
    seed: int = 0,
    languages: Sequence[str] = LANGUAGES,
    kinds: Sequence[str] = KINDS,
    terms: Mapping[str, Sequence[str]] | None = None,
) -> list[Question]:
    """Return the questions of objects, in the order of the objects; the same for the same seed and objects.

    Args:
        objects: what is known of them; their ids differ.
        seed: chooses phrases, captions, sentences, and the wrong ones of yes/no questions.
        languages: of `LANGUAGES`; what has no Chinese name in the tables is asked in English alone.
        kinds: of `KINDS`.
        terms: anatomical term -> sentences, for the kind `anatomy`.

    Raises:
        ValueError: a kind or language is unknown, or an id occurs twice.
    """
    for what, given, allowed in (("language", languages, LANGUAGES), ("kind", kinds, KINDS)):
        for word in given:
            if word not in allowed:
                raise ValueError(f"the {what} {word!r} is unknown; use some of {', '.join(allowed)}")
    if len({known.id for known in objects}) < len(objects):
        raise ValueError("an id occurs twice among the objects")
    made = _Made(seed, languages)
    by_id = sorted(objects, key=lambda known: known.id)
    for kind in (kind for kind in KINDS if kind in kinds):
        if kind == MIRRORED:
            _ask_mirrored(made, by_id, seed)
        elif kind in CLAIMS:
            _ask_claims(made, by_id, kind, seed)
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

    def __init__(self, seed: int, languages: Sequence[str]) -> None:
        self.seed = seed
        self.languages = [language for language in LANGUAGES if language in languages]
        self.by_object: dict[str, list[Question]] = {}

    def open(self, name: str, kind: str, answers: Answers) -> None:
        for language in self.languages:
            for number, answer in enumerate(answers.get(language, ())):
                self._add(name, kind, language, "", answer, number)

    def claim(self, name: str, kind: str, language: str, words: str, true: bool) -> None:
        self._add(name, kind, language, words, YES_NO_ANSWERS[language][true], int(true))

    def _add(self, name: str, kind: str, language: str, words: str, answer: str, number: int) -> None:
        phrases = PHRASES[kind][language]
        phrase = phrases[pick(self.seed, "phrase", kind, language, name, number) % len(phrases)]
        question = Question(
            id=name, kind=kind, language=language, question=phrase.replace("{}", words), answer=answer
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
                    made.claim(known.id, kind, language, claim.words[language], true=True)
                    made.claim(known.id, kind, language, claims[other].words[language], true=False)


def _ask_mirrored(made: _Made, objects: Sequence[KnownObject], seed: int) -> None:
    """Ask whether the halves mirror each other, of as many objects where they do as where they don't."""
    order = sorted(objects, key=lambda known: pick(seed, MIRRORED, known.id))
    groups = [[known.id for known in order if known.facts.mirrored is answer] for answer in (False, True)]
    # To the shorter group's end: as many of one answer as of the other.
    for pair in zip(*groups, strict=False):
        for true, name in enumerate(pair):
            for language in made.languages:
                made.claim(name, MIRRORED, language, "", bool(true))
