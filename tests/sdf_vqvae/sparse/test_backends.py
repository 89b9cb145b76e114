"""The same weights give the same numbers on every backend, forwards and backwards."""

import pytest
import torch

from sdf_vqvae.sparse.backends import spconv_backend, torch_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet, coords_of_keys

needs_spconv = pytest.mark.skipif(
    not torch.cuda.is_available() or spconv_backend.installed_package() is None,
    reason="needs a CUDA GPU and spconv-triton",
)


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
