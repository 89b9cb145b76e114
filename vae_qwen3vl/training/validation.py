"""The two losses of validation: with objects' own shapes, and with other objects' (the blind control).

Only their difference says that shapes are read. Knows the objective and batches; nothing of steps and checkpoints.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vae_qwen3vl.language.backbone import uncompiled
from vae_qwen3vl.processor import IGNORED_LABEL
from vae_qwen3vl.training.batches import TrainingBatches
from vae_qwen3vl.training.losses import AlignmentObjective
from vae_qwen3vl.training.processes import summed
from vae_qwen3vl.training.run_data import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.no_grad()
def validation_losses(
    objective: AlignmentObjective, batches: TrainingBatches, accelerator: Accelerator
) -> dict[str, float]:
    """Return `val_loss`, and `val_loss_other_shape`, that of the blind control.

    Batches hold two objects at least, where there are so many: one alone has no other shape beside it.
    Every process runs equally many batches, for those that share a sharded model wait for each other. One that
    has no objects left runs the first ones again, which don't count.
    """
    data, config = batches.data, batches.config
    assert data.val is not None
    objective.eval()
    as_written = uncompiled() if config.compile_layers else contextlib.nullcontext()
    matching, other, tokens = 0.0, 0.0, 0.0
    size, rank, world = max(2, config.batch_size), accelerator.process_index, accelerator.num_processes
    numbers = list(range(len(data.val)))  # type: ignore[arg-type]
    for first in range(0, len(numbers), world * size):
        mine = numbers[first + rank * size : first + (rank + 1) * size]
        batch = batches.on_device(data.collate([data.val[i] for i in mine or numbers[:size]]))
        batch.pop("title_ids", None)  # a lesson of training
        count = int((batch["labels"] != IGNORED_LABEL).sum()) if mine else 0
        with accelerator.autocast(), as_written:
            matching += float(objective(**batch)["answer_loss"]) * count
            other += float(objective(**with_other_shapes(batch))["answer_loss"]) * count
        tokens += count
    objective.train()
    matching, other, tokens = (summed(value, accelerator) for value in (matching, other, tokens))
    return {"val_loss": matching / tokens, "val_loss_other_shape": other / tokens}


def with_other_shapes(batch: Batch) -> Batch:
    """Return the batch with every object's words beside the next object's shape: the blind control.

    A batch of one object stays as it is.
    """
    moved = dict(batch)
    if "mask_3d" in batch:
        for name in ("feats_3d", "coords_3d", "mask_3d"):
            moved[name] = batch[name].roll(1, 0)
        return moved
    if "inputs_3d" in batch:
        fields = batch["inputs_3d"]
        order, numbers = _turned(fields["batch_idx"])
        moved["inputs_3d"] = {name: value[order] for name, value in fields.items()} | {"batch_idx": numbers}
        return moved
    order, numbers = _turned(batch["coords_3d"][:, 0])
    coords = batch["coords_3d"][order]
    moved["feats_3d"] = batch["feats_3d"][order]
    moved["coords_3d"] = torch.cat([numbers[:, None].to(coords.dtype), coords[:, 1:]], dim=1)
    return moved


def _turned(objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of rows after object i becomes i + 1 (the last one 0), and the new numbers in that order."""
    numbers = (objects + 1) % (objects.max() + 1)
    order = torch.argsort(numbers, stable=True)
    return order, numbers[order]
