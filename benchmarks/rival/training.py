"""The rival design's training loop, with the habits of our own trainer.

Knows bit-packed grids; nothing of meshes and files.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from network import CODES, DenseOccupancyVQVAE, occupancy_loss, tokens_of_surface, voxel_iou
from occupancy import turned, unpacked
from torch import Tensor, nn
from tqdm import tqdm

_RESERVOIR = 32768
"""Token vectors that k-means places the codebook on."""
_CURVE = 12
"""Measurements of held-out objects along the run."""
_AVERAGE = 0.999


class RivalTrainer:
    """AdamW, linear warm-up, cosine to the end of the time, averaged weights, bf16; codebook after a tenth."""

    def __init__(
        self,
        model: DenseOccupancyVQVAE,
        grids: Tensor,
        weights: Tensor,
        held_out: Tensor,
        options: argparse.Namespace,
    ) -> None:
        self.model = model
        self.device = grids.device
        self.grids, self.weights, self.held_out = grids, weights, held_out
        self.options = options
        self.generator = torch.Generator().manual_seed(options.seed)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.lr, weight_decay=0.01, betas=(0.9, 0.99), fused=self.device.type == "cuda"
        )
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.encode: Callable[[Tensor], Tensor] = model.latent
        self.decode: Callable[[Tensor], Tensor] = model.logits
        if options.compile:
            self.encode, self.decode = torch.compile(model.latent), torch.compile(model.logits)
        self.quantizing = False
        self.reservoir: list[Tensor] = []
        self.steps = 0
        self.seconds = 0.0
        self.curve: list[dict[str, float]] = []

    def batch(self) -> Tensor:
        """Draw objects by weight and turn each at random. bool `[B, 64, 64, 64]`"""
        chosen = torch.multinomial(self.weights, self.options.batch, replacement=True, generator=self.generator)
        return turned(unpacked(self.grids[chosen.to(self.device)]), self.generator)

    def run(self) -> None:
        """Train for `max_seconds`; drawing counts, trying out kernels beforehand and measuring do not."""
        self._warm_up()
        bar = tqdm(total=round(self.options.max_seconds), unit="s", desc="training", disable=None)
        next_measure = 1 / _CURVE
        start = time.perf_counter()
        while self.seconds < self.options.max_seconds and self.steps < self.options.max_steps:
            progress = max(self.seconds / self.options.max_seconds, self.steps / self.options.max_steps)
            measured = self.step(progress)
            self.seconds += time.perf_counter() - start
            start = time.perf_counter()
            bar.update(min(round(self.seconds), bar.total) - bar.n)
            if progress >= next_measure:
                self._synchronize()
                self.seconds += time.perf_counter() - start
                self._measure(measured, bar)
                next_measure += 1 / _CURVE
                start = time.perf_counter()
        self._synchronize()
        if not self.curve or self.curve[-1]["steps"] < self.steps:
            self._measure(measured, bar)
        bar.close()

    def step(self, progress: float) -> dict[str, Tensor]:
        """Run one optimizer step and return its losses, still on the device."""
        if not self.quantizing and progress >= self.options.bypass_share:
            self._place_codebook()
        grids = self.batch()
        loss, parts = self._loss(grids)
        rate = self._learning_rate(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        keep = min(_AVERAGE, (1 + self.steps) / (10 + self.steps))
        averaged = [p for p in self.average.parameters()]
        torch._foreach_lerp_(averaged, [p.detach() for p in self.model.parameters()], 1 - keep)
        return parts

    def _loss(self, grids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with precision(self.device):
            vectors = self.encode(grids)
            parts: dict[str, Tensor] = {}
            surface = tokens_of_surface(grids)
            if self.quantizing:
                self.model.vq.restart_from = surface
                quantized = self.model.vq(vectors)
                vectors, parts["commitment"] = quantized.feats, quantized.commitment_loss
            else:
                self._remember(vectors.detach(), surface)
            loss, more = occupancy_loss(self.decode(vectors), grids)
        parts |= more
        return loss + 0.25 * parts.get("commitment", torch.zeros((), device=self.device)), parts

    def _remember(self, vectors: Tensor, surface: Tensor) -> None:
        """Keep the latest tokens that a surface passes through, and one in twenty of the empty ones."""
        wanted = surface | (torch.rand(len(surface), device=surface.device) < 0.05)
        self.reservoir.append(vectors[wanted])
        while sum(map(len, self.reservoir[1:])) >= _RESERVOIR:
            self.reservoir.pop(0)

    def _place_codebook(self) -> None:
        vectors = torch.cat(self.reservoir)
        if len(vectors) >= CODES:
            self.model.vq.initialize(vectors)
            self.reservoir = []
            self.quantizing = True

    def _warm_up(self) -> None:
        """Let cuDNN and the compiler choose their kernels; nothing is learned."""
        for _ in range(3 if self.device.type == "cuda" else 0):
            loss, _ = self._loss(self.batch())
            loss.backward()
            self.optimizer.zero_grad(set_to_none=True)
        self.reservoir = []
        self._synchronize()

    def _learning_rate(self, progress: float) -> float:
        warm = min(1.0, (self.steps + 1) / self.options.warmup_steps)
        return warm * (1e-5 + (self.options.lr - 1e-5) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def averaged(self) -> DenseOccupancyVQVAE:
        """Return the averaged weights with the current codebook."""
        self.average.vq.load_state_dict(self.model.vq.state_dict())
        return self.average

    def _measure(self, losses: dict[str, Tensor], bar: Any) -> None:
        iou = held_out_iou(self.averaged(), self.held_out, self.quantizing)
        record = {
            "seconds": round(self.seconds, 2),
            "steps": self.steps,
            "objects": self.steps * self.options.batch,
            "held_out_iou": iou,
            **{name: float(value.detach()) for name, value in losses.items()},
        }
        self.curve.append(record)
        bar.write(str({k: round(v, 4) for k, v in record.items()}))


def precision(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Return bf16 autocast on CUDA."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


@torch.no_grad()
def held_out_iou(model: DenseOccupancyVQVAE, bits: Tensor, quantizing: bool) -> float:
    """Return the mean voxel IoU of bit-packed grids."""
    parts = []
    for part in bits.split(8):
        grids = unpacked(part)
        with precision(bits.device):
            vectors = model.latent(grids)
            if quantizing:
                vectors = model.vq.embeddings(model.vq.nearest(vectors))
            parts.append(voxel_iou(model.logits(vectors).sigmoid(), grids))
    return float(torch.cat(parts).mean())
