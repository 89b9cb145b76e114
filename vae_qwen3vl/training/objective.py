"""What training minimises: the loss of the answers, and a lesson that ties 3D tokens to names directly."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_qwen3vl.inputs import BranchInputs
from vae_qwen3vl.language.backbone import uncompiled, without_wrapper
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.projector import Tokens3D

_TEMPERATURE = 0.07
_SAME = 0.999
"""Texts whose embeddings agree so far are one text; they are no rivals."""


def answer_loss(
    vl_model: Any, inputs: BranchInputs, arguments: dict[str, Any], plain: Tensor | None = None
) -> Tensor:  # []
    """Return the mean loss of the answers' tokens; 0 where there are none.

    It is their cross entropy, but in plain rows the Kullback-Leibler divergence from what the model without adapters
    says at the same places: adapters lose nothing there by being themselves, and cannot learn the texts by heart
    (learning without forgetting, Li and Hoiem 2016).

    The vocabulary's logits are computed where an answer's token is predicted and nowhere else.

    Args:
        vl_model: the language model.
        inputs: with labels, padded on the right.
        arguments: more for the language model.
        plain: bool `[B]`, rows about no object; None has no such rows.
    """
    assert inputs.labels is not None, "a loss needs labels"
    targets = F.pad(inputs.labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # [B, S']
    kept = targets != IGNORED_LABEL
    # Found before the model runs: on a GPU the backward pass is then prepared while the forward pass runs.
    places = kept.flatten().nonzero().squeeze(1)  # [N]
    before = None if plain is None else _untouched_logits(vl_model, inputs, arguments, plain, kept)  # [P, V]
    logits = _logits(vl_model, inputs.model_kwargs(), arguments, places)  # [N, V]
    losses = F.cross_entropy(logits, targets.flatten()[places], reduction="none")
    if plain is not None and before is not None:
        of_plain = plain[places // kept.shape[1]]  # [N]
        likely = before.softmax(-1)
        entropy = F.cross_entropy(before, likely, reduction="none")
        losses = losses.masked_scatter(
            of_plain, F.cross_entropy(logits[of_plain], likely, reduction="none") - entropy
        )
    return losses.sum() / max(1, len(places))


def _logits(vl_model: Any, taken: dict[str, Tensor], arguments: dict[str, Any], places: Tensor) -> Tensor:  # [N, V]
    """Return the logits, float32, of `places [N]` in `[B * S']`."""
    base = without_wrapper(vl_model)
    # Padding is on the right, where no earlier token looks: without a mask, attention takes its fastest kernels.
    hidden = base.model(**{**taken, "attention_mask": None, "use_cache": False, **arguments}).last_hidden_state
    logits: Tensor = base.lm_head(hidden.flatten(0, 1)[places]).float()
    return logits


@torch.no_grad()
def _untouched_logits(
    vl_model: Any, inputs: BranchInputs, arguments: dict[str, Any], plain: Tensor, kept: Tensor
) -> Tensor | None:  # [P, V]
    """Return the logits of the model without adapters at the kept places of plain rows, None if there are none.

    It runs without them too, on one row: processes that share a sharded model must all run it.
    """
    found = plain.nonzero().flatten()
    rows = found if len(found) else found.new_zeros(1)
    longest = int(inputs.attention_mask[rows].sum(1).max())
    taken = {
        "inputs_embeds": inputs.inputs_embeds[rows, :longest],
        "position_ids": inputs.position_ids[:, rows, :longest],
    }
    with vl_model.disable_adapter(), uncompiled():  # which leaves adapters trainable
        places = kept[rows, :longest].flatten().nonzero().squeeze(1)
        logits = _logits(vl_model, taken, arguments, places)
    return logits if len(found) else None


def title_contrast(tokens: Tokens3D, title_ids: Tensor, table: Tensor) -> Tensor:  # []
    """Return the symmetric contrastive loss between objects and their names (InfoNCE; CLIP, Radford et al. 2021).

    An object is the mean of its 3D tokens, a name the mean of its words' embeddings without the vocabulary's mean.

    Args:
        tokens: of a batch of O objects.
        title_ids: int64 `[O, T]`, -1 is padding.
        table: the language model's embeddings `[V, H]`.
    """
    objects = tokens.coords[:, 0].long()
    count = len(title_ids)
    sums = torch.zeros(count, tokens.embeds.shape[1], device=tokens.embeds.device)
    shapes = F.normalize(sums.index_add(0, objects, tokens.embeds.float()), dim=1)  # [O, H]
    real = title_ids >= 0
    with torch.no_grad():
        words = F.embedding(title_ids.clamp(min=0), table).float() * real[..., None]
        names = words.sum(1) / real.sum(1, keepdim=True).clamp(min=1) - table.float().mean(0)
        names = F.normalize(names, dim=1)
    return symmetric_contrast(shapes @ names.T / _TEMPERATURE, names)


def symmetric_contrast(likeness: Tensor, texts: Tensor) -> Tensor:  # []
    """Return the symmetric contrastive loss of objects and their texts; texts that are the same are no rivals.

    Args:
        likeness: of every object and every text, scaled, `[O, O]`; the pairs stand on the diagonal.
        texts: embeddings of length 1, `[O, E]`.
    """
    rivals = texts @ texts.T < _SAME
    rivals.fill_diagonal_(True)
    likeness = likeness.masked_fill(~rivals, float("-inf"))
    right = torch.arange(len(texts), device=likeness.device)
    return (F.cross_entropy(likeness, right) + F.cross_entropy(likeness.T, right)) / 2
