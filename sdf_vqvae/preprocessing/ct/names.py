"""Names of organs: as parts of paths, as words, as captions, and found again from what a user types.

Knows texts alone.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

from sdf_vqvae.data.captions import MISSING
from sdf_vqvae.preprocessing.ct.masks import Label, LabelNames

_SIDES = ("left", "right")
_PLURALS = {"vertebrae": "vertebra"}
_WHOLE_ML = 10
_STEM_BYTES = 120
"""Most bytes of a name in a file's name, of the 255 that file systems allow."""
_MOST_LISTED = 20
_NUMBERED = re.compile(r"((label|class|segment|structure|organ|roi|id) ?)?\d+")


def file_stem(name: str) -> str:
    """Return a name as a part of a path: letters, marks and digits of any script, and single underscores."""
    composed = unicodedata.normalize("NFC", name)
    kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in composed)
    short = "_".join(kept.split()).encode()[:_STEM_BYTES].decode(errors="ignore")
    return short.strip("_") or "label"


def in_words(name: str) -> str:
    """Return an organ's name as it is said: `kidney_left` is the left kidney, `rib right 7` the right rib 7."""
    words = [_PLURALS.get(w, w) if i == 0 else w for i, w in enumerate(name.replace("_", " ").split())]
    for side in _SIDES:
        if words.count(side) == 1 and words[0] != side:
            words.remove(side)
            words.insert(0, side)
    return " ".join(words)


def says_nothing(name: str) -> bool:
    """Return whether a name is only a number (`label_7`, `Segment 1`), or stands for a missing one (`n/a`)."""
    return _key(name) in MISSING or _NUMBERED.fullmatch(_key(name)) is not None


def captions(name: str, volume_ml: float) -> list[str]:
    """Return an organ's captions, the longest first."""
    words = in_words(name)
    amount = (
        f"{volume_ml:.0f}" if volume_ml >= _WHOLE_ML else f"{volume_ml:.1f}" if volume_ml >= 1 else f"{volume_ml:.2g}"
    )
    return [f"The {words}, from a CT scan, {amount} ml.", f"A CT scan of the {words}.", words]


# -- what a user types -------------------------------------------------------------------------------------------


def chosen_labels(parts: Sequence[str], known: Mapping[Label, str]) -> tuple[list[Label], list[str]]:
    """Return the labels that a user has named, and what names none.

    A name counts as it stands; where there is none such, upper and lower case, spaces, underscores and hyphens are
    all one, and it may be said as in captions (`left kidney` for `kidney_left`).

    Args:
        parts: the names, cut at every comma; parts that together are a name with a comma are taken for it.
        known: label -> name.
    """
    chosen: list[Label] = []
    unknown: list[str] = []
    start = 0
    while start < len(parts):
        for end in range(len(parts), start, -1):
            labels = _labels_called(", ".join(parts[start:end]), known)
            if labels:
                chosen += labels
                break
        else:
            end = start + 1
            unknown.append(parts[start])
        start = end
    return list(dict.fromkeys(chosen)), unknown


def check_chosen(parts: Sequence[str], names: Iterable[LabelNames]) -> None:
    """Raise a ValueError that lists the known names, the nearest first, if a user names what no dataset has.

    `label 7` is what a label without a name is called; whether there is one is found in the volumes.
    """
    unknown: set[str] = set(parts)
    known: dict[str, None] = {}
    for own in names:
        named = own.named
        unknown &= {part for part in chosen_labels(parts, named)[1] if not _nameless(part, own)}
        known |= dict.fromkeys(named.values())
    for part in parts:
        if part in unknown:
            listed = _nearest_first(part, known)
            raise ValueError(
                f"--organs: no label is called {part!r}; "
                + (
                    f"there are {listed}"
                    if known
                    else "no names of labels were found (--organ_labels JSON gives them)"
                )
            )


def _labels_called(text: str, known: Mapping[Label, str]) -> list[Label]:
    exact = " ".join(unicodedata.normalize("NFC", text).split())
    labels = [label for label, name in known.items() if name == exact]
    if labels:
        return labels
    key = _key(text)
    return [label for label, name in known.items() if key in (_key(name), _key(in_words(name)))]


def _key(name: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return re.sub(r"\s*,\s*", ",", re.sub(r"[\s_-]+", " ", folded).strip())


def _nameless(text: str, names: LabelNames) -> bool:
    match = re.fullmatch(r"label (\d{1,9})", _key(text), re.ASCII)
    return match is not None and int(match[1]) not in names.names


def _nearest_first(text: str, known: Collection[str]) -> str:
    def likeness(name: str) -> float:
        return difflib.SequenceMatcher(None, _key(text), _key(name)).ratio()

    listed = sorted(known, key=likeness, reverse=True)
    more = f" and {len(listed) - _MOST_LISTED} more" if len(listed) > _MOST_LISTED else ""
    return ", ".join(listed[:_MOST_LISTED]) + more
