"""The captions of an object as tables write them: one reader of cells and rows, for everything that has words.

Knows notations (JSON, Python, NumPy, plain text) and the names of columns; what captions are good for is the language
branch's business.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdf_vqvae.utils.strict_files import parse_json

CAPTIONS = "captions"
"""The column that our own tables have: a JSON list of strings."""
CAPTION_COLUMNS = (
    CAPTIONS, "caption", "text", "texts", "description", "descriptions", "prompt", "prompts", "sentence", "sentences",
)  # fmt: skip
"""Columns that hold captions, and keys of mappings in cells; the first one with any counts."""
PARTS = ("overall_label", "materials_captions")
"""Columns of the original's custom format, which together say what an object is."""
MISSING = frozenset(
    ["", "nan", "-nan", "<na>", "#na", "na", "n/a", "#n/a", "n.a.", "none", "null", "nil", "undefined",
     "-", "--", "—", "?", "#name?", "#value!", "#ref!", "#null!", "#num!", "#div/0!"]
)  # fmt: skip
"""What stands in a table where there is no caption, errors of spreadsheets too; capitals don't matter."""
_OPENING = ("[", "{", "(", '"', "'")
_PAIRS = {"[": "]", "(": ")", "{": "}"}
_CALL = re.compile(r"((np|numpy)\.)?(array|str_|bytes_|list|tuple|set|frozenset)\s*\(|[bBuU]['\"]")
"""How Python writes a sequence or a string that begins with neither a bracket nor a quote."""
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>[rRbBuU]{0,2}(?:"[^"\\]*(?:\\.[^"\\]*)*"|'[^'\\]*(?:\\.[^'\\]*)*'))
    |(?P<mark>[\[\](){},:])|(?P<word>[^\s\[\](){},:'"]+))""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+|inf)(e[-+]?\d+)?", re.IGNORECASE)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "/": "/", "\\": "\\", "'": "'", '"': '"', "\n": ""}
_SPEAKERS = {"system": False, "user": False, "human": False, "assistant": True, "gpt": True}
"""Who speaks in a chat, and whether that is the one who answers."""
_DEEPEST = 32
_OF_SEVERAL = re.compile(r"[_.]?\d+")
"""What numbers a column; pandas calls the second of two `caption.1`."""


def captions_in(cell: str) -> list[str]:
    """Return the captions of a table's cell, in their order.

    A cell is a list or mapping as JSON, Python or NumPy write it, a quoted string, or plain text, which stays whole.
    Of a mapping the values count, or those of its keys that are called as `CAPTION_COLUMNS` are; of a chat the
    answers. Numbers in lists and mappings are no captions, and neither is what `MISSING` names.
    """
    return list(_captions(cell, quotes=True))


def captions_of(value: Any) -> list[str]:
    """Return the captions of a value that JSON held: text as in `captions_in`, or lists and mappings of such.

    Raises:
        ValueError: they are nested too deep.
    """
    return list(_texts(value, 0))


def captions_of_row(row: Mapping[str, str]) -> list[str]:
    """Return the captions of a table's row, each once, in their order.

    From the first of `CAPTION_COLUMNS` that has any (`caption_1`, `caption_2` and so on are one column), else from
    `PARTS` together.
    """
    for names in (*((name,) for name in CAPTION_COLUMNS), PARTS):
        captions = [
            text for name in names for column in columns_called(name, row) for text in captions_in(row[column])
        ]
        if captions:
            return list(dict.fromkeys(captions))
    return []


def captions_cell(captions: Iterable[str]) -> str:
    """Return the text of the column `captions`, each caption once; empty where there are none."""
    texts = list(dict.fromkeys(captions))
    return json.dumps(texts, ensure_ascii=False) if texts else ""


def columns_called(name: str, columns: Iterable[str]) -> list[str]:
    """Return which columns bear a name, but for capitals, spaces and a number at the end."""
    return [c for c in columns if (key := plain_name(c)) == name or _is_of_several(key, name)]


def _is_of_several(key: str, name: str) -> bool:
    return key.startswith(name) and bool(_OF_SEVERAL.fullmatch(key[len(name) :]))


@functools.lru_cache(maxsize=4096)
def plain_name(column: str) -> str:
    """Return a column's name without what writers do to it: capitals, quotes, spaces, dashes, a byte order mark."""
    return re.sub(r"[\s-]+", "_", column.strip().strip("\ufeff'\"").strip().lower())


# -- cells --------------------------------------------------------------------------------------------------------


def _captions(cell: str, *, quotes: bool, depth: int = 0) -> Iterator[str]:
    """Yield the captions of a text, which is what it notates, or itself."""
    text = cell.strip().strip("\ufeff").strip()
    if text[:1] in _OPENING[: None if quotes else 3] or _CALL.match(text):
        try:
            yield from list(_texts(_notated(text), depth + 1))
        except ValueError:
            pass
        else:
            return
    if text.lower() not in MISSING:
        yield _clean(text)


def _texts(value: Any, depth: int) -> Iterator[str]:
    """Yield the captions of a value. Raises a ValueError if it is nested too deep."""
    if depth > _DEEPEST:
        raise ValueError(f"captions are nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        # Quotes inside of a list are part of what is said; lists inside of strings come from writing a table twice.
        yield from _captions(value, quotes=False, depth=depth)
    elif isinstance(value, Mapping):
        for name in CAPTION_COLUMNS:
            captions = [text for key in columns_called(name, value) for text in _texts(value[key], depth + 1)]
            if captions:
                yield from captions
                return
        speaker = value.get("role", value.get("from"))
        if (
            isinstance(speaker, str) and speaker in _SPEAKERS
        ):  # a turn of a chat, of which answers alone are about the object
            value = [value.get("content", value.get("value"))] if _SPEAKERS[speaker] else []
        else:
            value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            if not (isinstance(part, str) and "." in part and _is_number(part.strip())):  # NumPy writes scores so
                yield from _texts(part, depth + 1)


def _clean(text: str) -> str:
    """Return text that UTF-8 can hold: halves of characters are joined, or replaced where one is alone."""
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _notated(text: str) -> Any:
    """Return the value that a text notates: strings, lists and mappings; None for numbers and what is missing.

    Raises:
        ValueError: it is no such notation from its beginning to its end.
    """
    try:
        return parse_json(text)
    except ValueError:
        pass
    tokens = _tokens(text)
    value, place = _value(tokens, 0, 0)
    if place != len(tokens) - 1:
        raise ValueError("something follows the value")
    return value


def _tokens(text: str) -> list[tuple[str, str]]:
    """Return the tokens of a notation as (kind, text), and one more that says that it ends."""
    tokens = []
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError("a quote has no end")
        tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
        place = match.end()
    return [*tokens, ("end", "")]


def _value(tokens: list[tuple[str, str]], place: int, depth: int) -> tuple[Any, int]:
    """Return the value that begins at a token, and where the next one stands."""
    kind, text = tokens[place]
    if kind == "string":
        return _string(text), place + 1
    if kind == "word":
        if tokens[place + 1][1] == "(" and _CALL.match(text + "("):
            arguments, place = _items(tokens, place + 2, ")", depth + 1)  # the others say of which type they are
            return (arguments[0] if arguments else None), place
        if text.lower() in MISSING or text in ("True", "False", "true", "false", "...") or _is_number(text):
            return None, place + 1
    if text in _PAIRS and kind == "mark":
        return _items(tokens, place + 1, _PAIRS[text], depth + 1)
    raise ValueError(f"{text!r} is no value")


def _items(tokens: list[tuple[str, str]], place: int, closing: str, depth: int) -> tuple[Any, int]:
    """Return what stands between brackets, a list or a mapping, and where the next token stands."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep")
    values: list[Any] = []
    pairs: dict[str, Any] = {}
    while tokens[place] != ("mark", closing):
        if tokens[place] == ("mark", ","):  # NumPy writes none
            place += 1
            continue
        if tokens[place][0] == "word" and tokens[place][1].startswith("dtype="):
            place += 1
            continue
        value, place = _value(tokens, place, depth)
        if closing == "}" and tokens[place] == ("mark", ":"):
            pairs[str(value)], place = _value(tokens, place + 1, depth)
        else:
            values.append(value)
    if pairs and values:
        raise ValueError("it is neither a mapping nor a set")
    return pairs or values, place + 1


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _string(literal: str) -> str:
    """Return what a string literal says."""
    start = min(literal.find(quote) % (len(literal) + 1) for quote in "'\"")
    prefix, text = literal[:start].lower(), literal[start + 1 : -1]
    if "r" not in prefix:
        text = _ESCAPE.sub(_unescaped, text)
    return text.encode("latin-1").decode("utf-8") if "b" in prefix else text


def _unescaped(match: re.Match[str]) -> str:
    digits = match[1] or match[2] or match[3]
    return chr(int(digits, 16)) if digits else _ESCAPED.get(match[4], match[0])
