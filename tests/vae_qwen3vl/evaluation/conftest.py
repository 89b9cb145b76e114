"""Objects to evaluate."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.evaluation.objects import EvalObject

SIDE = 8


@pytest.fixture(scope="session")
def shape():
    """Make an object of random codes at random cells of a latent grid of side 8."""

    def make(name: str, count: int, seed: int, **about) -> EvalObject:
        random = torch.Generator().manual_seed(seed)
        cells = torch.randperm(SIDE**3, generator=random)[:count]
        coords = torch.stack([cells // SIDE**2, cells // SIDE % SIDE, cells % SIDE], dim=1).int()
        return EvalObject(name=name, codes=torch.randint(0, 32, (count,), generator=random), coords=coords, **about)

    return make
