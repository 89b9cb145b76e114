"""A tiny tokenizer and fields of spheres that tests train it on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdf_vqvae.model.vqvae import SparseSDFVQVAE

SIDE, BAND = 64, 3.0


def sphere_field(radius: float) -> tuple[Tensor, Tensor]:
    """Return index int16 `[N, 3]` and distance `[N]` in units of the band."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sdf = ((grid + 0.5 - SIDE / 2).norm(dim=1) - radius) / BAND
    kept = sdf.abs() <= 1
    return grid[kept].to(torch.int16), sdf[kept]


def sphere_batch(radius: float) -> dict[str, Tensor]:
    """Return the batch dict of one sphere."""
    index, sdf = sphere_field(radius)
    return {
        "sparse_sdf": sdf[:, None],
        "sparse_index": index.long(),
        "batch_idx": torch.zeros(len(sdf), dtype=torch.long),
    }


def coords_of(batch: dict[str, Tensor]) -> Tensor:
    """Return the coordinates `[N, 4]` of a batch dict."""
    return torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1)


def small_args(architecture: str = "residual", **more: Any) -> dict[str, Any]:
    """Return constructor arguments; `more` replaces some."""
    levels: dict[str, Any] = {"level_channels": [16, 16, 32]}
    if architecture == "residual":
        levels = {"level_channels": [16, 32], "level_blocks": [1, 1], "predict_occupancy": True}
    return {
        "architecture": architecture,
        "resolution": 8,
        "model_channels": 64,
        "num_head_channels": 32,
        "num_blocks": 1,
        "num_embeddings": 32,
        "use_ema_update": True,
        "pool_counts_zero": False,
        "field": {"kind": "sdf", "unit": "band", "band": BAND, "sampling": "center", "resolution": SIDE},
        "input_band": 1.75,
        **levels,
        **more,
    }


def small_vae(architecture: str = "residual", **more: Any) -> SparseSDFVQVAE:
    """Return a tokenizer of 64^3 fields with seeded random weights."""
    torch.manual_seed(0)
    return SparseSDFVQVAE(**small_args(architecture, **more))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """What this file makes: `field`, `batch`, `coords`, `args`, `vae`, and the constants `side` and `band`."""
    return SimpleNamespace(
        side=SIDE,
        band=BAND,
        field=sphere_field,
        batch=sphere_batch,
        coords=coords_of,
        args=small_args,
        vae=small_vae,
    )
