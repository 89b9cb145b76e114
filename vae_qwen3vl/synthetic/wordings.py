"""How each kind of question is asked: many wordings by grammar, in two languages and three sets.

A set is for training, for `val` or for `test`. They share no template, so a held-out wording asks in another way, not
with another word alone. Knows the tables of wordings; what is asked, and of what, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Literal, get_args

from vae_qwen3vl.synthetic import wordings_chinese, wordings_english
from vae_qwen3vl.synthetic.grammar import expand

Language = Literal["en", "zh"]
LANGUAGES: tuple[str, ...] = get_args(Language)
WordingSet = Literal["train", "val", "test"]
WORDING_SETS: tuple[str, ...] = get_args(WordingSet)
YES_NO_ANSWERS = {"en": ("No.", "Yes."), "zh": ("不是。", "是。")}
UNSEEN = "unseen"
"""The kind that asks for what a shape can't tell."""
_TABLES: dict[str, ModuleType] = {"en": wordings_english, "zh": wordings_chinese}
_MARKS = {"en": ".?", "zh": "。？"}
PROPERTIES = tuple(wordings_english.PROPERTIES)
"""What a shape can't tell."""


def set_of_split(split: str) -> str:
    """Return the wordings that belong to a split: its own, and those of training for any other."""
    return next((name for name in WORDING_SETS if name == split), WORDING_SETS[0])


def templates(kind: str, language: str, wordings: str, *, unseen: str = "") -> tuple[str, ...]:
    """Return the templates of a kind of question; none where it is not asked in that language or set.

    Args:
        kind: of question.
        language: of `LANGUAGES`.
        wordings: of `WORDING_SETS`.
        unseen: of the kind `UNSEEN`, one of `PROPERTIES`.
    """
    tables = _TABLES[language]
    blocks = tables.PROPERTIES.get(unseen) if kind == UNSEEN else tables.WORDINGS.get(kind)
    block = blocks[WORDING_SETS.index(wordings)] if blocks else ""
    return tuple(line.strip() for line in block.splitlines() if line.strip())


@lru_cache(maxsize=1024)
def texts_of(kind: str, language: str, wordings: str, *, unseen: str = "") -> tuple[tuple[str, ...], ...]:
    """Return the texts of each template, without capitals at their beginnings; `{}` is what a question claims."""
    words = _TABLES[language].WORDS
    return tuple(expand(template, words) for template in templates(kind, language, wordings, unseen=unseen))


def worded(kind: str, language: str, wordings: str, number: int, claim: str = "", *, unseen: str = "") -> str:
    """Return one wording: each template as often as the others, then each of its texts, then how it is typed.

    Args:
        kind: of question; it has wordings in that language and set.
        language: of `LANGUAGES`.
        wordings: of `WORDING_SETS`.
        number: decides, the same wording for the same number; of `pick`, so far larger than there are wordings.
        claim: what a yes/no question claims.
        unseen: of the kind `UNSEEN`, one of `PROPERTIES`.
    """
    texts = texts_of(kind, language, wordings, unseen=unseen)
    number, place = divmod(number, len(texts))
    number, form = divmod(number, len(texts[place]))
    return typed(texts[place][form].replace("{}", claim), language, wordings, number)


def all_typed(kind: str, language: str, wordings: str, claim: str = "", *, unseen: str = "") -> Iterator[str]:
    """Yield all that `worded` can return for a claim."""
    for texts in texts_of(kind, language, wordings, unseen=unseen):
        for text in texts:
            written = text.replace("{}", claim)
            for number in range(len(_STYLES[language]) * len(_TABLES[language].FRAMES[wordings])):
                yield typed(written, language, wordings, number)


def typed(text: str, language: str, wordings: str, number: int) -> str:
    """Return text as someone types it: as a sentence or in small letters, without its mark, in a frame.

    Args:
        text: without a capital at its beginning.
        language: of `LANGUAGES`.
        wordings: of `WORDING_SETS`, which have frames of their own; only questions stand in one.
        number: decides.
    """
    frames, styles = _TABLES[language].FRAMES[wordings], _STYLES[language]
    number, place = divmod(number, len(frames))
    style, frame = styles[number % len(styles)], frames[place]
    if text[-1:] in "?？" and frame != "{}":
        text = frame.format(text if frame[:1] == "{" or "!" not in frame else _capital(text))
    else:
        frame = "{}"
    text = text.lower() if "s" in style else _capital(text)
    return text if "m" in style or frame != "{}" else text.rstrip(_MARKS[language])


_STYLES = {"en": ("m", "m", "m", "sm", "s", "s"), "zh": ("m", "m", "")}
"""How often questions are typed how: `s` in small letters, `m` with the mark at the end."""


def _capital(text: str) -> str:
    """Return text that begins with a capital."""
    return text[:1].upper() + text[1:]
