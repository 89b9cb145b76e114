"""The captions of a table's row, in whatever form it has them, as a list of strings.

Knows the column names and the notations of tables; what captions are good for is the language branch's business.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from typing import Any

from sdf_vqvae.archives import parse_json

CAPTIONS = "captions"
"""The column that datasets of fields have: a JSON list of strings."""
_OTHER_NAMES = ("caption", "text")
_PARTS = ("overall_label", "materials_captions")
"""Columns of the original's custom format, which together say what an object is."""
_NOTHING = ("", "nan", "none", "null", "n/a")
_LONGEST_LITERAL = 100_000
_DEEPEST = 8


def captions_of_row(row: Mapping[str, str]) -> list[str]:
    """Return the captions of a row, each once, in their order.

    From `captions` (or `caption`, `text`) where there are any, else `overall_label` and `materials_captions`.
    """
    for columns in ((CAPTIONS,), *((name,) for name in _OTHER_NAMES), _PARTS):
        found = [text for name in columns for text in strings_in(row.get(name, ""))]
        if found:
            return list(dict.fromkeys(found))
    return []


def captions_cell(captions: list[str]) -> str:
    """Return the text of the column `captions`; empty where there are none."""
    return json.dumps(captions, ensure_ascii=False) if captions else ""


def strings_in(cell: str) -> list[str]:
    """Return the strings of a cell: a JSON or Python list, a mapping (its values), or plain text."""
    text = cell.strip()
    if text[:1] in ("[", "{", "(", '"', "'"):
        return list(_strings(_literal(text)))
    return [] if text.lower() in _NOTHING else [text]


def _literal(text: str) -> Any:
    """Return the value that a text notates, or the text itself."""
    try:
        return parse_json(text)
    except ValueError:
        pass
    if len(text) > _LONGEST_LITERAL:  # Python's reader takes a hundred times the text in memory
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _strings(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        if value.strip().lower() not in _NOTHING:
            yield value.strip()
    elif isinstance(value, (list, tuple, dict)) and depth < _DEEPEST:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part, depth + 1)
