"""Batches for `Trainer` of transformers and `SFTTrainer` of trl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vae_qwen3vl.data.collate import collate_codes_caption
from vae_qwen3vl.pretrained.processing import ShapeVLProcessor


@dataclass(frozen=True, kw_only=True)
class ShapeVLCollator:
    """Joins records to a batch of `ShapeVLForConditionalGeneration`; the assistant's turns are what is learned.

    A record has `messages`: a chat with meshes (as paths or, better, as codes) that ends with the assistant's turn.
    Items of a `CachedCodesDataset` are taken too.
    """

    processor: ShapeVLProcessor
    up: str | None = None
    """See `ShapeVLProcessor.encode_mesh`."""

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels` `[B, S]`, and what the shapes and images are.

        Raises:
            ValueError: a record has no messages and is no item of a dataset, or its chat can't be used.
        """
        if any("messages" in record for record in records):
            return self.processor.encode_chats([record["messages"] for record in records], up=self.up)
        return collate_codes_caption(records, self.processor.words, max_length=None)
