"""Turns of an upright object: which of its axes comes to point up, and how far it is turned about the vertical then.

Knows axes and angles, and what a turned object is called; nothing of fields or codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # programs ask for the names of turns alone
    import numpy as np
    import numpy.typing as npt

from sdf_vqvae.geometry.up import UP_AXES, check_up, rotation

_NAME = re.compile(r"(-?[xyz])(\d{1,3}(?:\.\d{1,6})?)")
_QUARTERS = (0, 90, 180, 270)


@dataclass(frozen=True, kw_only=True, order=True)
class Turn:
    """One turn of an object that stands along +y."""

    up: str
    """The one of its axes that points up afterwards (`UP_AXES`)."""
    degrees: float
    """By how much it is turned about the vertical then, 0 to 360: z goes towards x."""

    def __post_init__(self) -> None:
        """Check both."""
        check_up(self.up)
        if not 0 <= self.degrees < 360:
            raise ValueError(f"a turn about the vertical is of 0 to 360 degrees, got {self.degrees}")

    @classmethod
    def named(cls, name: str) -> Turn:
        """Return the turn of a name, such as `y90` or `-x0`. Raises a ValueError for another text."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(
                f"a turn is named by the axis that comes up and the degrees about the vertical then, such as y90 or "
                f"-x0; got {name[:40]!r}"
            )
        return cls(up=match[1], degrees=float(match[2]))

    @property
    def name(self) -> str:
        """Its name, which `named` reads."""
        return f"{self.up}{self.degrees:.10g}"

    @property
    def is_exact(self) -> bool:
        """Whether it is one of the 24 that a grid has, which move samples and change none."""
        return self.degrees in _QUARTERS

    @property
    def keeps_up(self) -> bool:
        """Whether the object stands as before."""
        return self.up == "y"

    def rotation(self) -> npt.NDArray[np.float64]:
        """Return T `[3, 3]` with `turned = T @ upright`; whole numbers where the turn is exact."""
        import numpy as np

        angle = np.radians(self.degrees)
        c, s = np.cos(angle), np.sin(angle)
        about = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
        return (np.rint(about) if self.is_exact else about) @ rotation(self.up)

    def id_of(self, name: str) -> str:
        """Return what the turned object is called: the object's id, and behind an @ the turn."""
        return name if self == UNTURNED else f"{name}@{self.name}"


UNTURNED = Turn(up="y", degrees=0)
YAW = tuple(Turn(up="y", degrees=degrees) for degrees in _QUARTERS[1:])
UPS = tuple(Turn(up=up, degrees=0) for up in UP_AXES if up != "y")
ALL = tuple(turn for up in UP_AXES for degrees in _QUARTERS if (turn := Turn(up=up, degrees=degrees)) != UNTURNED)
_SETS = {"yaw": YAW, "ups": UPS, "all": ALL}


def read_turns(text: str) -> tuple[Turn, ...]:
    """Return the turns that an option names, without the one that turns nothing.

    Args:
        text: names with commas between them; `yaw` stands for the quarter turns about the vertical, `ups` for each
            other axis up, `all` for the 23 that a grid has.

    Raises:
        ValueError: a name is none; the message has it.
    """
    turns: list[Turn] = []
    for part in text.split(","):
        name = part.strip()
        turns += _SETS[name] if name in _SETS else [Turn.named(name)]
    return tuple(turn for turn in dict.fromkeys(turns) if turn != UNTURNED)


def split_id(name: str) -> tuple[str, Turn]:
    """Return the object and the turn that an id names (`Turn.id_of`)."""
    own, _, turn = name.rpartition("@")
    try:
        return (own, Turn.named(turn)) if own else (name, UNTURNED)
    except ValueError:
        return name, UNTURNED
