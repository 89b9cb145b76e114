"""Objects with words: cached codes joined with captions, drawn as batches for the 3D branch.

Knows captions and codes; nothing of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_qwen3vl.captions import as_sentence
from vae_qwen3vl.code_cache import CodeCache


@dataclass(frozen=True, kw_only=True)
class CaptionedBatch:
    """B objects with one caption each."""

    codes: Tensor
    """int64 `[M]`."""
    coords: Tensor
    """int32 `[M, 4]` = (object, x, y, z)."""
    captions: list[str]

    def shuffled(self) -> CaptionedBatch:
        """Return the batch with every object's codes given to the next caption: the blind control."""
        size = len(self.captions)
        moved = self.coords.clone()
        moved[:, 0] = (moved[:, 0] + 1) % size
        order = torch.argsort(moved[:, 0], stable=True)
        return CaptionedBatch(codes=self.codes[order], coords=moved[order], captions=self.captions)


def captions_of(record: dict[str, Any]) -> list[str]:
    """Return the captions of a pack's record as sentences: first letter large, full stop at the end."""
    words = [str(c).strip() for c in record.get("captions") or [record.get("name", "")]]
    return [as_sentence(c) for c in words if c]


class CaptionedCodes:
    """Objects of a code cache that have captions, drawn by weight with a caption at random.

    Args:
        cache: the codes.
        captions: captions by object id; objects without any are left out.
        weights: drawing weight by object id.

    Raises:
        ValueError: no object has a caption.
    """

    def __init__(self, cache: CodeCache, captions: dict[str, list[str]], weights: dict[str, float]) -> None:
        self.cache = cache
        self.captions = captions
        self.rows = [i for i, name in enumerate(cache.ids) if captions.get(name)]
        if not self.rows:
            raise ValueError("no object of the code cache has a caption")
        self.weights = torch.tensor([weights[cache.ids[i]] for i in self.rows])

    def draw(self, size: int, generator: torch.Generator) -> CaptionedBatch:
        """Draw `size` objects with replacement."""
        chosen = torch.multinomial(self.weights, size, replacement=True, generator=generator).tolist()
        return self.batch([self.rows[i] for i in chosen], generator)

    def batch(self, rows: Sequence[int], generator: torch.Generator) -> CaptionedBatch:
        """Join the objects of these cache rows, each with one of its captions."""
        codes, coords, captions = [], [], []
        for number, row in enumerate(rows):
            own_codes, xyz = self.cache.object(row)
            codes.append(own_codes)
            coords.append(torch.cat([torch.full_like(xyz[:, :1], number), xyz], dim=1))
            choices = self.captions[self.cache.ids[row]]
            captions.append(choices[int(torch.randint(len(choices), (1,), generator=generator))])
        return CaptionedBatch(codes=torch.cat(codes).long(), coords=torch.cat(coords).int(), captions=captions)
