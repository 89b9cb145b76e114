"""Our own kernels give the numbers of plain PyTorch, forwards and backwards; natively, or interpreted on a CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import numpy
import pytest
import torch
from packaging.version import Version

from sdf_vqvae.sparse import layers
from sdf_vqvae.sparse.backends import torch_backend, triton_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet, coords_of_keys
from sdf_vqvae.sparse.layers import SparseGroupNorm, VoxelNorm
from sdf_vqvae.sparse.tensor import SparseTensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_kernels = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs Triton and a CUDA GPU",
)


def shell() -> CoordinateSet:
    axis = torch.arange(9) - 4
    distance = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    keys = ((distance - 3).abs() < 1).flatten().nonzero().squeeze(1)
    return CoordinateSet(coords_of_keys(torch.cat([keys, keys + 9**3]), 9), 9)


def one() -> CoordinateSet:
    return CoordinateSet(torch.tensor([[0, 3, 4, 5]]), 8)


def full() -> CoordinateSet:
    return CoordinateSet(coords_of_keys(torch.arange(6**3), 6), 6)


def with_empty_samples() -> CoordinateSet:
    coords = coords_of_keys(torch.arange(0, 200, 2), 9)
    coords[50:, 0] = 2
    return CoordinateSet(coords, 9, batch_size=4)


def children() -> CoordinateSet:
    """Rows that are not in lexicographic order."""
    kept = torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) > 0.3
    return CoordinateSet(coords_of_keys(torch.arange(60), 4), 4).finer(kept)


def apart() -> CoordinateSet:
    """Voxels whose numbers are all multiples of four."""
    return CoordinateSet(coords_of_keys(torch.arange(0, 8**3, 4), 8), 8)


SETS = (shell, one, full, with_empty_samples, children, apart)


def there(coordinates: CoordinateSet) -> CoordinateSet:
    return CoordinateSet(coordinates.coords.to(DEVICE), coordinates.side, coordinates.batch_size)


def large() -> CoordinateSet:
    """Voxels of several bricks, too many for numbers of 32 bits."""
    coords = torch.tensor(
        [[b, x, y, z] for b in (0, 1) for x in (0, 300, 511) for y in (5, 6, 400) for z in (0, 1, 2)]
    )
    return CoordinateSet(coords, 512)


def bricks_of(coordinates: CoordinateSet) -> torch.Tensor:
    b, x, y, z = coordinates.coords.long().unbind(1)
    return ((b * 4 + x // 128) * 4 + y // 128) * 4 + z // 128


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("make", (*SETS, large))
def test_the_map_is_that_of_the_coordinates(make: Callable[[], CoordinateSet]) -> None:
    from sdf_vqvae.sparse.backends.neighbors_triton import grouped, rearranged

    coordinates = there(make())
    table = triton_backend.neighbor_table(coordinates)
    assert torch.equal(table, rearranged(coordinates.neighbors()))
    order, moved, taps = grouped(table, coordinates.coords, coordinates.side, coordinates.batch_size, 32)
    assert torch.equal(order.sort().values.long(), torch.arange(len(coordinates), device=DEVICE))
    assert bool((bricks_of(coordinates)[order.long()].diff() >= 0).all())
    assert torch.equal(moved, rearranged(coordinates.neighbors()[order.long()]))
    assert len(taps) == -(-len(coordinates) // 32)
    for number, listed in enumerate(taps):
        present = (moved[:, number * 32 : (number + 1) * 32] >= 0).any(1).nonzero().squeeze(1)
        assert int(listed[0]) == len(present)
        assert torch.equal(listed[1 : 1 + len(present)].long(), present)


@pytest.mark.parametrize(
    ("version", "said"), [("", "Triton is not installed"), ("3.2.0", "Triton 3.2.0 is too old"), ("3.10.0", "")]
)
def test_a_triton_that_cannot_compile_the_kernels_is_not_used(
    version: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_backend, "_triton_version", lambda: version)
    assert triton_backend.lacking().startswith(said)
    assert bool(triton_backend.lacking()) == bool(said)
    monkeypatch.setattr(triton_backend, "_before_ampere", lambda: True)
    assert triton_backend.unfit("cuda")
    assert triton_backend.unfit("cpu")


def test_a_map_of_numbers_too_large_for_the_table_is_built_otherwise() -> None:
    pytest.importorskip("triton")
    from sdf_vqvae.sparse.backends.neighbors_triton import fits

    assert fits(10**8, 1024, 8)
    assert not fits(10**8, 1024, 9)
    assert not fits(1 << 30, 256, 1)


def results(
    backend: object, coordinates: CoordinateSet, cin: int, cout: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    count = len(coordinates)
    shapes = ((count, cin), (cout, 3, 3, 3, cin), (cout,), (count, cout))
    feats, weight, bias, grad = (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes)
    weight = weight / (27 * cin) ** 0.5
    for tensor in (feats, weight, bias):
        tensor.requires_grad_()
    out = backend.convolve(feats, weight, bias, coordinates)  # type: ignore[attr-defined]
    out.backward(grad)
    return [out.detach(), feats.grad, weight.grad, bias.grad]  # type: ignore[list-item]


def off(value: torch.Tensor, expected: torch.Tensor) -> float:
    assert value.dtype == expected.dtype
    assert value.shape == expected.shape
    return float((value.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-9))


CHANNELS = [(8, 8), (20, 33), (32, 48)] if INTERPRETED else [
    *((1, 1), (8, 8), (20, 33), (16, 32), (32, 32), (48, 96), (96, 48)),
    *((64, 32), (64, 64), (128, 128), (192, 256), (512, 512)),
]  # fmt: skip
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else list(TOLERANCES))
@pytest.mark.parametrize(("cin", "cout"), CHANNELS)
@pytest.mark.parametrize("make", SETS)
def test_both_passes_agree_with_plain_pytorch(
    make: Callable[[], CoordinateSet], cin: int, cout: int, dtype: torch.dtype
) -> None:
    coordinates = there(make())
    expected = results(torch_backend, coordinates, cin, cout, dtype)
    for value, right in zip(results(triton_backend, coordinates, cin, cout, dtype), expected, strict=True):
        assert off(value, right) < TOLERANCES[dtype]


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("make", [shell, children])
def test_taps_that_a_block_has_not_are_left_out(
    make: Callable[[], CoordinateSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinates = there(make())
    expected = results(torch_backend, coordinates, 24, 40, torch.float32)
    monkeypatch.setattr(triton_backend, "_GROUPED_CHANNELS", 1)
    monkeypatch.setattr(triton_backend, "_GROUPED_ROWS", 1)
    for value, right in zip(results(triton_backend, coordinates, 24, 40, torch.float32), expected, strict=True):
        assert off(value, right) < 2e-6
    assert "triton grouped" in coordinates._derived


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("make", [shell, with_empty_samples, large])
def test_the_map_of_children_is_found_through_their_cells(make: Callable[[], CoordinateSet]) -> None:
    cells = there(make())
    kept = torch.rand(len(cells), 8, generator=torch.Generator().manual_seed(0)) > 0.3
    for children in (cells.finer(), cells.finer(kept.to(DEVICE)).finer()):
        alone = there(children)
        assert children.knows_cells
        assert torch.equal(triton_backend.neighbor_table(children), triton_backend.neighbor_table(alone))


def normalized(layer: SparseGroupNorm, x: SparseTensor, grad: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    feats = x.feats.clone().requires_grad_()
    out = layer(x.replace(feats)).feats
    out.backward(grad)
    return [out.detach(), feats.grad, layer.weight.grad, layer.bias.grad]  # type: ignore[list-item]


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else list(TOLERANCES))
@pytest.mark.parametrize("channels", [8, 48, 192])
def test_group_norm_agrees_with_plain_pytorch(
    channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from zero, too, where squares lose digits."""
    coordinates = there(with_empty_samples())
    generator = torch.Generator().manual_seed(0)
    feats, grad = (torch.randn(len(coordinates), channels, generator=generator) for _ in range(2))
    feats = feats * torch.linspace(0.5, 2, channels) + 30
    layer = SparseGroupNorm(channels).to(DEVICE)
    torch.nn.init.normal_(layer.weight, 1, 0.3, generator=None if DEVICE == "cuda" else generator)
    x, grad = SparseTensor(feats.to(DEVICE, dtype), coordinates), grad.to(DEVICE, dtype)
    found = {}
    for name in ("torch", "triton"):
        monkeypatch.setattr(layers, "active_backend", lambda _, name=name: name)
        found[name] = normalized(layer, x, grad)
    for value, right in zip(found["triton"], found["torch"], strict=True):
        assert off(value, right) < max(TOLERANCES[dtype], 2e-5)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32] if INTERPRETED else list(TOLERANCES))
