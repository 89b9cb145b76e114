"""What targets and losses of one object cost in training: bytes that pass through memory, kernels, seconds.

python benchmarks/speed/tokenizer_losses.py --resolution 512

The object is a turned box with about two million voxels in its band at 512^3, decoded in the blocks of 4^3 voxels
that touch the band. Bytes are those that every operation reads and writes, each
tensor once; `at 3 TB/s` is what they take at that rate. On a GPU, seconds are measured besides, waiting included.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training.losses import Answers, object_errors, training_loss
from sdf_vqvae.training.targets import dense_targets, targets_of, thin_blocks
from sdf_vqvae.training.thin_shapes import part
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device

BYTES_A_MILLISECOND = 3e9


class Traffic(TorchDispatchMode):
    """Counts what operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            given = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
            self.bytes += sum(t.numel() * t.element_size() for t in given.values())
            self.kernels += 1
        return out


def measured(work: Callable[[], Any], device: torch.device) -> tuple[Any, dict[str, float]]:
    """Run some work twice and return what it returned and what it cost."""
    with Traffic() as traffic:
        result = work()
    numbers = {
        "megabytes": round(traffic.bytes / 1e6),
        "at 3 TB/s, ms": round(traffic.bytes / BYTES_A_MILLISECOND, 3),
        "kernels": traffic.kernels,
    }
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = work()
        torch.cuda.synchronize()
        numbers["measured ms"] = round(1e3 * (time.perf_counter() - start), 3)
    return result, numbers


def the_object(resolution: int, side: int, device: torch.device) -> tuple[SparseTensor, SparseTensor, SparseTensor]:
    """Return the field, its latent cells of `side`^3 voxels, and answers on the decoded voxels."""
    axis = np.random.default_rng(0).normal(size=3)
    index, distance = part((0, 0, 0), (0.4, 0.25, 0.1), axis=axis).field(resolution, device=device)
    field = SparseTensor(distance[:, None], torch.nn.functional.pad(index, (1, 0)), side=resolution)
    blocks = field.coordinates.coarser()[0].coarser()[0]
    cells = blocks
    while cells.side > resolution // side:
        cells = cells.coarser()[0]
    decoded = blocks.finer().finer()
    answers = torch.rand(len(decoded), 1, device=device) * 2 - 1
    return field, SparseTensor(torch.zeros(len(cells), 1, device=device), cells), SparseTensor(answers, decoded)


def main() -> None:
    """Count and write the table."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--cell", type=int, default=16, help="voxels along a side of a latent cell")
    parser.add_argument("--device")
    options = parser.parse_args()
    device = resolve_device(options.device)
    field, cells, decoded = the_object(options.resolution, options.cell, device)
    table: dict[str, dict[str, float]] = {}
    dense, table["targets of cells"] = measured(lambda: dense_targets(field, cells), device)
    steps = options.cell.bit_length() - 1
    target, table["targets of answers"] = measured(lambda: targets_of(decoded, dense, steps), device)
    thin, table["where it is thin"] = measured(lambda: thin_blocks(dense, field, cells), device)
    out = {"commitment_loss": torch.zeros((), device=device), "vq_loss": None, "occupancy": []}
    out["indices"] = torch.zeros(1, dtype=torch.int64, device=device)
    plain = TrainerConfig(slope_weight=1.0, object_balance=0.5)
    for name, trainer in {
        "loss": plain,
        "loss, thin parts weighed": dataclasses.replace(plain, thin_weight=3.0),
        "loss with the surface's place": dataclasses.replace(plain, surface_weight=1.0),
    }.items():
        predicted = decoded.feats[:, 0].clone().requires_grad_()
        blocks = decoded.coordinates.coarser()[0]
        answers = Answers(predicted=predicted, target=target, blocks=blocks, signed=True, thin=thin)

        def step(answers: Answers = answers, trainer: TrainerConfig = trainer) -> None:
            training_loss(out, answers, trainer)[0].backward()

        _, table[f"{name}, there and back"] = measured(step, device)
    _, table["errors of objects"] = measured(lambda: object_errors(answers), device)
    print(f"{len(field)} voxels in the band, {len(cells)} cells, {len(decoded)} answers")
    for name, numbers in table.items():
        print(f"{name:45}", numbers)
    sizes = {"voxels": len(field), "cells": len(cells), "answers": len(decoded)}
    write_run(options, {"resolution": options.resolution, **sizes, "parts": table})


if __name__ == "__main__":
    main()
