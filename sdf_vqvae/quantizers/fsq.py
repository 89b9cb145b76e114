"""Codes that form a fixed grid in a cube (Mentzer et al., 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from sdf_vqvae.quantizers.quantizer import Quantizer


class FSQQuantizer(Quantizer):
    """The points of a grid in the cube [-1, 1]^D; nothing of them is learned.

    Args:
        num_embeddings: number of codes K, the product of the levels.
        width: their width D, the number of axes.
        fsq_levels: values along each axis.
        rotation_trick: see `Quantizer`.
    """

    settings: ClassVar = ("fsq_levels", *Quantizer.settings)
    own_settings: ClassVar = ("fsq_levels",)
    fixed = True

    def __init__(
        self, num_embeddings: int, width: int, *, fsq_levels: tuple[int, ...], rotation_trick: bool = False
    ) -> None:
        super().__init__(num_embeddings, width, rotation_trick=rotation_trick)
        self.fsq_levels = fsq_levels
        axes = [torch.linspace(-1, 1, n) for n in fsq_levels]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, width)
        self.embeddings.weight.data.copy_(grid)
        self.embeddings.weight.requires_grad_(False)

    @classmethod
    def check(cls, config: Mapping[str, Any]) -> None:
        """Raise a ValueError unless the levels are those of a grid of K codes of width D."""
        levels, size, width = config["fsq_levels"], config["num_embeddings"], config["latent_channels"]
        if not all(type(n) is int and n >= 2 for n in levels):
            raise ValueError(f"fsq_levels must be integers of at least 2, got {list(levels)}")
        if (math.prod(levels), len(levels)) != (size, width):
            raise ValueError(
                f"fsq_levels {list(levels)} make {math.prod(levels)} codes of width {len(levels)}, but "
                f"num_embeddings is {size} and latent_channels {width}"
            )

    def prepare(self, vectors: Tensor) -> Tensor:
        """Bring encoder outputs `[M, D]` into the cube, and a little beyond.

        So that the outermost values take as much of the axis as the others.
        """
        reach = [n / (n - 1) for n in self.fsq_levels]
        return vectors.tanh() * torch.tensor(reach, device=vectors.device)

    def losses(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return no loss at all: there is nothing to learn, and `prepare` keeps the vectors near."""
        return None, vectors.new_zeros(())

    def initialize(self, samples: Tensor, iterations: int = 10) -> None:
        """Leave the grid as it is."""
