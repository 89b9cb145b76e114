"""From known objects to their questions: which kinds, in which words, and the balance of yes and no.

The rules of open questions are in `questions`; this module knows those of yes/no questions, and puts all together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic import questions
from vae_qwen3vl.synthetic.anatomy import SIDES, SYSTEMS
from vae_qwen3vl.synthetic.phrases import PHRASES, YES_NO_ANSWERS
from vae_qwen3vl.synthetic.questions import ANATOMY, LANGUAGES, RULES, Answers, KnownObject, Question
from vae_qwen3vl.synthetic.words import COLLECTIONS, THINGS, WITHOUT_ARTICLE

if TYPE_CHECKING:  # the kinds have to be known without it, for a parser
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
    thing = questions.thing_of(known)
    if thing is None:
        return None
    group, chinese = THINGS[thing]
    article = "" if thing in WITHOUT_ARTICLE else ("an " if thing[0] in "aeiou" else "a ")
    return Claim(
        key=thing,
        words={"en": article + thing, "zh": chinese},
        excluded=_words(*known.captions, known.name, *known.tags) | {f"group {group}"},
        marks=_words(thing) | {f"group {group}"},
    )


def is_category(known: KnownObject) -> Claim | None:
    """Its category; wrong ones are categories of its source that share no word with its name and tags."""
    words = questions.category_of(known)
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
    found = COLLECTIONS.get(known.source)
    return None if found is None else Claim(key=found[0], words=dict(zip(LANGUAGES, found, strict=True)))


def is_organ(known: KnownObject) -> Claim | None:
    """Its anatomical name without its side; wrong ones are structures of organ systems that it is no part of."""
    found = known.structure
    if found is None or not found.systems:
        return None
    chinese = found.chinese or ""
    if found.named_side:
        chinese = chinese.removeprefix(SIDES[found.named_side]).removeprefix("侧")
    systems = frozenset(f"system {name}" for name in found.systems)
    return Claim(
        key=found.base,
        words={"en": found.base, "zh": chinese},
        excluded=systems | _words(found.base),
        marks=systems | _words(found.base),
    )


def is_side(known: KnownObject) -> Claim | None:
    """Its side; the wrong one is the other."""
    found = known.structure.side if known.structure else None
    return None if found is None else Claim(key=found, words={"en": found, "zh": SIDES[found]})


def is_system(known: KnownObject) -> Claim | None:
    """Its organ system; wrong ones are systems that no word of its name belongs to."""
    systems = known.structure.systems if known.structure else ()
    if not systems:
        return None
    words = dict(zip(LANGUAGES, SYSTEMS[systems[0]], strict=True))
    return Claim(key=systems[0], words=words, excluded=frozenset(systems), marks=frozenset({systems[0]}))


def is_shape(known: KnownObject) -> Claim | None:
    """Flat, rod-like or compact (`questions.shape_of`); wrong ones are the other two."""
    found = questions.shape_of(known.facts)
    return None if found is None else Claim(key=found, words={"en": found, "zh": questions.SHAPES[found]})


CLAIMS: dict[str, Callable[[KnownObject], Claim | None]] = {
    claim.__name__: claim for claim in (is_name, is_category, is_collection, is_organ, is_side, is_system, is_shape)
}
MIRRORED = "is_mirrored"
YES_NO = (*CLAIMS, MIRRORED)
KINDS = (*RULES, ANATOMY, *YES_NO)


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
                answers = (
                    questions.anatomy(known, choice, terms or {}) if kind == ANATOMY else RULES[kind](known, choice)
                )
                made.open(known.id, kind, answers)
    return [question for known in objects for question in made.by_object.get(known.id, ())]


def balance(made: Iterable[Question]) -> tuple[int, int]:
    """Return how many yes/no questions there are, and for how many of them the answer is yes."""
    yes = {pair[1] for pair in YES_NO_ANSWERS.values()}
    asked = [question.answer in yes for question in made if question.kind in YES_NO]
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
        made = Question(id=name, kind=kind, language=language, question=phrase.replace("{}", words), answer=answer)
        self.by_object.setdefault(name, []).append(made)


def _ask_claims(made: _Made, objects: Sequence[KnownObject], kind: str, seed: int) -> None:
    """Ask of each object what is true of it, and what is true of another and certainly not of it."""
    import numpy as np

    for language in made.languages:
        found = [(known, claim) for known in objects if (claim := CLAIMS[kind](known)) and claim.words[language]]
        for scope in sorted({claim.scope for _, claim in found}):
            own = [(known, claim) for known, claim in found if claim.scope == scope]
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
    found = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    return frozenset(word.removesuffix("s") for word in found if word not in _SMALL_WORDS)
