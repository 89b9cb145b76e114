"""What users type beside an object, and whose business it is: the shape's, nobody's, or the language model's alone.

    asks = make_asks("train", 3000, seed=0)      # Ask(text=..., subject="about_shape", language="en", ...)

For whatever has to tell these apart. Knows wordings and tables; no objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from vae_qwen3vl.data.texts import pick
from vae_qwen3vl.synthetic import wordings_chinese, wordings_english
from vae_qwen3vl.synthetic.anatomy import CHINESE, SIDES, SYSTEMS
from vae_qwen3vl.synthetic.unrelated_prompts import unrelated_prompts
from vae_qwen3vl.synthetic.wordings import LANGUAGES, PROPERTIES, UNSEEN, WORDING_SETS, templates, typed, worded
from vae_qwen3vl.synthetic.words import CATEGORIES, COLLECTIONS, SHAPES, THINGS, with_article

Subject = Literal["about_shape", "cannot_be_seen", "unrelated"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)
ABOUT_SHAPE, CANNOT_BE_SEEN, UNRELATED = SUBJECTS
_KINDS = {"en": tuple(wordings_english.WORDINGS), "zh": tuple(wordings_chinese.WORDINGS)}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One thing that a user types beside an object."""

    text: str
    subject: Subject
    """What it asks for: what the shape shows, what no shape holds, or nothing about the object at all."""
    kind: str
    """Of the question; of what can't be seen, the property; empty where it is unrelated."""
    language: str
    wordings: str
    """The set of wordings it is of."""


def make_asks(wordings: str, count: int, *, seed: int = 0, languages: Sequence[str] = LANGUAGES) -> list[Ask]:
    """Return what users type, as often of each subject and language, every text once; the same for the same seed.

    Args:
        wordings: of `WORDING_SETS`; the sets share no template.
        count: so many of each subject in each language, or all that there are.
        seed: of the choice.
        languages: of `LANGUAGES`.

    Raises:
        ValueError: the set or a language is unknown, or the count is below 1.
    """
    if wordings not in WORDING_SETS or not set(languages) <= set(LANGUAGES) or count < 1:
        raise ValueError(
            f"give wordings of {', '.join(WORDING_SETS)}, languages of {', '.join(LANGUAGES)} and a positive count, "
            f"not {wordings!r}, {list(languages)} and {count}"
        )
    return [
        ask
        for language in languages
        for subject in SUBJECTS
        for ask in _some(subject, language, wordings, count, seed)
    ]


@lru_cache(maxsize=256)
def claims_of(kind: str, language: str) -> tuple[str, ...]:
    """Return what questions of a kind may claim, as they say it; an empty text where they claim nothing."""
    place = LANGUAGES.index(language)
    english = language == "en"
    every: dict[str, Sequence[str]] = {
        "is_name": [with_article(name) if english else chinese for name, (_, chinese) in THINGS.items()],
        "is_category": list(CATEGORIES if english else CATEGORIES.values()),
        "is_collection": [names[place] for names in COLLECTIONS.values()],
        "is_organ": list(CHINESE if english else CHINESE.values()),
        "is_side": list(SIDES if english else SIDES.values()),
        "is_system": [names[place] for names in SYSTEMS.values()],
        "is_shape": list(SHAPES if english else SHAPES.values()),
    }
    return tuple(dict.fromkeys(every.get(kind, ("",))))


def _some(subject: Subject, language: str, wordings: str, count: int, seed: int) -> list[Ask]:
    """Return so many different texts of a subject, or as many as turn up."""
    if subject == ABOUT_SHAPE:
        kinds = [kind for kind in _KINDS[language] if templates(kind, language, wordings)]
    elif subject == CANNOT_BE_SEEN:
        kinds = [name for name in PROPERTIES if templates(UNSEEN, language, wordings, unseen=name)]
    else:
        kinds = [""]
    found: dict[str, Ask] = {}
    for number in range(20 * count):
        if len(found) == count:
            break
        kind = kinds[number % len(kinds)]
        drawn = pick(seed, wordings, subject, language, number)
        if subject == ABOUT_SHAPE:
            claims = claims_of(kind, language)
            claim = claims[pick(seed, "claim", language, number) % len(claims)]
            text = worded(kind, language, wordings, drawn, claim)
        elif subject == CANNOT_BE_SEEN:
            text = worded(UNSEEN, language, wordings, drawn, unseen=kind)
        else:
            prompts = unrelated_prompts(wordings, language)
            drawn, place = divmod(drawn, len(prompts))
            text = typed(prompts[place], language, wordings, drawn)
        found.setdefault(text, Ask(text=text, subject=subject, kind=kind, language=language, wordings=wordings))
    return list(found.values())