@pytest.mark.parametrize(("rows", "channels"), [(700, 8), (77, 48), (13, 64)])
def test_norm_of_voxels_agrees_with_plain_pytorch(
    rows: int, channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from zero, too, and with parts of the rows that have none left."""
    if INTERPRETED or rows == 77:
        from sdf_vqvae.sparse.backends import voxel_norm_triton

        monkeypatch.setattr(voxel_norm_triton, "_PARTS", 3)
    coordinates = CoordinateSet(coords_of_keys(torch.arange(rows), 9), 9)
    generator = torch.Generator().manual_seed(0)
    feats, grad = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    layer = VoxelNorm(channels).to(DEVICE)
    torch.nn.init.normal_(layer.weight, 1, 0.3, generator=None if DEVICE == "cuda" else generator)
    x = SparseTensor((feats * 2 + 10).to(DEVICE, dtype), there(coordinates))
    found = {}
    for name in ("torch", "triton"):
        monkeypatch.setattr(layers, "active_backend", lambda _, name=name: name)
        found[name] = normalized(layer, x, grad.to(DEVICE, dtype))
    for value, right in zip(found["triton"], found["torch"], strict=True):
        assert off(value, right) < max(TOLERANCES[dtype], 2e-5)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize(("count", "size", "width"), [(1, 5, 3), (130, 1000, 16), (70, 128, 20)])
def test_nearest_codes(count: int, size: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several programs and by one; of codes that occur twice, the first."""
    from sdf_vqvae.quantizers import nearest_triton

    generator = torch.Generator().manual_seed(0)
    codes, vectors = (torch.randn(n, width, generator=generator).to(DEVICE) for n in (size, count))
    codes[size // 2] = codes[1]
    vectors[0] = codes[1]
    distances = codes.double().square().sum(1) / 2 - vectors.double() @ codes.double().T
    for programs in (1, 64):
        monkeypatch.setattr(nearest_triton, "_PROGRAMS", programs)
        found = nearest_triton.nearest_codes(vectors, codes)
        assert int(found[0]) == 1
        least = distances.gather(1, found[:, None])[:, 0]
        torch.testing.assert_close(least, distances.amin(1), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("channels", [3, 32, 200])
def test_column_sums(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdf_vqvae.sparse.backends import convolution_triton

    monkeypatch.setattr(convolution_triton, "_COLUMN_PARTS", 3)
    rows = torch.randn(1700, channels, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    assert off(convolution_triton.column_sums(rows), rows.double().sum(0).float()) < 2e-6


@pytest.mark.gpu
@needs_kernels
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_float32_of_any_size_is_convolved(factor: float) -> None:
    """A number is two halves and a power of two; the largest decides about that."""
    coordinates = there(shell())
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(len(coordinates), 16, generator=generator).to(DEVICE)
    weight = torch.randn(16, 3, 3, 3, 16, generator=generator).to(DEVICE)
    feats[3] *= 1e-3
    expected = torch_backend.convolve(feats * factor, weight, None, coordinates)
    assert off(triton_backend.convolve(feats * factor, weight, None, coordinates), expected) < 2e-6
    nothing = torch.zeros_like(feats)
    assert torch.equal(triton_backend.convolve(nothing, weight, None, coordinates), nothing)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.skipif(INTERPRETED, reason="halves are not rounded as on a GPU")
def test_tf32_is_taken_where_pytorch_takes_it() -> None:
    coordinates = there(shell())
    expected = results(torch_backend, coordinates, 32, 48, torch.float64)
    torch.set_float32_matmul_precision("high")
    try:
        found = results(triton_backend, coordinates, 32, 48, torch.float32)
    finally:
        torch.set_float32_matmul_precision("highest")
    for value, right in zip(found[:3], expected[:3], strict=True):
        assert 2e-5 < off(value, right.float()) < 1e-3


@pytest.mark.gpu
@needs_kernels
def test_a_map_without_the_table_of_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdf_vqvae.sparse.backends import neighbors_triton

    expected = triton_backend.neighbor_table(there(children()))
    monkeypatch.setattr(neighbors_triton, "fits", lambda *_: False)
    assert torch.equal(triton_backend.neighbor_table(there(children())), expected)


@pytest.mark.gpu
@needs_kernels
@pytest.mark.skipif(INTERPRETED, reason="one thread")
def test_gradients_are_the_same_every_time() -> None:
    coordinates = there(shell())
    first, second = (results(triton_backend, coordinates, 32, 32, torch.bfloat16) for _ in range(2))
    for one_time, other_time in zip(first, second, strict=True):
        assert torch.equal(one_time, other_time)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is what it starts")
def test_kernels_without_a_gpu() -> None:
    """Triton's interpreter computes what the kernels do; it has to be chosen before Triton loads."""
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of this Triton can't work with NumPy from 2.4 on")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
