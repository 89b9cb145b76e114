"""Merges text and 3D tokens into what the language model reads: embeddings, mask, positions, labels.

Knows the language model's embedding table and positions; knows neither the VAE nor how 3D tokens are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vae_qwen3vl.language.backbone import embedding_table, image_text_positions
from vae_qwen3vl.layout import PLACEHOLDER_3D, Positions, SequenceLayout, lay_out, with_placeholders
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.projector import Tokens3D
from vae_qwen3vl.sequence_3d import beside

_MERGED = (
    "input_ids",
    "attention_mask",
    "labels",
    "inputs_3d",
    "feats_3d",
    "coords_3d",
    "mask_3d",
    "mm_token_type_ids",
)
_GRIDS = ("image_grid_thw", "video_grid_thw")


@dataclass(frozen=True, kw_only=True)
class BranchInputs:
    """Text and 3D blocks in one padded sequence of length S'."""

    inputs_embeds: Tensor
    """`[B, S', H]`."""
    attention_mask: Tensor
    """int64 `[B, S']`."""
    position_ids: Tensor
    """int64 `[3, B, S']`."""
    labels: Tensor | None
    """int64 `[B, S']`, -100 over 3D blocks and padding."""
    tokens_3d: Tokens3D
    """The 3D tokens of all blocks."""
    slots: Tensor
    """int64 `[B, S]`: where each of `input_ids` stands in the merged sequence, an object by its end marker; what
    follows a token is predicted there. 0 at padding."""
    encoding_indices_3d: Any = None
    """The VAE's codes object, where raw `inputs_3d` were encoded."""

    def model_kwargs(self) -> dict[str, Tensor]:
        """Return the arguments of the language model's forward and generate (without labels)."""
        return {
            "inputs_embeds": self.inputs_embeds,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }


def merge_inputs(
    vl_model: nn.Module,
    input_ids: Tensor,  # [B, S]
    attention_mask: Tensor,  # [B, S]
    labels: Tensor | None,  # [B, S]
    tokens: Tokens3D,
    markers: Tensor,  # [2, H]
    *,
    positions: Positions,
    padding_side: Literal["left", "right"],
    image_grid_thw: Tensor | None = None,
    video_grid_thw: Tensor | None = None,
    mm_token_type_ids: Tensor | None = None,
    encoding_indices_3d: Any = None,
) -> BranchInputs:
    """Put each object's block at its placeholder (or in front of its row) and pad the rows once.

    Integers are on one device, vectors on that of the language model, where all of the result is but the tokens'
    coordinates. `Qwen3VLWith3DBranch.build_inputs` describes the arguments.
    """
    if labels is not None and labels.shape != input_ids.shape:
        raise ValueError(f"labels {list(labels.shape)} don't match input_ids {list(input_ids.shape)}")
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask {list(attention_mask.shape)} doesn't match input_ids {list(input_ids.shape)}"
        )
    _check_ids(input_ids, attention_mask.bool(), len(embedding_table(vl_model)))
    objects = int(tokens.coords[-1, 0]) + 1 if len(tokens.coords) else 0
    ids, valid, added = with_placeholders(input_ids, attention_mask.bool(), objects)
    if added:
        labels = _with_column(labels, IGNORED_LABEL)
        mm_token_type_ids = _with_column(mm_token_type_ids, 0)
    text_positions = None
    if image_grid_thw is not None or video_grid_thw is not None:
        text_positions = image_text_positions(vl_model, ids, valid, image_grid_thw, video_grid_thw, mm_token_type_ids)
    layout = lay_out(
        ids,
        valid,
        tokens.coords,
        positions=positions,
        padding_side=padding_side,
        text_positions=text_positions,
    )
    embeds = _fill_embeds(vl_model, layout, ids, tokens, markers, objects)
    return BranchInputs(
        inputs_embeds=embeds,
        attention_mask=beside(layout.attention_mask, embeds),
        position_ids=beside(layout.position_ids, embeds),
        labels=None if labels is None else beside(_fill_labels(layout, labels), embeds),
        tokens_3d=tokens,
        slots=beside(_slots(layout, ids, valid, objects)[:, -input_ids.shape[1] :], embeds),
        encoding_indices_3d=encoding_indices_3d,
    )


