"""Joins items of datasets to batches that `Qwen3VLWith3DBranch.forward_with_3d` takes as they are.

Only `codes_3d` are looked up first, by the trainer on its device, and `title_ids` are for its objective alone.

Where an item has words of `similar` objects, they stand in front of the user's first words. Text is written by
`Processor3D`: the answer alone is supervised, and never cut. 3D padding carries a mask, so that
it never becomes a token. Items without a shape (plain text) may stand among the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_qwen3vl.processor import DEFAULT_PROMPT, IGNORED_LABEL, Processor3D
from vae_qwen3vl.sequence_3d import joined_coords

Item = Mapping[str, Any]
_WAY_A = ("feats_3d", "coords_3d", "input_ids", "attention_mask", "labels")


def collate_sdf_caption(
    batch: Sequence[Item], tokenizer: Any, prompt: str = DEFAULT_PROMPT, max_length: int | None = 256
) -> dict[str, Any]:
    """Join items of `SDF3DCaptionDataset` (way B: the VAE encodes in the step).

    Args:
        batch: the items; one without `inputs_3d` is plain text and needs a `conversation`.
        tokenizer: a tokenizer with a chat template, or a `Processor3D`.
        prompt: asks for captions that come without a conversation of their own.
        max_length: most text tokens of an item; None for any number.

    Returns:
        `inputs_3d` (`sparse_sdf`, `sparse_index`, `batch_idx`, which counts objects), unless all is plain text;
        `input_ids`, `attention_mask` and `labels` `[B, S]`.

    Raises:
        ValueError: the batch is empty, an item has neither shape nor conversation, or one is too long: an answer is
            never cut.
    """
    words = _words(batch, "inputs_3d", tokenizer, prompt, max_length)
    fields = [item["inputs_3d"] for item in batch if "inputs_3d" in item]
    if not fields:
        return dict(words)
    joined = {key: torch.cat([field[key] for field in fields]) for key in ("sparse_sdf", "sparse_index")}
    sizes = torch.tensor([len(field["sparse_index"]) for field in fields])
    return {"inputs_3d": {**joined, "batch_idx": torch.arange(len(fields)).repeat_interleave(sizes)}, **words}


def collate_codes_caption(
    batch: Sequence[Item],
    tokenizer: Any,
    prompt: str = DEFAULT_PROMPT,
    max_length: int | None = 256,
    *,
    titles: bool = False,
) -> dict[str, Any]:
    """Join items of `CachedCodesDataset`; arguments and errors as for `collate_sdf_caption`.

    Returns:
        `feats_3d [M, D]`, or where items have no vectors `codes_3d` int32 `[M]`, and `coords_3d` int32 `[M, 4]` =
        (object, x, y, z), unless all is plain text; the text as in `collate_sdf_caption`; and if `titles` are asked
        for, which are for the trainer's objective, `title_ids` int64 `[O, T]`, the tokens of each object's `title`
        (-1 is padding), where all have one.
    """
    bare = any("codes" in item and "feats_3d" not in item for item in batch)
    given, key = ("codes", "codes_3d") if bare else ("feats_3d", "feats_3d")
    words = _words(batch, given, tokenizer, prompt, max_length)
    shapes = [item for item in batch if given in item]
    if not shapes:
        return dict(words)
    if titles and all(item.get("title") for item in shapes):
        encoded = [_processor(tokenizer).encode_text(item["title"]) for item in shapes]
        longest = max(map(len, encoded))
        words["title_ids"] = torch.tensor([ids + [-1] * (longest - len(ids)) for ids in encoded])
    joined = torch.cat([item[given] for item in shapes])
    coords = joined_coords([item["coords"] for item in shapes])
    return {key: joined.int() if bare else joined, "coords_3d": coords, **words}


def collate_3d_text(batch: Sequence[Item | Sequence[Tensor]], latent_dim: int = 16) -> dict[str, Tensor]:
    """Join items of a dataset of your own that holds codebook vectors (way A).

    Each item is a dictionary with `feats_3d [N, D]`, `coords_3d [N, 4]` (the first column is ignored),
    `input_ids`, `attention_mask` and `labels` `[S]`, or a tuple of these five in this order.

    Args:
        batch: the items.
        latent_dim: code width D, as the projector expects it.

    Returns:
        `feats_3d [B, L, D]`, `coords_3d [B, L, 4]`, `mask_3d` bool `[B, L]` (False is padding), `input_ids`,
        `attention_mask` and `labels` `[B, S]`.

    Raises:
        ValueError: the batch is empty, or an item has other shapes.
    """
    if not batch:
        raise ValueError("collate_3d_text needs at least one item")
    items = [_named(item) for item in batch]
    for number, item in enumerate(items):
        _check_way_a(item, number, latent_dim)
    longest = max(len(item["feats_3d"]) for item in items)
    feats = items[0]["feats_3d"].new_zeros((len(items), longest, latent_dim))
    coords = items[0]["coords_3d"].new_zeros((len(items), longest, 4))
    mask = torch.zeros(len(items), longest, dtype=torch.bool)
    for number, item in enumerate(items):
        count = len(item["feats_3d"])
        feats[number, :count] = item["feats_3d"]
        coords[number, :count, 1:] = item["coords_3d"][:, 1:]
        coords[number, :, 0] = number
        mask[number, :count] = True
    fills = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED_LABEL}
    text = {
        key: torch.nn.utils.rnn.pad_sequence([item[key] for item in items], batch_first=True, padding_value=fill)
        for key, fill in fills.items()
    }
    return {"feats_3d": feats, "coords_3d": coords, "mask_3d": mask, **text}


def _processor(tokenizer: Any) -> Processor3D:
    return tokenizer if isinstance(tokenizer, Processor3D) else Processor3D(tokenizer)


def _named(item: Item | Sequence[Tensor]) -> Item:
    if isinstance(item, Mapping):
        missing = [key for key in _WAY_A if key not in item]
        if missing:
            raise ValueError(f"an item of way A has {', '.join(_WAY_A)}; {', '.join(missing)} is missing")
        return item
    if len(item) != len(_WAY_A):
        raise ValueError(f"an item of way A has five parts ({', '.join(_WAY_A)}), not {len(item)}")
    return dict(zip(_WAY_A, item, strict=True))


def _check_way_a(item: Item, number: int, latent_dim: int) -> None:
    feats, coords = item["feats_3d"], item["coords_3d"]
    if feats.ndim != 2 or feats.shape[1] != latent_dim or len(feats) == 0 or coords.shape != (len(feats), 4):
        raise ValueError(
            f"item {number}: feats_3d must be [N, {latent_dim}] and coords_3d [N, 4], N > 0; got "
            f"{list(feats.shape)} and {list(coords.shape)}"
        )
    sizes = {len(item[key]) for key in ("input_ids", "attention_mask", "labels")}
    if len(sizes) != 1:
        raise ValueError(
            f"item {number}: input_ids, attention_mask and labels have different lengths {sorted(sizes)}"
        )


def _asked(item: Item, prompt: str) -> list[dict[str, str]]:
    """Return the turns before an item's answer, behind what is said of objects like it, where that is shown."""
    turns = item.get("conversation") or [{"role": "user", "content": prompt}]
    if not item.get("similar"):
        return list(turns)
    first = next(number for number, turn in enumerate(turns) if turn["role"] == "user")
    behind = {**turns[first], "content": f"{item['similar']}\n{turns[first]['content']}"}
    return [*turns[:first], behind, *turns[first + 1 :]]


def _words(
    batch: Sequence[Item], shape: str, tokenizer: Any, prompt: str, max_length: int | None
) -> dict[str, Tensor]:
    if not batch:
        raise ValueError("a batch needs at least one item")
    processor = _processor(tokenizer)
    for item in batch:
        if shape not in item and not item.get("conversation"):
            raise ValueError(f"{item.get('sample_id', 'an item')} has neither {shape!r} nor a 'conversation'")
    conversations = [_asked(item, prompt) for item in batch]
    objects = [int(shape in item) for item in batch]
    words = processor(conversations, [item["caption"] for item in batch], objects=objects)
    lengths = words["attention_mask"].sum(1).tolist()
    for item, length in zip(batch, lengths, strict=True):
        if max_length is not None and length > max_length:
            raise ValueError(
                f"{item.get('sample_id', 'an item')}: its text has {length} tokens, over max_length={max_length}; "
                "answers are never cut, so give a larger max_length or leave the object out"
            )
    return words
