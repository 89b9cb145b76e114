"""One process of an alignment run on a tiny model; `test_align_training.py` compares one with two.

python align_worker.py OUTPUT_FOLDER BATCH_SIZE PLAIN_TEXT_SHARE      (under torch.distributed.run)
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from vae_qwen3vl.align_data import Tolerant
from vae_qwen3vl.align_training import AlignmentData, AlignmentTrainer
from vae_qwen3vl.captions import Text
from vae_qwen3vl.collate import collate_codes_caption
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.plain_text import WithPlainText
from vae_qwen3vl.processor import Processor3D

CAPTIONS = ["A red robot.", "A chair.", "A chair with four legs in one sentence.", "Robot."]
WIDTH = 8


def tiny_parts() -> Any:
    """Load the module of small parts beside this file."""
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        found.append({"feats_3d": feats, "coords": coords, "caption": CAPTIONS[number % len(CAPTIONS)]})
    return found


def make_data(train: Any, val: Any = None) -> AlignmentData:
    """Join items with the tiny tokenizer."""
    processor = Processor3D(tiny_parts().build_tokenizer())
    collate = functools.partial(collate_codes_caption, tokenizer=processor)
    return AlignmentData(
        train=train, lengths=[len(item["coords"]) for item in objects(len(train))], val=val, collate=collate
    )


def with_plain_text(data: AlignmentData, share: float) -> AlignmentData:
    """Put three texts without an object among the training items."""
    texts = [
        Text(answer=answer, conversation=({"role": "user", "content": question},))
        for question, answer in [("hi", "a user."), ("What is one?", "A sentence."), ("Describe", "a system in one.")]
    ]
    train = WithPlainText(Tolerant(data.train), data.lengths, texts, share)
    return dataclasses.replace(data, train=train, lengths=train.lengths)


def make_trainer(
    folder: Path, accelerator: Any, data: AlignmentData, *, lora: bool = True, **settings: Any
) -> AlignmentTrainer:
    """A trainer of the tiny model, the same every time."""
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(
        use_vl_model=tiny_parts().build_vl("qwen2_vl"), latent_dim=WIDTH, merge=2, projector_num_layers=2
    )
    if lora:
        model.add_lora(r=4, alpha=8, dropout=0.0)
    defaults = {"lr": 3e-3, "epochs": 2, "batch_size": 4, "val_every": 10**6, "save_every": 10**6}
    config = AlignmentConfig(**{**defaults, **settings})
    torch.manual_seed(1)
    return AlignmentTrainer(model, config, data, folder, accelerator)


if __name__ == "__main__":
    from accelerate import Accelerator

    train = objects(24)
    data = with_plain_text(make_data(train, train[:7]), float(sys.argv[3]))
    make_trainer(Path(sys.argv[1]), Accelerator(cpu=True), data, batch_size=int(sys.argv[2])).run()
