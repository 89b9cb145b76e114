"""What training minimises: the loss of the answers, and a lesson that ties 3D tokens to names directly.

`AlignmentObjective` wraps the 3D branch, which knows nothing of it. Knows neither data nor the loop.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_qwen3vl.inputs import BranchInputs, merging_arguments
from vae_qwen3vl.language.backbone import embedding_table, uncompiled, without_wrapper
from vae_qwen3vl.layout import without_object
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.projector import Tokens3D

_TEMPERATURE = 0.07
_SAME = 0.999
"""Texts whose embeddings agree so far are one text; they are no rivals."""


class AlignmentObjective(nn.Module):
    """A 3D branch with the loss that it learns by: what is prepared for processes, and run in a step.

    Args:
        branch: the model.
        contrastive_weight: of `title_contrast` beside the answers' loss.
    """

    def __init__(self, branch: Qwen3VLWith3DBranch, contrastive_weight: float = 0.0) -> None:
        super().__init__()
        self.branch = branch
        self.contrastive_weight = contrastive_weight

    @property
    def _no_split_modules(self) -> Any:
        """Where Accelerate looks for what FSDP shards one by one."""
        return self.branch._no_split_modules

    def forward(
        self, *, title_ids: Tensor | None = None, keep_plain: bool = False, **batch: Any
    ) -> dict[str, Tensor]:
        """Return `loss`, and `answer_loss`, the part of it that the answers make.

        Args:
            title_ids: int64 `[O, T]`, the tokens of each object's name (-1 is padding), for `title_contrast`.
            keep_plain: hold adapters to the model without them in rows without a placeholder (`answer_loss`).
            **batch: what the branch takes, with labels.
        """
        branch = self.branch
        plain = without_object(batch["input_ids"].to(branch.device)) if keep_plain else None
        inputs = branch.build_inputs(**merging_arguments(batch))
        answers = total = answer_loss(branch.vl_model, inputs, batch, plain)
        if title_ids is not None and self.contrastive_weight > 0 and len(inputs.tokens_3d.coords):
            table = embedding_table(branch.vl_model)
            contrast = title_contrast(inputs.tokens_3d, title_ids.to(branch.device), table)
            total = answers + self.contrastive_weight * contrast
        return {"loss": total, "answer_loss": answers.detach()}


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
    answers = targets != IGNORED_LABEL
    # Found before the model runs: on a GPU the backward pass is then prepared while the forward pass runs.
    places = answers.flatten().nonzero().squeeze(1)  # [N]
    before = None if plain is None else _untouched_logits(vl_model, inputs, arguments, plain, answers)  # [P, V]
    logits = _logits(vl_model, inputs.model_kwargs(), arguments, places)  # [N, V]
    losses = F.cross_entropy(logits, targets.flatten()[places], reduction="none")
    if plain is not None and before is not None:
        of_plain = plain[places // answers.shape[1]]  # [N]
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
    vl_model: Any, inputs: BranchInputs, arguments: dict[str, Any], plain: Tensor, answers: Tensor
) -> Tensor | None:  # [P, V]
    """Return the logits of the model without adapters at the kept places of plain rows, None if there are none.

    It runs without them too, on one row: processes that share a sharded model must all run it.
    """
    plain_rows = plain.nonzero().flatten()
    rows = plain_rows if len(plain_rows) else plain_rows.new_zeros(1)
    longest = int(inputs.attention_mask[rows].sum(1).max())
    taken = {
        "inputs_embeds": inputs.inputs_embeds[rows, :longest],
        "position_ids": inputs.position_ids[:, rows, :longest],
    }
    with vl_model.disable_adapter(), uncompiled():  # which leaves adapters trainable
        places = answers[rows, :longest].flatten().nonzero().squeeze(1)
        logits = _logits(vl_model, taken, arguments, places)
    return logits if len(plain_rows) else None


def title_contrast(tokens: Tokens3D, title_ids: Tensor, table: Tensor) -> Tensor:  # []
    """Return the symmetric contrastive loss between objects and their names (InfoNCE; CLIP, Radford et al. 2021).

    An object is the mean of its 3D tokens, a name the mean of its words' embeddings without the vocabulary's mean.

    Args:
        tokens: of a batch of O objects.
        title_ids: int64 `[O, T]`, -1 is padding.
        table: the language model's embeddings `[V, H]`.
    """
    objects = tokens.coords[:, 0].long().to(tokens.embeds.device)
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
