"""Tiny tokenizers, and fields of spheres that tests train one on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import trimesh
from torch import Tensor

from sdf_vqvae.codes.pipeline import voxelize_for
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE

SIDE, BAND = 64, 3.0
SMALL_ARGS: dict[str, Any] = {
    "resolution": 8,
    "model_channels": 32,
    "level_channels": [32, 32],
    "latent_channels": 4,
    "num_blocks": 1,
    "num_head_channels": 16,
    "num_embeddings": 32,
    "pool_counts_zero": False,
    "field": {"kind": "sdf", "unit": "band", "band": BAND, "sampling": "center", "resolution": 32},
}
"""Arguments of a tokenizer of 32^3 fields that is built in a moment."""

TWO_CODES: dict[str, Any] = {
    **SMALL_ARGS,
    "architecture": "residual",
    "level_channels": [16],
    "level_blocks": [1],
    "quantizer": "residual",
    "use_ema_update": True,
    "second_codes": 16,
    "second_share": 0.3,
}
"""Arguments of a tokenizer of 32^3 fields whose cells may have a second code."""

PATCHES: dict[str, Any] = {"level_channels": [16], "level_blocks": [1], "patch_size": 4}
"""What makes rows of the finest level of `vae` patches of 4^3 voxels."""


def measured_args(side: int = SIDE) -> dict[str, Any]:
    """Return arguments of a tokenizer whose fields are fine enough to be measured, and whose network is small."""
    return {
        "resolution": 8,
        "model_channels": 64,
        "level_channels": [16] * ((side // 8).bit_length() - 1),
        "latent_channels": 8,
        "num_blocks": 1,
        "num_embeddings": 128,
        "field": {"kind": "sdf", "unit": "band", "band": BAND, "sampling": "center", "resolution": side},
        "input_band": 1.75,
    }


def field(radius: float) -> tuple[Tensor, Tensor]:
    """Return index int16 `[N, 3]` and distance `[N]` in units of the band."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sdf = ((grid + 0.5 - SIDE / 2).norm(dim=1) - radius) / BAND
    kept = sdf.abs() <= 1
    return grid[kept].to(torch.int16), sdf[kept]


def batch(radius: float) -> dict[str, Tensor]:
    """Return the batch dict of one sphere."""
    index, sdf = field(radius)
    return {
        "sparse_sdf": sdf[:, None],
        "sparse_index": index.long(),
        "batch_idx": torch.zeros(len(sdf), dtype=torch.long),
    }


def coords(of: dict[str, Tensor]) -> Tensor:
    """Return the coordinates `[N, 4]` of a batch dict."""
    return torch.cat([of["batch_idx"][:, None], of["sparse_index"]], dim=1)


def args(architecture: str = "residual", **more: Any) -> dict[str, Any]:
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


def vae(architecture: str = "residual", **more: Any) -> SparseSDFVQVAE:
    """Return a tokenizer of 64^3 fields with seeded random weights."""
    torch.manual_seed(0)
    return SparseSDFVQVAE(**args(architecture, **more))


def saved_with_a_surface(mesh: Path | trimesh.Trimesh, folder: Path) -> Path:
    """Save a tokenizer of random weights, its output moved so that it crosses zero on a mesh; return its weights."""
    torch.manual_seed(0)
    tokenizer = SparseSDFVQVAE(VAEConfig.from_args(SMALL_ARGS)).eval()
    decoded = tokenizer.Decode(tokenizer.Encode(voxelize_for(tokenizer, mesh).to_batch()))
    last = [module for module in tokenizer.decoder.modules() if isinstance(module, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.bias -= torch.atanh(decoded.feats.median())
    save_vae(tokenizer, folder)
    return folder / "model.safetensors"


def saved_with_second_codes(mesh: Path | trimesh.Trimesh, folder: Path) -> Path:
    """Save a tokenizer of random weights that gives about a third of a mesh's cells a second code."""
    torch.manual_seed(0)
    tokenizer = SparseSDFVQVAE(VAEConfig.from_args(TWO_CODES)).eval()
    vq: Any = tokenizer.vq
    with torch.no_grad():
        given = voxelize_for(tokenizer, mesh).to_batch()
        latent = tokenizer.latent_of(tokenizer.field_tensor(given)).feats
        vq.embeddings.weight.copy_(latent[torch.randperm(len(latent))[:32]])
        left = latent - vq.embeddings(vq.nearest(latent)[:, 0])
        vq.second_from.copy_(left.square().mean(1).quantile(0.7))
        vq.second.embeddings.weight.copy_(left[left.square().mean(1).topk(16).indices])
        decoded = tokenizer.Decode(tokenizer.Encode(given))
        last = [module for module in tokenizer.decoder.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.bias -= torch.atanh(decoded.feats.median())
    save_vae(tokenizer, folder)
    return folder / "model.safetensors"
