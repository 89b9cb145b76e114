"""The training step of the language side and a plain loop around it: projector first, then LoRA with it.

The minimal trainer: one device, no resume. Batches come from `data.py`.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdf_vqvae.runtime import atomic_path
from vae_qwen3vl.data import CaptionedBatch, CaptionedCodes
from vae_qwen3vl.describer import LORA_NAME, PROJECTOR_NAME
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D
from vae_qwen3vl.vae_latent_extractor import codebook_vectors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """How long and how fast to train."""

    max_steps: int = 100_000
    """Steps at most."""
    max_seconds: float = math.inf
    """Seconds at most; the schedule runs over whichever limit comes first."""
    batch_size: int = 48
    """Objects a step."""
    lr_projector: float = 1e-3
    """Peak learning rate of the projector (AdamW)."""
    lr_lora: float = 2e-4
    """Peak learning rate of the adapters."""
    projector_share: float = 0.3
    """Share of the training in which the projector learns alone."""
    weight_decay: float = 0.01
    """AdamW's."""
    warmup_steps: int = 30
    """Linear warm-up."""
    grad_clip: float = 1.0
    """Largest gradient norm."""
    log_every: int = 25
    """Steps between log lines; held-out losses are measured as often."""
    seed: int = 0
    """Seed of the draws."""


class AlignmentTrainer:
    """Teaches a 3D branch to write captions from codes.

    The answer's tokens alone are supervised. Held-out objects give two losses: with their own codes, and with
    another object's (the blind control); only their difference says that the shape is read.
    """

    def __init__(
        self,
        model: Qwen3VLWith3DBranch,
        processor: Processor3D,
        options: AlignmentOptions,
        folder: Path,
        prompt: str = DEFAULT_PROMPT,
    ) -> None:
        self.model = model
        self.processor = processor
        self.options = options
        self.folder = folder
        self.prompt = prompt
        self.generator = torch.Generator().manual_seed(options.seed)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if "lora_" not in n], "peak": options.lr_projector, "from": 0.0},
            {
                "params": [p for n, p in named if "lora_" in n],
                "peak": options.lr_lora,
                "from": options.projector_share,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=0.0, weight_decay=options.weight_decay, betas=(0.9, 0.99)
        )

    def loss(self, batch: CaptionedBatch) -> Tensor:
        """Return the mean cross-entropy of the captions' tokens."""
        device = self.model.device
        encoded = self.processor([self.prompt] * len(batch.captions), batch.captions)
        feats = codebook_vectors(batch.codes, self.model.vae_model).to(device)  # [M, D]
        inputs = {name: tensor.to(device) for name, tensor in encoded.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = self.model(**inputs, feats_3d=feats, coords_3d=batch.coords.to(device))
        return outputs["loss"]

    def step(self, batch: CaptionedBatch, progress: float, step: int) -> Tensor:
        """Run one optimizer step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * _schedule(progress, group["from"], step, self.options.warmup_steps)
        loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.options.grad_clip)
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def held_out_losses(self, batch: CaptionedBatch) -> dict[str, float]:
        """Return the loss with the objects' own codes and with another's."""
        self.model.eval()
        losses = {"held_out": float(self.loss(batch)), "held_out_shuffled": float(self.loss(batch.shuffled()))}
        self.model.train()
        return losses

    def run(self, data: CaptionedCodes, held_out: CaptionedBatch | None = None) -> list[dict[str, float]]:
        """Train until a limit is reached; write log, projector and adapter into the folder."""
        from tqdm import tqdm

        records: list[dict[str, float]] = []
        start = time.perf_counter()
        bar = tqdm(total=self.options.max_steps, unit="step", mininterval=5)
        self.model.train()
        for step in range(self.options.max_steps):
            elapsed = time.perf_counter() - start
            progress = max(step / self.options.max_steps, elapsed / self.options.max_seconds)
            if progress >= 1:
                break
            loss = self.step(data.draw(self.options.batch_size, self.generator), progress, step)
            bar.update()
            if step % self.options.log_every == 0:
                record = {"step": step, "seconds": elapsed, "loss": float(loss)}
                if held_out is not None:
                    record |= self.held_out_losses(held_out)
                records.append(record)
                bar.set_postfix({k: f"{v:.3f}" for k, v in record.items() if k not in ("step", "seconds")})
                self._write_log(records)
        bar.close()
        self.save()
        return records

    def save(self) -> None:
        """Write `projector.safetensors` and, where there are adapters, `lora/` (in bfloat16)."""
        self.model.save_projector(self.folder / PROJECTOR_NAME, prompt=self.prompt)
        self.model.save_lora(self.folder / LORA_NAME)

    def _write_log(self, records: list[dict[str, float]]) -> None:
        with atomic_path(self.folder / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def _schedule(progress: float, begin: float, step: int, warmup: int) -> float:
    """Zero before `begin`, a linear warm-up, then a cosine to 2 % of the peak."""
    if progress < begin:
        return 0.0
    own = (progress - begin) / (1 - begin)
    rise = min(1.0, (step + 1) / max(1, warmup)) if begin == 0 else min(1.0, own / 0.05)
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, own))))
