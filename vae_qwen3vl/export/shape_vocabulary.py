"""Codes as words: a start, an end and one vocabulary entry a code, so that an object is a string of tokens.

Works on a tokenizer and on numbers alone; which projectors allow it is said here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.projector_file import ProjectorDescription
from vae_qwen3vl.sequence_3d import joined_coords, sequence_keys

SHAPE_START, SHAPE_END = "<|shape_start|>", "<|shape_end|>"


def code_token(code: int) -> str:
    """Return the vocabulary entry of a code."""
    return f"<|code_{code}|>"


def unfit_for_vocabulary(about: ProjectorDescription) -> list[str]:
    """Return why a projector's tokens can't be vocabulary entries, an empty list if they can."""
    return [
        reason
        for reason, holds in (
            (f"merge {about.merge}: a token holds up to {about.merge**3} codes, not one", about.merge > 1),
            ("use_3d_pos: a code's vector depends on where it stands", about.use_3d_pos),
            (f"encoder_layers {about.encoder_layers}: a token depends on the others", about.encoder_layers > 0),
            (f"shape_tokens {about.shape_tokens}: they come of no code", about.shape_tokens > 0),
            (f"positions {about.positions}: engines count positions", about.positions != "sequential"),
        )
        if holds
    ]


def add_shape_tokens(tokenizer: Any, codes: int) -> None:
    """Give a tokenizer the entries of `codes` codes and the two markers, behind what it has.

    Raises:
        ValueError: it has one of them.
    """
    from tokenizers import AddedToken

    names = [SHAPE_START, SHAPE_END, *map(code_token, range(codes))]
    if known := tokenizer.get_vocab().keys() & set(names):
        raise ValueError(f"the tokenizer has {min(known)} already: export from the language model as it was")
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names], special_tokens=True)


class ShapeVocabulary:
    """Writes objects with a tokenizer that has shape tokens.

    Args:
        tokenizer: after `add_shape_tokens`.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        vocabulary: dict[str, int] = tokenizer.get_added_vocab()
        if SHAPE_START not in vocabulary:
            raise ValueError(f"the tokenizer has no {SHAPE_START}: it is of no export with objects as tokens")
        self.start, self.end = vocabulary[SHAPE_START], vocabulary[SHAPE_END]
        self.codes: list[int] = []
        while (token := code_token(len(self.codes))) in vocabulary:
            self.codes.append(vocabulary[token])

    def ids(self, codes: Sequence[int]) -> list[int]:
        """Return the token ids of an object, markers included; `codes` as `in_order` gives them."""
        return [self.start, *(self.codes[code] for code in codes), self.end]

    @staticmethod
    def text(codes: Sequence[int]) -> str:
        """Return the same as text, which the tokenizer reads as these ids."""
        return "".join([SHAPE_START, *map(code_token, codes), SHAPE_END])


def in_order(shape: ShapeCodes) -> list[int]:
    """Return an object's codes in the order in which the language model reads them: by z, then y, then x."""
    order = sequence_keys(joined_coords([shape.coords])).argsort()
    return [int(code) for code in shape.first[order]]
