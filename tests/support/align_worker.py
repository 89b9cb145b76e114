"""One process of an alignment run on a tiny model; `test_align_training.py` compares one with two.

python align_worker.py OUTPUT_FOLDER BATCH_SIZE ddp|fsdp PLAIN_TEXT_SHARE...      (under torch.distributed.run)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import tiny_models
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.collate import collate_codes_caption
from vae_qwen3vl.data.loading import Tolerant
from vae_qwen3vl.data.plain_text import WithPlainText
from vae_qwen3vl.data.texts import Text
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.training.run_data import AlignmentData
from vae_qwen3vl.training.trainer import AlignmentTrainer

CAPTIONS = ["A red robot.", "A chair.", "A chair with four legs in one sentence.", "Robot."]
WIDTH = 8


def objects(count: int) -> list[dict[str, Any]]:
    """Objects whose codes say which of the captions is theirs."""
    random = torch.Generator().manual_seed(2)
    kinds = torch.randn(len(CAPTIONS), WIDTH, generator=random)
    found = []
    for number in range(count):
        size = int(torch.randint(5, 30, (1,), generator=random))
        cells = torch.randperm(12**3, generator=random)[:size]
        coords = torch.stack([cells // 144, cells // 12 % 12, cells % 12], dim=1).int()
        feats = kinds[number % len(CAPTIONS)] + 0.1 * torch.randn(size, WIDTH, generator=random)
        codes = torch.arange(size) + sum(len(item["codes"]) for item in found)
        words = {"caption": CAPTIONS[number % len(CAPTIONS)]}
        found.append({"codes": codes, "feats_3d": feats, "coords": coords, **words})
    return found


def collate(items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
    """Join items as training has them: with codes, without their vectors."""
    return collate_codes_caption([{k: v for k, v in item.items() if k != "feats_3d"} for item in items], tokenizer)


def make_data(train: Any, val: Any = None) -> AlignmentData:
    """Join items with the tiny tokenizer."""
    processor = Processor3D(tiny_models.build_tokenizer())
    known = objects(64)  # of which fewer are the first
    return AlignmentData(
        train=train,
        lengths=[len(item["coords"]) for item in known[: len(train)]],
        val=val,
        collate=functools.partial(collate, tokenizer=processor),
        codebook=torch.cat([item["feats_3d"] for item in known]),
    )


def with_plain_text(data: AlignmentData, share: float) -> AlignmentData:
    """Put three texts without an object among the training items."""
    texts = [
        Text(answer=answer, conversation=({"role": "user", "content": question},))
        for question, answer in [("hi", "a user."), ("What is one?", "A sentence."), ("Describe", "a system in one.")]
    ]
    train = WithPlainText(Tolerant(data.train), data.lengths, texts, share)
    return dataclasses.replace(data, train=train, lengths=train.lengths, plain=True)


def make_trainer(
    folder: Path,
    accelerator: Any,
    data: AlignmentData,
    *,
    lora: bool = True,
    dropout: float = 0.0,
    **settings: Any,
) -> AlignmentTrainer:
    """A trainer of the tiny model, the same every time."""
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(
        use_vl_model=tiny_models.build_vl("qwen2_vl"), latent_dim=WIDTH, merge=2, projector_num_layers=2
    )
    if lora:
        model.add_lora(r=4, alpha=8, dropout=dropout)
    defaults = {"lr": 3e-3, "epochs": 2, "batch_size": 4, "val_every": 10**6, "save_every": 10**6}
    config = AlignmentConfig(**{**defaults, **settings})
    torch.manual_seed(1)
    return AlignmentTrainer(model, config, data, folder, accelerator)


class Damaged(torch.utils.data.Dataset):
    """Some items can't be read."""

    def __init__(self, items: list, bad: set[int]) -> None:
        self.items, self.bad = items, bad

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict:
        if number in self.bad:
            raise ValueError(f"object {number} is damaged")
        return self.items[number]


def make_compared_trainer(
    folder: Path, accelerator: Any, batch_size: int, share: float = 0.0, **settings: Any
) -> AlignmentTrainer:
    """The run that is the same on one process and on two: of two batches a step, with an object that can't be read.

    With batches of two, the second of two processes has no validation objects left for the last batch.
    """
    train = Tolerant(Damaged(objects(24), {3}))
    data = with_plain_text(make_data(train, objects(5)), share)  # some batches are text alone
    defaults = {"batch_size": batch_size, "gradient_accumulation_steps": 2, "val_every": 2}
    return make_trainer(folder, accelerator, data, **{**defaults, **settings})


def run_and_keep_first_gradients(trainer: AlignmentTrainer) -> dict[str, torch.Tensor]:
    """Run, and return the gradients of the first step as they were clipped."""
    kept: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        if not kept:
            kept.update({n: p.grad.clone() for n, p in trainer.trained.named_parameters() if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    trainer.run()
    return kept


class StoppedError(Exception):
    """A run was stopped from outside."""


def run_until(trainer: AlignmentTrainer, step: int) -> None:
    """Run and stop after a step and what belongs to it, as a machine that fails does."""
    original = trainer._at_intervals

    def stop(*given: Any) -> None:
        original(*given)
        if trainer.step_number == step:
            raise StoppedError

    trainer._at_intervals = stop  # type: ignore[method-assign]
    with contextlib.suppress(StoppedError):
        trainer.run()


def shard_on_the_cpu(accelerator: Any) -> None:
    """Turn FSDP2 on as Accelerate does for processes with GPUs, and never for processes without."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    accelerator.state.distributed_type = DistributedType.FSDP


def share_of_frozen(model: torch.nn.Module) -> float:
    """Return which share of the frozen values this process holds."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    held = sum(getattr(p, "_local_tensor", p).numel() for p in frozen)
    return held / sum(p.numel() for p in frozen)


def main(folder: Path, batch_size: int, kind: str, shares: list[str]) -> None:
    """Do each of the runs, in a folder of its name."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    if kind == "fsdp":
        shard_on_the_cpu(accelerator)
    for share in shares:
        run_both_ways(folder / share, accelerator, batch_size, float(share))
    accelerator.end_training()  # threads of gloo that outlive the process's end abort it


def run_both_ways(folder: Path, accelerator: Any, batch_size: int, share: float) -> None:
    """Run whole, and then in two parts."""
    trainer = make_compared_trainer(folder / "whole", accelerator, batch_size, share=share)
    held = share_of_frozen(trainer.branch)
    gradients = run_and_keep_first_gradients(trainer)
    if accelerator.is_main_process:
        (folder / "share.json").write_text(json.dumps(held))
        save_file(gradients, folder / "gradients.safetensors")
    parts = folder / "parts"
    run_until(make_compared_trainer(parts, accelerator, batch_size, share=share, save_every=3), 4)
    make_compared_trainer(parts, accelerator, batch_size, share=share, save_every=3).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
