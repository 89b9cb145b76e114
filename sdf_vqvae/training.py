"""The training step of the tokenizer and a plain loop around it.

Targets fill whole latent cells: inside the band the measured distance, beyond it +1 or -1 by flood fill.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.quantizer import codebook_health
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.runtime import atomic_path
from sdf_vqvae.sparse.coordinates import linear_keys
from sdf_vqvae.sparse.tensor import SparseTensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long and how fast to train."""

    max_steps: int = 100_000
    """Steps at most."""
    max_seconds: float = math.inf
    """Seconds at most; the schedule runs over whichever limit comes first."""
    voxels_per_batch: int = 4_000_000
    """Objects are gathered until their bands hold this many voxels."""
    lr: float = 1e-3
    """Peak learning rate (AdamW)."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup_steps: int = 100
    """Linear warm-up."""
    bypass_share: float = 0.15
    """Share of the training without the quantizer; the codebook starts from the latents at its end."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    sign_weight: float = 0.1
    """Weight of the sign cross-entropy."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are the ones saved."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    log_every: int = 50
    """Steps between log lines."""
    save_every: int = 500
    """Steps between saved weights."""


def collate_fields(objects: list[tuple[Tensor, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Join `(index [N, 3], distance [N])` pairs to a batch dict on a device."""
    sizes = torch.tensor([len(sdf) for _, sdf in objects])
    return {
        "sparse_sdf": torch.cat([sdf for _, sdf in objects]).to(device, non_blocking=True).float()[:, None],
        "sparse_index": torch.cat([index for index, _ in objects]).to(device, non_blocking=True).long(),
        "batch_idx": torch.arange(len(objects)).repeat_interleave(sizes).to(device, non_blocking=True),
    }


