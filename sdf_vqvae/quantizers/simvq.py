"""Codes made of fixed vectors by a learned map (Zhu et al., 2024): all of them move when one is used."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdf_vqvae.quantizers.quantizer import Quantized, Quantizer


class SimVQQuantizer(Quantizer):
    """A linear map, learned by gradients, of a basis that stays; `embeddings` holds what it makes of it."""

    simvq_basis: Tensor

    def __init__(self, num_embeddings: int, width: int, *, rotation_trick: bool = False) -> None:
        super().__init__(num_embeddings, width, rotation_trick=rotation_trick)
        self.register_buffer("simvq_basis", self.embeddings.weight.detach().clone())
        self.simvq_map = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.simvq_map.weight)
        self.embeddings.weight.requires_grad_(False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize float32 `[M, D]`; in training, with the codes that the map makes at this moment."""
        if self.training:
            with torch.no_grad():
                self.embeddings.weight.copy_(self.simvq_map(self.simvq_basis))
        return super().forward(vectors)

    def codes(self, indices: Tensor) -> Tensor:
        """Return the codes `[M, D]` of indices `[M]`; their gradients go to the map."""
        return self.simvq_map(self.simvq_basis[indices])

    @torch.no_grad()
    def initialize(self, samples: Tensor, iterations: int = 10) -> None:
        """Place the basis by k-means; the map starts as the identity."""
        super().initialize(samples, iterations)
        self.simvq_basis.copy_(self.embeddings.weight)
        nn.init.eye_(self.simvq_map.weight)
