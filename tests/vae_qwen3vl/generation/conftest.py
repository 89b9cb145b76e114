"""A small model whose chats the engine answers, and shapes to ask about."""

from __future__ import annotations

import pytest
import torch

import tiny_models
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def model(request):
    torch.manual_seed(0)
    vae = SparseSDFVQVAE(VAEConfig.from_args(tiny_models.SMALL_VAE))
    vl_model = tiny_models.build_vl(request.param, patch_size={"qwen2_vl": 14, "qwen3_vl": 16}[request.param])
    torch.manual_seed(5)
    branch = Qwen3VLWith3DBranch(vae_model=vae, use_vl_model=vl_model, projector_num_layers=2, merge=2)
    return branch.eval()


@pytest.fixture(scope="module")
def processor(tokenizer, model):
    from transformers import Qwen2VLImageProcessor

    patch = model.vl_model.config.vision_config.patch_size
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (6 * patch) ** 2}
    return Processor3D(tokenizer, Qwen2VLImageProcessor(patch_size=patch, size=size))


@pytest.fixture(scope="module")
def shapes(model):
    generator = torch.Generator().manual_seed(1)
    made = []
    for count in (3, 60, 17, 140):
        cells = torch.randperm(8**3, generator=generator)[:count].sort().values
        made.append(
            ShapeCodes(
                codes=torch.randint(0, 32, (count,), dtype=torch.int32, generator=generator),
                coords=torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1).int(),
                latent_resolution=8,
                data_resolution=32,
                center=(0.0, 0.0, 0.0),
                scale=1.0,
                vae_hash=model.vae_model.fingerprint(),
            )
        )
    return made
