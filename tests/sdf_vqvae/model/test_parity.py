"""The architecture reproduces the original system's numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from original_numbers import fill_by_name, relative_error

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.coordinates import linear_keys


@pytest.fixture(scope="module")
def parity(reference_data: Path) -> tuple[SparseSDFVQVAE, dict[str, torch.Tensor]]:
    folder = reference_data / "parity"
    vae = SparseSDFVQVAE(**json.loads((folder / "args.json").read_text())).eval()
    fill_by_name(vae)
    arrays = np.load(folder / "fixture.npz", allow_pickle=False)
    return vae, {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_state_dict_has_the_originals_keys_and_shapes(
    parity: tuple[SparseSDFVQVAE, dict[str, torch.Tensor]], reference_data: Path
) -> None:
    expected = json.loads((reference_data / "parity" / "keys.json").read_text())
    state = parity[0].state_dict()
    assert {n: list(t.shape) for n, t in state.items()} == {n: shape for n, (shape, _) in expected.items()}


@torch.no_grad()
def test_latent_codes_and_decoded_field_equal_the_originals(
    parity: tuple[SparseSDFVQVAE, dict[str, torch.Tensor]],
) -> None:
    vae, fixture = parity
    batch = {k: fixture[k] for k in ("sparse_sdf", "sparse_index", "batch_idx")}
    latent = vae.encode_latent(batch)
    assert torch.equal(latent.coords.long(), fixture["code_coords"].long())
    assert relative_error(latent.feats, fixture["latent"]) < 1e-4
    codes = vae.Encode(batch)
    assert codes.feats.dtype == torch.int64
    differ = (codes.feats != fixture["codes"])[:, 0]
    distances = torch.cdist(latent.feats[differ], vae.vq.embeddings.weight).topk(2, largest=False).values
    assert bool((distances[:, 1] - distances[:, 0] < 1e-5).all()), "codes differ elsewhere than at ties"
    recon = vae.Decode(codes.replace(fixture["codes"]))
    ours = torch.argsort(recon.coordinates.keys)
    theirs = torch.argsort(linear_keys(fixture["rec_coords"].int(), recon.side))
    assert torch.equal(recon.coords[ours].long(), fixture["rec_coords"][theirs].long())
    assert relative_error(recon.feats[ours], fixture["rec"][theirs]) < 1e-4


@torch.no_grad()
def test_the_order_of_input_rows_does_not_matter(
    parity: tuple[SparseSDFVQVAE, dict[str, torch.Tensor]],
) -> None:
    vae, fixture = parity
    order = torch.randperm(len(fixture["batch_idx"]), generator=torch.Generator().manual_seed(0))
    batch = {k: fixture[k][order] for k in ("sparse_sdf", "sparse_index", "batch_idx")}
    assert float((vae.Encode(batch).feats == fixture["codes"]).float().mean()) > 0.99


@pytest.mark.parametrize(
    ("args", "parameters"),
    [
        # Counts of the original's configurations: 8 + 8 blocks, and the public 4 + 4 blocks.
        ({"num_blocks": 8}, 63_207_873),
        ({"num_blocks": 4, "num_embeddings": 8192}, 37_874_113 + 131_072),
    ],
)
def test_parameter_counts_are_the_originals(args: dict[str, int], parameters: int) -> None:
    with torch.device("meta"):
        vae = SparseSDFVQVAE(VAEConfig.from_args({"latent_channels": 16, "resolution": 64, **args}))
    assert sum(p.numel() for p in vae.parameters()) == parameters


@pytest.mark.parametrize(
    "args",
    [
        {"attn_mode": "full"},
        {"attn_mode": "windowed", "window_size": 4},
        {"qk_rms_norm": True, "num_heads": 2},
        {"num_blocks_encoder": 1, "num_blocks_decoder": 3},
        {"latent_channels": 8, "mlp_ratio": 2.0},
        {"use_ema_update": True, "pool_counts_zero": False},
        {"use_checkpoint": True},
        {"level_channels": [16, 24]},
    ],
)
@torch.no_grad()
def test_other_arguments_of_the_family_run(args: dict[str, object]) -> None:
    base = {
        "resolution": 8,
        "model_channels": 64,
        "num_head_channels": 32,
        "num_blocks": 2,
        "num_embeddings": 32,
    }
    vae = SparseSDFVQVAE(**{**base, **args}).eval()
    side = vae.config.data_resolution
    index = torch.stack(torch.meshgrid(*[torch.arange(4, 11)] * 3, indexing="ij"), -1).reshape(-1, 3)
    batch = {
        "sparse_sdf": torch.rand(len(index), 1),
        "sparse_index": index,
        "batch_idx": torch.zeros(len(index), dtype=torch.long),
    }
    codes = vae.Encode(batch)
    recon = vae.Decode(codes)
    assert recon.side == side
    assert len(recon) == len(codes) * (2**vae.config.levels) ** 3
    assert bool((recon.feats.abs() <= 1).all())
