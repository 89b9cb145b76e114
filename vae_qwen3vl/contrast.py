"""A loss that ties 3D tokens to names without asking the language model: a direct lesson for the projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_qwen3vl.projector import Tokens3D

_TEMPERATURE = 0.07
_SAME = 0.999
"""Names whose words agree so far are one name; they are no rivals."""


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
        rivals = names @ names.T < _SAME
        rivals.fill_diagonal_(True)
    likeness = (shapes @ names.T / _TEMPERATURE).masked_fill(~rivals, float("-inf"))
    right = torch.arange(count, device=likeness.device)
    return (F.cross_entropy(likeness, right) + F.cross_entropy(likeness.T, right)) / 2