def batches_by_voxels(
    stream: Iterator[tuple[Tensor, Tensor]], voxels: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """Group a stream of fields into batches of about `voxels` voxels (at least one object)."""
    objects: list[tuple[Tensor, Tensor]] = []
    count = 0
    for item in stream:
        if objects and count + len(item[1]) > voxels:
            yield collate_fields(objects, device)
            objects, count = [], 0
        objects.append(item)
        count += len(item[1])
    if objects:
        yield collate_fields(objects, device)


def cell_targets(field: SparseTensor, cells: SparseTensor) -> Tensor:
    """Return the target of every voxel that the decoder makes, in its row order: `[side^3 * M]`, NaN unknown.

    Args:
        field: the distance field `[N, 1]` in units of its band, on the data grid.
        cells: the latent cells `[M, *]`.

    A voxel beyond the band takes +1 or -1 from the nearest voxels of known sign in its cell; that is exact,
    since beyond the band no step between neighbors can cross the surface.
    """
    side = field.side // cells.side
    parents = field.coords.clone()
    parents[:, 1:] //= side
    keys = linear_keys(parents, cells.side)
    cell = torch.searchsorted(cells.coordinates.keys, keys).clamp_(max=len(cells) - 1)
    inside = cells.coordinates.keys[cell] == keys
    x, y, z = (field.coords[:, 1:].long() % side).unbind(1)
    dense = torch.full((len(cells), side, side, side), torch.nan, device=field.device)
    dense[cell[inside], x[inside], y[inside], z[inside]] = field.feats[inside, 0].float()
    sign = _flood_signs(torch.nan_to_num(dense, nan=0.0).sign().to(torch.int8), steps=2 * side)
    far = torch.where(sign == 0, torch.nan, sign.float())
    dense = torch.where(dense.isnan(), far, dense)
    return _subdivision_order(dense)


def _flood_signs(sign: Tensor, steps: int) -> Tensor:
    """Spread signs from known to unknown (0) voxels inside each cell, one neighbor a step. int8 `[M, s, s, s]`"""
    for _ in range(steps):
        padded = functional.pad(sign, (1, 1, 1, 1, 1, 1))
        around = (
            padded[:, 2:, 1:-1, 1:-1]
            + padded[:, :-2, 1:-1, 1:-1]
            + padded[:, 1:-1, 2:, 1:-1]
            + padded[:, 1:-1, :-2, 1:-1]
            + padded[:, 1:-1, 1:-1, 2:]
            + padded[:, 1:-1, 1:-1, :-2]
        )
        sign = torch.where(sign == 0, around.sign(), sign)
    return sign


def _subdivision_order(dense: Tensor) -> Tensor:
    """Flatten `[M, s, s, s]` to the row order of repeated subdivision (eight children a level, z fastest)."""
    levels = int(math.log2(dense.shape[1]))
    split = dense.view(len(dense), *([2] * (3 * levels)))  # [M, x2 x1 x0, y2 y1 y0, z2 z1 z0]
    order = [1 + axis * levels + level for level in range(levels) for axis in range(3)]
    return split.permute(0, *order).reshape(-1)


def reconstruction_loss(prediction: Tensor, target: Tensor, sign_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of predicted against true truncated distances, both `[P]` in units of the band.

    `mean |p - t|` over all voxels, the same over those within a third of the band, and `sign_weight` times
    the cross-entropy of the sign, reading (1 + p) / 2 as the probability of being outside.
    """
    known = (~target.isnan()).float()
    p, t = prediction.float(), torch.nan_to_num(target)
    near = known * (t.abs() < 1 / 3)
    error = (p - t).abs()
    agreement = ((1 + p * torch.where(t >= 0, 1.0, -1.0)) / 2).clamp(min=1e-4)
    parts = {
        "l1": _mean(error, known),
        "l1_near": _mean(error, near),
        "sign": _mean(-agreement.log(), known),
        "wrong_sign": _mean((agreement < 0.5).float(), known),
    }
    return parts["l1"] + parts["l1_near"] + sign_weight * parts["sign"], parts


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; selecting rows by a mask instead would sort them in the backward pass."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


class TokenizerTrainer:
    """Trains a `SparseSDFVQVAE` on a stream of batches.

    Until `bypass_share` of the training the decoder sees continuous latents; then the codebook is placed by
    k-means on the latents of the last batches and quantization begins.
    """

    def __init__(self, vae: SparseSDFVQVAE, options: TrainingOptions, folder: Path) -> None:
        self.vae = vae.train()
        self.options = options
        self.folder = folder
        self.optimizer = torch.optim.AdamW(
            [p for p in vae.parameters() if p.requires_grad],
            lr=options.lr,
            weight_decay=options.weight_decay,
            betas=(0.9, 0.99),
        )
        self.average = AveragedModel(vae, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay), use_buffers=False)
        self.reservoir: list[Tensor] = []
        self.quantizing = False
        self.counts = torch.zeros(vae.config.num_embeddings, device=vae.device)

    def step(self, batch: dict[str, Tensor], progress: float, step: int) -> dict[str, Tensor]:
        """Run one optimizer step and return its measurements, still on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * _schedule(progress, step, self.options.warmup_steps)
        field = self.vae.field_tensor(batch)
        whole = SparseTensor(
            batch["sparse_sdf"],
            torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1).int(),
            side=self.vae.config.data_resolution,
        )
        with torch.autocast(self.vae.device.type, torch.bfloat16):
            out = self.vae(field, bypass=not self.quantizing)
            target = cell_targets(whole, out["latent"])
            loss, parts = reconstruction_loss(out["reconst_x"].feats[:, 0], target, self.options.sign_weight)
            total = loss + self.options.commitment * out["commitment_loss"]
            if out["vq_loss"] is not None:
                total = total + out["vq_loss"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.options.grad_clip)
        self.optimizer.step()
        self.average.update_parameters(self.vae)
        self._follow_codebook(out, progress)
        measured = {"loss": total, "commitment": out["commitment_loss"], "grad_norm": norm, **parts}
        return {name: value.detach() for name, value in measured.items()}

    def _follow_codebook(self, out: dict[str, Any], progress: float) -> None:
        if self.quantizing:
            self.counts.mul_(0.9).add_(torch.bincount(out["indices"], minlength=len(self.counts)))
            return
        self.reservoir = [*self.reservoir[-15:], out["latent"].feats.detach()]
        samples = torch.cat(self.reservoir)
        if progress >= self.options.bypass_share and len(samples) >= self.vae.config.num_embeddings:
            self.vae.vq.initialize(samples)
            self.reservoir = []
            self.quantizing = True
            logger.info("codebook placed by k-means on %d latent vectors", len(samples))

    def run(self, batches: Iterator[dict[str, Tensor]]) -> list[dict[str, float]]:
        """Train until a limit is reached; write `log.jsonl` and the averaged weights into the folder."""
        from tqdm import tqdm

        start = time.perf_counter()
        records: list[dict[str, float]] = []
        objects = 0
        bar = tqdm(total=self.options.max_steps, unit="step", mininterval=5)
        for step, batch in enumerate(batches):
            elapsed = time.perf_counter() - start
            progress = max(step / self.options.max_steps, elapsed / self.options.max_seconds)
            if progress >= 1:
                break
            measured = self.step(batch, progress, step)
            objects += int(batch["batch_idx"][-1]) + 1
            bar.update()
            if step % self.options.log_every == 0:
                health = codebook_health(self.counts)
                record = {name: float(value) for name, value in measured.items()}
                record |= {
                    "step": step,
                    "seconds": elapsed,
                    "objects": objects,
                    "perplexity": health.perplexity,
                }
                records.append(record)
                bar.set_postfix({k: f"{record[k]:.4f}" for k in ("l1", "l1_near", "wrong_sign")})
                self._write_log(records)
            if step and step % self.options.save_every == 0:
                self.save()
        bar.close()
        self.save()
        self._write_log(records)
        return records

    def save(self) -> None:
        """Write the averaged weights, with the current codebook where moving averages learn it."""
        averaged = self.average.module
        assert isinstance(averaged, SparseSDFVQVAE)
        averaged.vq.load_state_dict(self.vae.vq.state_dict())
        save_vae(averaged, self.folder)

    def _write_log(self, records: list[dict[str, float]]) -> None:
        with atomic_path(self.folder / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def _schedule(progress: float, step: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    return min(1.0, (step + 1) / max(1, warmup)) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
