"""A tiny generator, and objects of few codes that it can learn in a moment."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_qwen3vl.creation.batches import ShapeBatch, batch_of
from vae_qwen3vl.creation.config import GeneratorConfig
from vae_qwen3vl.creation.generator import ShapeGenerator

SIDE, CODES, WORDS = 8, 32, 12


def config(**more: object) -> GeneratorConfig:
    values = {"side": SIDE, "codebook_size": CODES, "code_width": 4, "text_width": WORDS, "width": 48, "heads": 4}
    return GeneratorConfig.of_values({**values, "where_blocks": 2, "what_blocks": 2, "dropout": 0.0, **more})


def generator(**more: object) -> ShapeGenerator:
    made = config(**more)
    torch.manual_seed(0)
    return ShapeGenerator(made, torch.randn(made.codebook_size, made.code_width)).eval()


def an_object(number: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return codes and cells of a box that is another one for each number."""
    low, high = torch.tensor([1, 0, 2]), torch.tensor([3 + number % 3, 2 + number % 5, 5])
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    cells = grid[((grid >= low) & (grid < high)).all(1)]
    return (2 * cells[:, 0] + 9 * number) % CODES, cells


def words(number: int) -> Tensor:
    """Return vectors of as many words as the number says, and one."""
    return torch.randn(number + 1, WORDS, generator=torch.Generator().manual_seed(number))


def batch(*numbers: int) -> ShapeBatch:
    return batch_of([an_object(n) for n in numbers], [words(n) for n in numbers], side=SIDE, text_width=WORDS)
