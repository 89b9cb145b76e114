"""The same weights give the same numbers on every backend, forwards and backwards."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdf_vqvae.sparse.backends import numba_backend, spconv_backend, torch_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet, coords_of_keys

needs_spconv = pytest.mark.skipif(
    not torch.cuda.is_available() or spconv_backend.installed_package() is None,
    reason="needs a CUDA GPU and spconv-triton",
)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def results(backend: ModuleType, coordinates: CoordinateSet, cin: int, cout: int) -> list[Tensor]:
    """Return the convolution of random features and the gradients of features, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (len(coordinates), cin), (cout, 3, 3, 3, cin), (cout,), (len(coordinates), cout)
    feats, weight, bias, grad = (torch.randn(s, generator=generator) for s in shapes)
    weight /= (27 * cin) ** 0.5
    for tensor in (feats, weight, bias):
        tensor.requires_grad_()
    out = backend.convolve(feats, weight, bias, coordinates)
    return [out.detach(), *torch.autograd.grad(out, [feats, weight, bias], grad)]


def assert_same_numbers(coordinates: CoordinateSet, cin: int, cout: int) -> None:
    expected = results(torch_backend, coordinates, cin, cout)
    for value, wanted in zip(results(numba_backend, coordinates, cin, cout), expected, strict=True):
        torch.testing.assert_close(value, wanted, atol=2e-5 * max(1.0, float(wanted.abs().max())), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0.01, 1),
    batch_size=st.integers(1, 3),
    cin=st.sampled_from([1, 8, 24, 64]),
    cout=st.sampled_from([1, 16, 40]),
)
def test_compiled_gathers_give_the_numbers_of_the_reference(
    seed: int, share: float, batch_size: int, cin: int, cout: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    there = torch.rand(batch_size * 10**3, generator=generator) < share
    there[int(torch.randint(len(there), (1,), generator=generator))] = True
    coordinates = CoordinateSet(coords_of_keys(there.nonzero().squeeze(1), 10), 10, batch_size + 1)
    assert_same_numbers(coordinates, cin, cout)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("subdivided", [False, True])
def test_a_shell_of_many_blocks_in_two_threads_gives_the_same_numbers(subdivided: bool) -> None:
    axis = torch.arange(40) - 19.5
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    keys = ((distance - 17).abs() < 1.5).flatten().nonzero().squeeze(1)
    coordinates = CoordinateSet(coords_of_keys(torch.cat([keys, keys + 40**3]), 40), 40)
    if subdivided:  # rows that are not in lexicographic order
        kept = torch.rand(len(coordinates), 8, generator=torch.Generator().manual_seed(0)) > 0.7
        coordinates = coordinates.finer(kept)
    assert_same_numbers(coordinates, 32, 32)
    assert torch.get_num_threads() == 2


def test_one_voxel_and_a_whole_grid_give_the_same_numbers() -> None:
    assert_same_numbers(CoordinateSet(torch.tensor([[0, 3, 4, 5]]), 8), 8, 16)
    assert_same_numbers(CoordinateSet(coords_of_keys(torch.arange(12**3), 12), 12), 16, 8)


def test_other_precisions_run_too() -> None:
    coordinates = CoordinateSet(coords_of_keys(torch.arange(0, 500, 3), 8), 8)
    for dtype in (torch.float64, torch.bfloat16):
        feats, weight = torch.randn(len(coordinates), 4, dtype=dtype), torch.randn(8, 3, 3, 3, 4, dtype=dtype)
        out, expected = (b.convolve(feats, weight, None, coordinates) for b in (numba_backend, torch_backend))
        assert torch.equal(out, expected)


@pytest.mark.gpu
@needs_spconv
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_spconv_equals_the_torch_reference(dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(2 * 32**3, generator=generator)[:20_000].sort().values
    coordinates = CoordinateSet(coords_of_keys(keys, 32).cuda(), 32)
    results = []
    for backend in (torch_backend, spconv_backend):
        torch.manual_seed(0)
        feats = torch.randn(20_000, 32, device="cuda", dtype=dtype, requires_grad=True)
        weight = (torch.randn(64, 3, 3, 3, 32, device="cuda", dtype=dtype) / 30).requires_grad_()
        bias = torch.randn(64, device="cuda", dtype=dtype, requires_grad=True)
        out = backend.convolve(feats, weight, bias, coordinates)
        out.float().square().sum().backward()
        results.append([out, feats.grad, weight.grad, bias.grad])
    for expected, value in zip(*results, strict=True):
        assert float((value.float() - expected.float()).norm() / expected.float().norm()) < tolerance


def test_tables_of_a_step_are_freed_without_the_garbage_collector() -> None:
    """Sets of two levels must not hold each other: their tables would pile up on a GPU until a collection."""
    import gc
    import weakref

    coordinates = CoordinateSet(coords_of_keys(torch.arange(500), 8), 8)
    gc.disable()
    try:
        fine = coordinates.finer().finer()
        fine.neighbors()
        watched = weakref.ref(fine)
        del fine
        assert watched() is None
    finally:
        gc.enable()
