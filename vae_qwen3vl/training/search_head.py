"""Train the head of the search: which affine map of a shape's features lies nearest to what is said of it.

A ridge regression to the captions' embeddings in closed form, from there the contrastive loss of `CaptionContrast`
with the features frozen, and of its passes the one that finds most validation objects by their words. Seconds on a
CPU. Knows numbers; what was measured of which objects is its caller's business.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdf_vqvae.utils.progress import follow
from vae_qwen3vl.training.losses import symmetric_contrast
from vae_qwen3vl.training.schedule import rate

RIDGE = 0.3
_RATE, _DECAY, _WARM_UP, _DROPOUT = 1e-3, 0.3, 0.05, 0.5
_TEMPERATURE, _LEAST_TEMPERATURE = 0.07, 0.01
_TOPS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Told:
    """Objects and what is said of them."""

    features: Tensor
    """`[O, F]`."""
    captions: Sequence[Tensor]
    """Embeddings of length 1 of each object's captions, `[n, E]`."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training came to."""

    weight: Tensor
    """`[E, F]`."""
    bias: Tensor
    """`[E]`."""
    records: Sequence[dict[str, float]]
    """Of the regression (epoch 0) and of each pass: loss and, of validation, `recall_1`, `recall_5`, `recall_10`."""
    epoch: int
    """Whose weights these are."""


def recalls(vectors: Tensor, captions: Tensor) -> dict[str, float]:
    """Return how often an object is among the first by its caption; equals count as half of them before it.

    Args:
        vectors: `[O, E]`, of length 1.
        captions: `[O, E]`, one an object.
    """
    likeness = vectors @ captions.T  # [O, O]
    own = likeness.diagonal()
    before = (likeness > own).sum(0) + ((likeness == own).sum(0) - 1) / 2
    return {f"recall_{top}": float((before < top).float().mean()) for top in _TOPS}


def train_search_head(train: Told, val: Told, *, epochs: int = 20, batch_size: int = 512, seed: int = 0) -> Trained:
    """Train on one set of objects, and choose the pass by another.

    Columns of the features that are the same for all objects of training keep a weight of zero.

    Args:
        train: objects with at least one caption each; one is drawn a pass.
        val: objects whose last caption is asked for.
        epochs: passes after the regression.
        batch_size: objects a batch.
        seed: of the order and of which caption is drawn.
    """
    torch.manual_seed(seed)
    mean, spread = train.features.mean(0), train.features.std(0)
    scale = torch.where(spread > 0, 1 / spread, 0.0)
    rows, asked = (train.features - mean) * scale, torch.stack([own[-1] for own in val.captions])
    head = nn.Linear(rows.shape[1], asked.shape[1])
    with torch.no_grad():
        weight, bias = _ridge(rows, F.normalize(torch.stack([own.mean(0) for own in train.captions]), dim=1))
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    log_scale = nn.Parameter(torch.tensor(math.log(1 / _TEMPERATURE)))
    optimizer = torch.optim.AdamW([*head.parameters(), log_scale], lr=_RATE, weight_decay=_DECAY)
    records: list[dict[str, float]] = []
    best, best_epoch, most = copy.deepcopy(head), 0, -1.0
    batches = math.ceil(len(rows) / batch_size)
    for epoch in follow(range(epochs + 1), "search head", "pass"):
        total = 0.0
        for number, chosen in enumerate(torch.randperm(len(rows)).split(batch_size) if epoch else ()):
            words = torch.stack([_one_of(train.captions[i]) for i in chosen.tolist()])
            optimizer.param_groups[0]["lr"] = _RATE * rate(
                ((epoch - 1) * batches + number) / (epochs * batches), 0.0, _WARM_UP
            )
            vectors = F.normalize(head(F.dropout(rows[chosen], _DROPOUT)), dim=1)
            factor = log_scale.exp().clamp(max=1 / _LEAST_TEMPERATURE)
            loss = symmetric_contrast(factor * vectors @ words.T, words)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        with torch.no_grad():
            found = recalls(F.normalize(head((val.features - mean) * scale), dim=1), asked)
        records.append({"epoch": epoch, "loss": total / len(rows), **found})
        if found["recall_5"] + found["recall_10"] > most:
            best, best_epoch, most = copy.deepcopy(head), epoch, found["recall_5"] + found["recall_10"]
    weight = best.weight.detach() * scale
    return Trained(weight=weight, bias=best.bias.detach() - weight @ mean, records=records, epoch=best_epoch)


def _ridge(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight `[E, F]` and bias `[E]` of the ridge regression of targets on rows of mean zero."""
    wide, middle = rows.double(), targets.double().mean(0)
    gram = wide.T @ wide + RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, wide.T @ (targets.double() - middle)).T.float(), middle.float()


def _one_of(captions: Tensor) -> Tensor:  # [n, E] -> [E]
    return captions[int(torch.randint(len(captions), ()))]
