"""Damaged files, as hypothesis draws them from valid ones."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from file_edits import edit


@st.composite
def damages(draw: st.DrawFn, seeds: list[bytes], suffix: str) -> bytes:
    """Draw a file with some damage: bits flipped, cut short, parts moved or repeated, values edited."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["edit", "edit", "edit", "flip", "cut", "splice", "remove", "number"]))
        if kind == "edit":
            data = edit(suffix, data, random.Random(draw(st.integers(0, 2**32))))
        elif kind == "flip" and data:
            data = data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
        elif kind == "cut":
            data = data[:place]
        elif kind == "splice":
            start = draw(st.integers(0, len(data)))
            data = data[:place] + data[start : start + draw(st.integers(1, 64))] + data[place:]
        elif kind == "remove":
            data = data[:place] + data[place + draw(st.integers(1, 16)) :]
        else:
            number = draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0"]))
            data = data[:place] + number + data[place + 4 :]
    return data
