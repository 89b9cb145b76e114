"""Every kind of quantizer returns its nearest codes, learns, and passes gradients as its paper says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.quantizers.codebook_usage import codebook_health
from sdf_vqvae.quantizers.euclidean import EuclideanQuantizer
from sdf_vqvae.quantizers.quantizer import Quantizer, _first_least, first_codes, rotated
from sdf_vqvae.quantizers.registry import QUANTIZERS, make_quantizer


def quantizer(kind: str) -> Quantizer:
    torch.manual_seed(0)
    args = {
        "num_embeddings": 32,
        "latent_channels": 3,
        "vq_decay": 0.9,
        "use_ema_update": kind in ("euclidean", "cosine", "residual"),
        "second_codes": 8 if kind == "residual" else 0,
        "second_share": 0.25 if kind == "residual" else 0.0,
        "fsq_levels": (4, 4, 2) if kind == "fsq" else (),
    }
    return make_quantizer(vars(VAEConfig(quantizer=kind, **args)))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_are_rows_of_the_codebook_and_the_nearest_ones(name: str) -> None:
    vq = quantizer(name).eval()
    vectors = vq.prepare(torch.randn(200, 3))
    out = vq(vectors)
    codes = vq.embeddings(first_codes(out.indices))
    torch.testing.assert_close(out.feats, codes)
    distances = torch.cdist(vectors, vq.embeddings.weight)
    torch.testing.assert_close(distances.min(1).values, (vectors - codes).norm(dim=1))


@pytest.mark.parametrize("name", ["euclidean", "cosine", "simvq"])
def test_learning_brings_the_codes_to_the_vectors(name: str) -> None:
    vq = quantizer(name).train()
    samples = vq.prepare(torch.randn(400, 3) * 0.3 + 1)
    vq.initialize(samples)
    placed = float(vq(samples).commitment_loss.detach())
    moved = vq.prepare(samples + 0.5 * torch.randn(3, generator=torch.Generator().manual_seed(3)))
    before = float(vq.eval()(moved).commitment_loss)
    vq.train()
    optimizer = torch.optim.SGD([p for p in vq.parameters() if p.requires_grad] or [torch.zeros(1)], lr=0.5)
    for _ in range(60):
        out = vq(moved)
        if out.codebook_loss is not None:
            optimizer.zero_grad()
            out.codebook_loss.backward()
            optimizer.step()
    assert placed < 0.1
    assert float(vq(moved).commitment_loss) < before


@pytest.mark.parametrize("size", [50, 65536])
def test_nearest_codes_equal_a_full_distance_matrix(size: int) -> None:
    torch.manual_seed(0)
    vq = EuclideanQuantizer(size, 4)
    vectors = torch.randn(300, 4)
    expected = torch.cdist(vectors.double(), vq.embeddings.weight.double()).argmin(1)
    assert torch.equal(vq.nearest(vectors), expected)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 5), columns=st.integers(1, 400), values=st.integers(1, 50), seed=st.integers(0, 10_000))
def test_of_equally_near_codes_the_first_is_taken(rows: int, columns: int, values: int, seed: int) -> None:
    distances = torch.randint(values, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    first = [row.index(min(row)) for row in distances.tolist()]
    assert _first_least(distances).tolist() == first


def test_moving_averages_find_clusters_and_restart_unused_codes() -> None:
    torch.manual_seed(0)
    centers = 10 * torch.randn(8, 4)
    vq = EuclideanQuantizer(32, 4, use_ema_update=True, vq_decay=0.8).train()
    vq.embeddings.weight.data.mul_(0.01)
    for _ in range(200):
        vq(centers.repeat(16, 1) + 0.01 * torch.randn(128, 4))
    nearest = vq.embeddings(vq.nearest(centers))
    assert float((nearest - centers).norm(dim=1).max()) < 0.1
    counts = torch.bincount(vq.nearest(centers.repeat(500, 1) + 0.01 * torch.randn(4000, 4)))
    assert int((counts > 0).sum()) > 16


def test_vectors_far_from_their_code_have_a_second_one() -> None:
    vq = quantizer("residual").train()
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(2000, 3, generator=generator)
    vq.initialize(samples)
    assert torch.equal(vq.nearest(samples)[:, 1], torch.full((2000,), -1))  # none before the first step
    for _ in range(100):
        vq(samples + 0.01 * torch.randn(2000, 3, generator=generator))
    vq.eval()
    indices = vq.nearest(samples)
    has = indices[:, 1] >= 0
    assert float(has.float().mean()) == pytest.approx(0.25, abs=0.05)
    left = samples - vq.embeddings(indices[:, 0])
    assert float(left[has].square().mean(1).min()) > float(vq.second_from) >= float(left[~has].square().mean(1).max())
    both = (samples - vq.vectors(indices))[has].square().mean()
    assert both < 0.4 * left[has].square().mean()
    torch.testing.assert_close(vq(samples).feats, vq.vectors(indices))
    alone = torch.cat([vq.nearest(row) for row in samples[:50].split(1)])
    assert torch.equal(alone, indices[:50])
    for wrong in ([[32, -1]], [[0, 8]], [[0, -2]]):
        with pytest.raises(ValueError, match="codes must lie in"):
            vq.vectors(torch.tensor(wrong))


def test_second_codes_wait_for_enough_vectors_of_small_batches_and_a_stopped_run_keeps_them() -> None:
    vq = quantizer("residual").train()  # needs 32 vectors, and a batch of 20 has 5
    batches = torch.randn(12, 20, 3, generator=torch.Generator().manual_seed(2))
    vq.initialize(batches.view(-1, 3))
    for number, batch in enumerate(batches):
        assert (float(vq.second_from) > 0) == (number >= 7)
        if number == 4:
            again = quantizer("residual").train()
            again.load_state_dict(vq.state_dict())
            vq = again
        vq(batch)
    both, first = vq.vectors(vq.nearest(batches[0])), vq.embeddings(vq.nearest(batches[0])[:, 0])
    assert (both - batches[0]).square().mean() < (first - batches[0]).square().mean()


def test_codebook_health_of_known_counts() -> None:
    even = codebook_health(torch.full((200,), 5))
    assert even.perplexity == pytest.approx(200)
    assert (even.used, even.dead, even.top_percent_mass) == (1.0, 0, pytest.approx(0.01))
    single = codebook_health(torch.tensor([7, *[0] * 99]))
    assert (single.perplexity, single.dead) == (pytest.approx(1.0), 99)


def test_the_grid_of_fsq_is_used_to_its_rim() -> None:
    vq = quantizer("fsq")
    values = vq.prepare(torch.tensor([[-9.0, 0, 9], [9, 9, -9]]))
    corners = vq.embeddings(vq.nearest(values))
    assert corners[0, 0] == -1
    assert corners[0, 2] == 1
    assert corners[1].tolist() == [1, 1, -1]
    assert vq.prepare(torch.randn(5000, 3) * 2).abs().max() <= 2
    assert len(torch.unique(vq.nearest(vq.prepare(torch.randn(5000, 3) * 1.5)))) == 32


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6))
def test_the_rotation_trick_takes_the_vector_to_its_code_and_turns_gradients_back(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(6, 4, generator=generator, requires_grad=True)
    codes = torch.randn(6, 4, generator=generator)
    out = rotated(vectors, codes)
    torch.testing.assert_close(out, codes, atol=1e-4, rtol=1e-4)
    # A gradient along the code comes back along the vector, scaled by the ratio of their lengths.
    (grad,) = torch.autograd.grad(out, vectors, codes / codes.norm(dim=1, keepdim=True))
    expected = vectors / vectors.norm(dim=1, keepdim=True)
    ratio = codes.norm(dim=1, keepdim=True) / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(grad, (expected * ratio).detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"quantizer": "fsq"}, "fsq_levels belongs to"),
        ({"quantizer": "fsq", "fsq_levels": [8, 8], "latent_channels": 2}, "make 64 codes of width 2"),
        ({"quantizer": "simvq", "use_ema_update": True}, "not learned by moving averages"),
        ({"quantizer": "residual", "second_codes": 8, "second_share": 0.1}, "is learned by moving averages"),
        ({"quantizer": "residual", "second_codes": 8, "use_ema_update": True}, "second_share belongs to"),
        ({"second_codes": 8}, "second_codes belongs to"),
        ({"quantizer": "lattice"}, "is not supported; choose from"),
        ({"predict_occupancy": True}, "need architecture='residual'"),
        ({"architecture": "residual", "level_blocks": [1]}, "level_blocks needs 2 numbers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(args: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig.from_args({"resolution": 64, **args})
