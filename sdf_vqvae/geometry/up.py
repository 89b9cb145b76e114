"""Which way is up: the rotation that makes an object stand along +y, and where that is known from.

Inside, +y is up: fields, codes, and what language reads. `up` names the axis of the source that points up. Knows
points and the names of files; how to guess it from a shape is in `sdf_vqvae.geometry.upright_network`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # programs ask for the names of axes alone
    import numpy as np
    import numpy.typing as npt

    Points = npt.NDArray[np.float64]

from sdf_vqvae.geometry.formats.registry import FORMATS

UP_AXES = ("x", "y", "z", "-x", "-y", "-z")
AUTO = "auto"
"""In place of an axis: to be found from the shape, among all six."""
USUAL = "y or z"
"""The same among the two that are usual."""
DEFAULT_UP = USUAL
"""What is taken for mesh files that don't say it (OBJ, PLY, STL, OFF): an axis, `AUTO` or `USUAL`."""
_BY_FLAG, _BY_TABLE = "--up", "column up"
_NOTE_BYTES = 2**16  # a note stands in the header
_NOTHING = ("", "nan", "none", "null", "n/a")

# The rows are the inside's axes in those of the source. Of the four turns that bring an axis up it is the shortest:
# z up is turned (x, y, z) -> (x, z, -y), as exporters to glTF do it.
_ROTATIONS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "x": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "y": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "z": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-x": ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    "-y": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
    "-z": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


@dataclass(frozen=True, kw_only=True)
class Up:
    """The axis of a source that points up."""

    axis: str
    """One of `UP_AXES`, or `AUTO` or `USUAL` where the shape has yet to be looked at."""
    known_from: str
    """As part of a sentence: `--up`, `column up`, `auto by the shape, 97 % sure`, `glTF files stand along y`."""

    def in_words(self) -> str:
        """Return the line that programs print."""
        hint = "" if self.known_from == _BY_FLAG else "; --up says otherwise"
        return f"up: {self.axis} of the source ({self.known_from}){hint}"

    def guessed(self, axis: str, probability: float) -> Up:
        """Return what looking at the shape came to."""
        return Up(axis=axis, known_from=f"{self.axis} by the shape, {100 * probability:.0f} % sure")

    @property
    def is_said(self) -> bool:
        """Whether a user says it, on the command line or in a table."""
        return self.known_from in (_BY_FLAG, _BY_TABLE)

    def is_made_by(self, wanted: Up) -> bool:
        """Return whether this, of something that is there already, is what `wanted` would come to."""
        if wanted.axis in UP_AXES:
            return self.axis == wanted.axis
        return self.known_from.startswith(f"{wanted.axis} by the shape")

    def apart_from(self, wanted: Up) -> str:
        """Return, as part of a sentence, how this differs from what is wanted."""
        how = "which way is up was not asked then" if not self.known_from else self.known_from
        return f"with {self.axis} up ({how}), not {wanted.axis} ({wanted.known_from})"


UP_IN_SCANS = Up(axis="z", known_from="superior in the scan's millimetres")
UP_IN_PACKS = Up(axis="y", known_from="packs stand along y")
UP_UNSAID = Up(axis="y", known_from="")
"""What is taken where nobody said it: objects stand as they are inside."""


def rotation(up: str) -> npt.NDArray[np.int64]:
    """Return R `[3, 3]` with `inside = R @ source`: it turns the axis `up` to +y, and is exact in every digit.

    Raises:
        ValueError: `up` is none of `UP_AXES`.
    """
    import numpy as np

    check_up(up)
    return np.array(_ROTATIONS[up])


def stand_up(points: Points, up: str) -> Points:  # [..., 3]
    """Turn finite points of the source so that its axis `up` becomes +y. Raises a ValueError for another `up`."""
    return points @ rotation(up).T


def lay_back(points: Points, up: str) -> Points:  # [..., 3]
    """Undo `stand_up`: turn finite points from the inside's axes to the source's."""
    return points @ rotation(up)


def check_up(up: str) -> None:
    """Raise a ValueError unless `up` is one of `UP_AXES`."""
    if up not in UP_AXES:
        raise ValueError(f"up must be one of {', '.join(UP_AXES)}, got {up!r}")


def read_up(text: str, what: str) -> str | None:
    """Return the axis (or `AUTO`) that an option or a table's cell names; None for an empty one.

    Capitals and a plus sign are read: `Z` and `+z` are `z`.

    Raises:
        ValueError: it names none; the message begins with `what`.
    """
    axis = text.strip().lower().removeprefix("+")
    if axis in _NOTHING:
        return None
    if axis not in (*UP_AXES, AUTO):
        raise ValueError(f"{what} must be one of {', '.join(UP_AXES)}, or {AUTO}; got {text[:80]!r}")
    return axis


def up_of(path: str | os.PathLike[str], asked: str | None = None, column: str = "") -> Up:
    """Return which axis of a mesh file points up, and where that is known from.

    The command line counts first, then the table, what the file itself says (if it was written here, see `up_note`),
    what its format says, and last `DEFAULT_UP`.

    Args:
        path: the file.
        asked: what `--up` says; None where it isn't given.
        column: what the column `up` says in the file's row; empty where there is none.

    Raises:
        ValueError: `asked` or `column` names no axis.
    """
    for text, place, what in ((asked or "", _BY_FLAG, "--up"), (column, _BY_TABLE, "its column up")):
        axis = read_up(text, what)
        if axis is not None:
            return Up(axis=axis, known_from=place)
    axis = _noted(Path(path))
    if axis is not None:
        return Up(axis=axis, known_from="the file says so")
    suffix = Path(path).suffix.lower()
    kind = FORMATS.get(suffix)
    if kind is not None and kind.up is not None:
        return Up(axis=kind.up, known_from=f"{kind.name} files stand along {kind.up}")
    return Up(axis=DEFAULT_UP, known_from=f"default for {suffix or 'files without a suffix'}")


def up_note(up: str) -> str:
    """Return the words with which a mesh file that is written here says which of its axes points up."""
    check_up(up)
    return f"vae-qwen3vl up={up}"


def _noted(path: Path) -> str | None:
    """Return the axis that a file's `up_note` names; None where it has none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        note = re.search(rb"vae-qwen3vl up=(-?[xyz])(?![a-z])", file.read(_NOTE_BYTES))
    return note[1].decode() if note else None
