"""Sparse layers equal PyTorch's dense ones on a full grid, and plain loops on sparse ones."""

import pytest
import torch
from torch import nn

from sdf_vqvae.sparse.attention import AbsolutePositionEmbedder, SparseAttention, windowed_attention
from sdf_vqvae.sparse.conv import SparseConv3d, active_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet, coords_of_keys
from sdf_vqvae.sparse.layers import SparseDownsample, SparseGroupNorm, SparseSubdivide
from sdf_vqvae.sparse.tensor import SparseTensor


def random_tensor(seed: int, side: int, count: int, channels: int) -> SparseTensor:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(2 * side**3, generator=generator)[:count].sort().values
    feats = torch.randn(count, channels, generator=generator)
    return SparseTensor(feats, coords_of_keys(keys, side), side=side, batch_size=2)


def full_grid(side: int, channels: int) -> SparseTensor:
    torch.manual_seed(0)
    coords = coords_of_keys(torch.arange(2 * side**3), side)
    return SparseTensor(torch.randn(len(coords), channels), coords, side=side)


def test_convolution_equals_conv3d_on_a_full_grid() -> None:
    x = full_grid(9, 5)
    layer = SparseConv3d(5, 7, 3)
    dense = x.feats.view(2, 9, 9, 9, 5).permute(0, 4, 1, 2, 3)
    weight = layer.conv.weight.permute(0, 4, 1, 2, 3)
    expected = nn.functional.conv3d(dense, weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(x).feats, expected.permute(0, 2, 3, 4, 1).reshape(-1, 7))


def test_convolution_leaves_absent_voxels_out() -> None:
    x = random_tensor(seed=1, side=10, count=300, channels=4)
    layer = SparseConv3d(4, 6, 3)
    dense = torch.zeros(2, 10, 10, 10, 4)
    b, i, j, k = x.coords.long().unbind(1)
    dense[b, i, j, k] = x.feats
    expected = nn.functional.conv3d(
        dense.permute(0, 4, 1, 2, 3), layer.conv.weight.permute(0, 4, 1, 2, 3), layer.conv.bias, padding=1
    )
    torch.testing.assert_close(layer(x).feats, expected.permute(0, 2, 3, 4, 1)[b, i, j, k])


def test_convolution_gradients_are_exact() -> None:
    x = random_tensor(seed=2, side=6, count=60, channels=3)
    layer = SparseConv3d(3, 2, 3).double()

    def run(feats: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        from sdf_vqvae.sparse.backends.torch_backend import convolve

        return convolve(feats, weight, bias, x.coordinates)

    inputs = (x.feats.double().requires_grad_(), layer.conv.weight, layer.conv.bias)
    assert torch.autograd.gradcheck(run, inputs)


def test_kernel_of_size_one_is_read_as_spconv_reads_it() -> None:
    x = random_tensor(seed=3, side=6, count=20, channels=3)
    layer = SparseConv3d(3, 5, 1)
    matrix = layer.conv.weight.reshape(3, 5)
    torch.testing.assert_close(layer(x).feats, x.feats @ matrix + layer.conv.bias)


def test_group_norm_equals_pytorchs_on_each_sample() -> None:
    x = random_tensor(seed=4, side=12, count=400, channels=64)
    layer = SparseGroupNorm(64)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    expected = [nn.functional.group_norm(f.T[None], 32, layer.weight, layer.bias)[0].T for f, _ in x.samples()]
    torch.testing.assert_close(layer(x).feats, torch.cat(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts_zero", [False, True])
def test_pooling_averages_the_voxels_of_a_cell(counts_zero: bool) -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1], [0, 2, 0, 0]])
    pooled = SparseDownsample(counts_zero)(SparseTensor(torch.tensor([[2.0], [4.0], [6.0]]), coords, side=4))
    assert pooled.side == 2
    assert pooled.feats[:, 0].tolist() == ([2.0, 3.0] if counts_zero else [3.0, 6.0])


def test_subdivision_copies_features_to_eight_children() -> None:
    x = random_tensor(seed=5, side=6, count=20, channels=3)
    fine = SparseSubdivide()(x)
    assert len(fine) == 160
    assert torch.equal(fine.feats.view(20, 8, 3), x.feats[:, None].expand(-1, 8, -1))
    assert torch.equal(fine.coords[:, 1:] // 2, x.coords[:, 1:].repeat_interleave(8, 0))


@pytest.mark.parametrize(("size", "shift"), [(4, 0), (4, 2), (16, 0)])
def test_windowed_attention_equals_attention_inside_each_window(size: int, shift: int) -> None:
    x = random_tensor(seed=6, side=16, count=300, channels=24)
    q, k, v = (torch.randn(300, 2, 12) for _ in range(3))
    result = windowed_attention(q, k, v, x.coordinates.windows(size, shift))
    window = torch.cat([x.coords[:, :1], (x.coords[:, 1:] + shift) // size], dim=1)
    same = (window[:, None] == window[None]).all(-1)
    scores = torch.einsum("ihd,jhd->hij", q, k) / 12**0.5
    expected = torch.einsum("hij,jhd->ihd", scores.masked_fill(~same, -torch.inf).softmax(-1), v)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-4)


def test_a_sample_is_not_changed_by_the_others_in_its_batch() -> None:
    x = random_tensor(seed=7, side=16, count=300, channels=32)
    block = SparseAttention(32, 4, window_size=8, shift=4, qk_rms_norm=True)
    first, xyz = x.samples()[0]
    alone = SparseTensor(first, torch.cat([torch.zeros_like(xyz[:, :1]), xyz], 1), side=16)
    torch.testing.assert_close(
        block(x.feats, x.coordinates)[: len(first)],
        block(alone.feats, alone.coordinates),
        atol=1e-5,
        rtol=1e-4,
    )


def test_distinct_coordinates_have_distinct_position_codes() -> None:
    coords = coords_of_keys(torch.arange(32**3), 32)[:, 1:]
    codes = AbsolutePositionEmbedder(256)(coords)
    assert codes.shape == (32**3, 256)
    assert len(torch.unique((codes * 1e4).round(), dim=0)) == 32**3


def test_the_backend_is_chosen_by_environment_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("auto", "numba"):
        monkeypatch.setenv("SPARSE_BACKEND", name)
        assert active_backend("cpu") == "numba"
    for name in ("torch", "spconv", "triton"):
        monkeypatch.setenv("SPARSE_BACKEND", name)
        assert active_backend("cpu") == "torch"
    monkeypatch.setattr("sdf_vqvae.sparse.backends.numba_backend.has_numba", lambda: False)
    monkeypatch.setenv("SPARSE_BACKEND", "auto")
    assert active_backend("cpu") == "torch"
    monkeypatch.setenv("SPARSE_BACKEND", "flash")
    with pytest.raises(ValueError, match="auto, torch, numba, spconv or triton"):
        active_backend("cpu")


def test_an_empty_sample_in_the_middle_of_a_batch_is_kept() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [2, 1, 1, 1]])
    x = SparseTensor(torch.ones(2, 4), CoordinateSet(coords, 4, batch_size=4))
    assert [len(f) for f, _ in x.samples()] == [1, 0, 1, 0]
    assert SparseGroupNorm(4)(x).feats.shape == (2, 4)
