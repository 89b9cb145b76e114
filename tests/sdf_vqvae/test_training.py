"""Targets are the measured distances and flooded signs; a short training lowers the loss."""

from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training import TokenizerTrainer

SIDE, BAND = 64, 3.0


def sphere_batch(radius: float) -> dict[str, torch.Tensor]:
    grid = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sdf = ((grid + 0.5 - SIDE / 2).norm(dim=1) - radius) / BAND
    kept = sdf.abs() <= 1
    return {
        "sparse_sdf": sdf[kept, None],
        "sparse_index": grid[kept],
        "batch_idx": torch.zeros(int(kept.sum()), dtype=torch.long),
    }


def small_vae() -> SparseSDFVQVAE:
    torch.manual_seed(0)
    return SparseSDFVQVAE(
        resolution=8,
        model_channels=64,
        level_channels=[16, 16, 32],
        num_head_channels=32,
        num_blocks=1,
        num_embeddings=32,
        use_ema_update=True,
        pool_counts_zero=False,
        field={"kind": "sdf", "unit": "band", "band": BAND, "sampling": "center", "resolution": SIDE},
        input_band=1.75,
    )


@settings(deadline=None, max_examples=10)
@given(radius=st.floats(9.0, 28.0))
def test_targets_are_the_clipped_distance_in_the_decoders_order(radius: float) -> None:
    vae = small_vae()
    batch = sphere_batch(radius)
    coords = torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1)
    cells = vae.Encode(batch)
    target = cell_targets(SparseTensor(batch["sparse_sdf"], coords, side=SIDE), cells)
    rows = vae.Decode(cells).coords[:, 1:]
    exact = (((rows + 0.5 - SIDE / 2).norm(dim=1) - radius) / BAND).clamp(-1, 1)
    known = ~target.isnan()
    assert float(known.float().mean()) > 0.99
    torch.testing.assert_close(target[known], exact[known], atol=1e-5, rtol=0)


def test_a_short_training_lowers_the_loss_and_leaves_loadable_weights(tmp_path: Path) -> None:
    vae = small_vae()
    options = TrainingOptions(max_steps=60, lr=3e-3, warmup_steps=5, bypass_share=0.3, log_every=1, ema_decay=0.5)
    batches = iter([sphere_batch(10.0 + i % 5) for i in range(60)])
    records = TokenizerTrainer(vae, options, tmp_path).run(batches)
    assert records[-1]["l1"] < 0.5 * records[0]["l1"]
    assert records[-1]["perplexity"] > 1
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    again = load_vae_from_config(vae_ckpt=tmp_path / "model.safetensors", device="cpu")
    assert len(again.Encode(sphere_batch(12.0))) > 0
