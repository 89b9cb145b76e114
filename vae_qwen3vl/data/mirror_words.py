"""What is said of an object's mirror image: left and right exchanged, in English and Chinese.

The mirror image of a left kidney looks like a right one, but that of a left ventricle does not look like a right one:
organs without a pair are left out where their words name a side. Knows texts; nothing of shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from vae_qwen3vl.data.texts import Text

_SIDES = re.compile(
    r"(?i:(?<![a-z])(?:left|right)(?![a-z]|[- ](?:ang|triang|circular|prism|cone)))"
    r"|(?<!左)[左右](?![左右轮])"
    r"|(?<=[A-Za-z]{3} )(?<![Ss]ize )(?:[LR](?=[,.)]| \(|$)|[lr](?= \(whole))"
)
"""Words of sides, and the L or R at the end of an organ's name (`Knee L, male`); no right angles, no `tire 43 R`, no
revolver (左轮), no "on both sides" (左右)."""
_WITHOUT_PAIR = re.compile(
    r"ventric|atri(?:um|al|oventricular)|coronary|cardiac|marginal|heart|lung|pulmon|bronch|lobe|hepat|liver|biliary|"
    r"colic|gastr|carotid|subclavian|brachiocephalic|aort|室|房|心|肺|肝|叶|支气管",
    re.IGNORECASE,
)
_OTHER = {"left": "right", "right": "left", "l": "r", "r": "l", "左": "右", "右": "左"}


def mirrored_text(text: Text) -> Text:
    """Return the text as it is said of the mirror image."""
    turns = text.conversation
    if turns is not None:
        turns = tuple({**turn, "content": exchange_sides(turn["content"])} for turn in turns)
    return replace(text, answer=exchange_sides(text.answer), conversation=turns)


def exchange_sides(words: str) -> str:
    """Return words with left and right exchanged, as they are written: `Left kidney` -> `Right kidney`."""
    return _SIDES.sub(_exchange, words)


def looks_like_the_other_side(texts: Iterable[Text]) -> bool:
    """Say whether the object's mirror image is what its texts say with the sides exchanged.

    It is not where an organ without a pair is in the same text as a side, or is the object's caption and any text
    names a side.
    """
    sided, unpaired = False, False
    for text in texts:
        side, alone = bool(_SIDES.search(text.answer)), bool(_WITHOUT_PAIR.search(text.answer))
        if side and alone:
            return False
        sided, unpaired = sided or side, unpaired or (alone and not text.kind)
    return not (sided and unpaired)


def _exchange(match: re.Match[str]) -> str:
    side = match[0]
    opposite = _OTHER[side.lower()]
    if side.isupper():
        return opposite.upper()
    return opposite.capitalize() if side[0].isupper() else opposite
