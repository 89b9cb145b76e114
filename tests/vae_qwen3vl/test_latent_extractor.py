"""Codebook vectors from any VAE."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from vae_qwen3vl.vae_latent_extractor import (
    codebook_vectors,
    extract_3d_latent,
    extract_3d_latent_and_indices,
    vae_fingerprint,
)


def test_features_are_the_codebook_rows_of_the_codes_that_decode_takes(vae, make_batch):
    feats, coords, indices = extract_3d_latent_and_indices(make_batch([30, 50]), vae)
    assert torch.equal(feats, vae.vq.embeddings.weight[indices.feats[:, 0].long()])
    assert coords.dtype == torch.int32 and coords.shape == (len(feats), 4)
    assert torch.equal(vae.Decode(indices).coords, coords)
    pair = extract_3d_latent(make_batch([30, 50]), vae)
    assert torch.equal(pair[0], feats) and torch.equal(pair[1], coords)


def test_nothing_trains_and_the_vae_keeps_its_mode(vae, make_batch):
    vae.train()
    feats, _ = extract_3d_latent(make_batch([10]), vae)
    assert not feats.requires_grad and vae.training
    vae.vq.embeddings.requires_grad_(True)
    assert not codebook_vectors(torch.tensor([3]), vae).requires_grad
    recording = []
    watched = SimpleNamespace(
        Encode=lambda batch: (recording.append(torch.is_grad_enabled()), vae.Encode(batch))[1], vq=vae.vq
    )
    extract_3d_latent(make_batch([10]), watched)
    assert recording == [False]
    vae.eval()
    extract_3d_latent(make_batch([10]), vae, device="cpu")
    assert not vae.training


def test_a_vae_that_is_no_module_works(vae, make_batch):
    plain = SimpleNamespace(Encode=vae.Encode, Decode=vae.Decode, vq=SimpleNamespace(embeddings=torch.randn(64, 8)))
    feats, _, indices = extract_3d_latent_and_indices(make_batch([10]), plain)
    assert torch.equal(feats, plain.vq.embeddings[indices.feats[:, 0].long()])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_codes_may_be_integers_or_floats(vae, dtype, shape):
    codes = torch.tensor([5, 0, 63]).reshape(shape).to(dtype)
    assert torch.equal(codebook_vectors(codes, vae), vae.vq.embeddings.weight[[5, 0, 63]].detach())


def test_codes_of_another_codebook_are_refused(vae):
    with pytest.raises(ValueError, match="64 entries"):
        codebook_vectors(torch.tensor([64]), vae)
    with pytest.raises(ValueError, match="one or two a cell"):
        codebook_vectors(torch.zeros(3, 3), vae)
    with pytest.raises(ValueError, match="no codebook"):
        codebook_vectors(torch.zeros(3), SimpleNamespace())


def test_the_fingerprint_follows_the_codebook(vae):
    before = vae_fingerprint(vae)
    assert before == vae_fingerprint(vae)
    vae.vq.embeddings.weight.data[0, 0] += 1
    assert vae_fingerprint(vae) != before
    vae.fingerprint = lambda: "its own"
    assert vae_fingerprint(vae) == "its own"


def test_our_own_vae_gives_the_same_contract():
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

    torch.manual_seed(0)
    field = {"kind": "sdf", "unit": "band", "band": 3.0, "sampling": "center", "resolution": 64}
    own = SparseSDFVQVAE(
        resolution=8, model_channels=32, num_head_channels=32, num_blocks=1, num_embeddings=32, field=field
    ).eval()
    index = torch.stack(torch.meshgrid(*[torch.arange(20, 30)] * 3, indexing="ij"), -1).reshape(-1, 3)
    values = ((index - 25.0).norm(dim=1) - 4) / 3
    near = values.abs() <= 1
    count = int(near.sum())
    batch = {
        "sparse_sdf": values[near].repeat(2)[:, None],
        "sparse_index": index[near].repeat(2, 1),
        "batch_idx": torch.arange(2).repeat_interleave(count),
    }
    feats, coords, indices = extract_3d_latent_and_indices(batch, own)
    assert torch.equal(feats, own.vq.embeddings.weight[indices.feats[:, 0]])
    assert torch.bincount(coords[:, 0]).tolist() == [len(coords) // 2] * 2
    assert vae_fingerprint(own) == own.fingerprint()
    assert len(own.Decode(indices).feats) > len(coords)


def test_what_the_vae_is_given_stays_as_it_was_and_foreign_batches_pass_through(vae, make_batch):
    batch = make_batch([20, 9])
    before = {name: value.clone() for name, value in batch.items()}
    expected = extract_3d_latent(batch, vae)
    assert all(torch.equal(batch[name], before[name]) for name in before)
    plain = SimpleNamespace(Encode=lambda given: vae.Encode(given.batch), Decode=vae.Decode, vq=vae.vq)
    found = extract_3d_latent(SimpleNamespace(batch=batch), plain)
    assert all(torch.equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_codes_without_a_coordinate_each_are_refused(vae, make_batch):
    lost = SimpleNamespace(
        Encode=lambda batch: SimpleNamespace(feats=torch.zeros(3, 1), coords=torch.zeros(2, 4)), vq=vae.vq
    )
    with pytest.raises(ValueError, match=r"3 codes with coordinates \[2, 4\]"):
        extract_3d_latent(make_batch([5]), lost)


def test_a_vae_in_training_mode_returns_to_it_even_after_an_error(vae):
    vae.train()
    with pytest.raises(KeyError):
        extract_3d_latent({"sparse_sdf": torch.zeros(1, 1)}, vae)
    assert vae.training