def merging_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of a call's arguments that `Qwen3VLWith3DBranch.build_inputs` takes.

    What is for it alone is taken out of `arguments`, and the rest is for the language model: it too wants to know how
    large its images are.
    """
    for_both = {name: arguments[name] for name in _GRIDS if name in arguments}
    return for_both | {name: arguments.pop(name) for name in _MERGED if name in arguments}


def unpadded(feats: Tensor, coords: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Bring padded features `[B, L, D]` to the form `[M, D]`, `[M, 4]` by their mask."""
    if feats.ndim == 2:
        if len(feats) != len(coords):
            raise ValueError(f"{len(feats)} rows of feats_3d, but {len(coords)} rows of coords_3d")
        return feats, coords
    if feats.ndim != 3 or mask is None:
        raise ValueError(
            f"feats_3d have shape {list(feats.shape)}: expected [M, D], or [B, L, D] together with mask_3d [B, L]"
        )
    batch = torch.arange(len(feats), device=coords.device)[:, None].expand(mask.shape)
    coords = torch.cat([batch[..., None], coords[..., -3:]], dim=-1)
    mask = mask.bool()
    return feats[mask.to(feats.device)], coords[mask.to(coords.device)]


def _check_ids(ids: Tensor, valid: Tensor, vocabulary: int) -> None:
    """Raise a ValueError that names the first id which is neither text nor a placeholder."""
    unknown = valid & (((ids < 0) & (ids != PLACEHOLDER_3D)) | (ids >= vocabulary))
    if bool(unknown.any()):
        raise ValueError(
            f"input_ids hold {int(ids[unknown][0])}, but the language model's tokens run from 0 to {vocabulary - 1}: "
            "are they of another tokenizer, or labels?"
        )


def _fill_embeds(
    vl_model: Any, layout: SequenceLayout, ids: Tensor, tokens: Tokens3D, markers: Tensor, objects: int
) -> Tensor:  # [B, S', H]
    embeddings = vl_model.get_input_embeddings()
    text = embeddings(beside(ids.clamp(min=0).flatten(), embeddings.weight))  # [B * S, H]
    start, end = markers.to(text)
    padding = text.new_zeros((1, text.shape[1]))
    blocks = [start.expand(objects, -1), end.expand(objects, -1), tokens.embeds.to(text)]
    pool = torch.cat([text, *blocks, padding])  # in the layout's order
    # No view, as the input of the first layer alone would be: layers are compiled once for both sorts of inputs.
    return nn.functional.embedding(beside(layout.source, pool), pool)


def _slots(layout: SequenceLayout, ids: Tensor, valid: Tensor, objects: int) -> Tensor:  # [B, S]
    batch, width = layout.source.shape
    slot_of = torch.zeros(ids.numel() + 2 * objects + layout.source.numel(), dtype=torch.long, device=ids.device)
    slot_of[layout.source] = torch.arange(width, device=ids.device).expand(batch, -1)
    is_object = (ids == PLACEHOLDER_3D) & valid
    number = is_object.flatten().cumsum(0).view_as(ids) - 1
    text = torch.arange(ids.numel(), device=ids.device).view_as(ids)
    rows = torch.where(is_object, ids.numel() + objects + number, text)  # of the pool: text, start and end markers
    return slot_of[rows] * valid


def _fill_labels(layout: SequenceLayout, labels: Tensor) -> Tensor:  # [B, S']
    is_text = layout.source < labels.numel()
    picked = labels.flatten()[layout.source.clamp(max=labels.numel() - 1)]
    return torch.where(is_text, picked, IGNORED_LABEL)


def _with_column(values: Tensor | None, fill: int) -> Tensor | None:
    if values is None:
        return None
    return torch.cat([values.new_full((len(values), 1), fill), values], dim=1)
