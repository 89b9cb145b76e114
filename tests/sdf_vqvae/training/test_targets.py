"""Targets are the measured distances, and beyond the band the signs that a plain flood fill finds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import tiny_tokenizer as tiny
from sdf_vqvae.geometry.solids import Solids
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training.targets import dense_targets, targets_of, thin_at, thin_blocks
from sdf_vqvae.training.thin_shapes import part


def flooded(sign: Tensor) -> Tensor:
    """Spread signs from known to unknown (0) voxels inside each cell, one neighbor a step. int8 `[M, s, s, s]`"""
    for _ in range(3 * sign.shape[1]):
        padded = functional.pad(sign, (1, 1, 1, 1, 1, 1))
        around = torch.zeros_like(sign)
        for axis in (1, 2, 3):
            inner = padded
            for other in {1, 2, 3} - {axis}:
                inner = inner.narrow(other, 1, sign.shape[1])
            around += inner.narrow(axis, 0, sign.shape[1]) + inner.narrow(axis, 2, sign.shape[1])
        sign = torch.where(sign == 0, around.sign(), sign)
    return sign


def plain_targets(field: SparseTensor, cells: SparseTensor) -> Tensor:
    """`dense_targets`, written plainly."""
    side = field.side // cells.side
    dense = torch.full((len(cells), side, side, side), torch.nan)
    rows = {tuple(c): row for row, c in enumerate(cells.coords.tolist())}
    for (b, x, y, z), value in zip(field.coords.tolist(), field.feats[:, 0], strict=True):
        row = rows.get((b, x // side, y // side, z // side))
        if row is not None:
            dense[row, x % side, y % side, z % side] = value
    sign = flooded(torch.nan_to_num(dense).sign().to(torch.int8)).float()
    return torch.where(dense.isnan(), torch.where(sign == 0, torch.nan, sign), dense)


def blobs(seed: int, side: int, spread: float) -> Tensor:
    """Return a distance that is cut off at a voxel's step from each neighbor, of random matter. `[R, R, R]`"""
    torch.manual_seed(seed)
    noise = torch.randn(1, 1, side, side, side)
    width = int(spread)
    smooth = functional.avg_pool3d(noise, 2 * width + 1, 1, width)[0, 0]
    steps = max(float(torch.diff(smooth, dim=axis).abs().max()) for axis in range(3))
    return (smooth - smooth.median()) / steps / tiny.BAND


def field_of(distance: Tensor, size: int = 1) -> SparseTensor:
    """Return the voxels of a dense field within the band, the same for each sample."""
    index = (distance.abs() <= 1).nonzero()
    one = torch.cat([torch.zeros(len(index), 1, dtype=torch.int64), index], 1)
    values = distance[index.unbind(1)][:, None]
    step = torch.tensor([1, 0, 0, 0])
    coords = torch.cat([one + number * step for number in range(size)]).int()
    return SparseTensor(values.repeat(size, 1), coords, side=len(distance), batch_size=size)


def cells_near(field: SparseTensor, side: int) -> SparseTensor:
    """Return the cells of `side`^3 voxels that hold a voxel in the middle of the band."""
    seen = field.coords[field.feats[:, 0].abs() <= 1.75 / tiny.BAND].clone()
    seen[:, 1:] //= side
    cells = torch.unique(seen, dim=0)
    return SparseTensor(torch.zeros(len(cells), 1), cells, side=field.side // side, batch_size=field.batch_size)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 999), spread=st.sampled_from([2, 3, 5]), side=st.sampled_from([4, 8, 16]))
def test_random_matter_has_the_signs_of_a_plain_flood(seed: int, spread: float, side: int) -> None:
    field = field_of(blobs(seed, 32, spread), size=2)
    cells = cells_near(field, side)
    torch.testing.assert_close(
        dense_targets(field, cells), plain_targets(field, cells), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("thickness", [0.8, 2.5, 5.0])
@pytest.mark.parametrize("half", [(0.3, 0.02, 0.02), (0.3, 0.3, 0.0), (0.02, 0.4, 0.1)])
def test_thin_things_have_the_signs_of_a_plain_flood(thickness: float, half: tuple[float, ...]) -> None:
    thin = thickness / 2 / 64
    solids = Solids.joined([part((0.01, 0.02, 0.03), half, round=thin), part((0.2, 0, 0.1), half[::-1], round=thin)])
    index, distance = solids.field(64)
    coords = torch.cat([torch.zeros(len(index), 1, dtype=torch.int32), index], 1)
    field = SparseTensor(distance[:, None], coords, side=64)
    for side in (8, 16):
        cells = cells_near(field, side)
        torch.testing.assert_close(
            dense_targets(field, cells), plain_targets(field, cells), rtol=0, atol=0, equal_nan=True
        )


def test_one_known_voxel_tells_a_whole_cell_and_none_leaves_it_unknown() -> None:
    corners = torch.tensor([[0, 0, 0, 0], [0, 31, 31, 31]], dtype=torch.int32)
    field = SparseTensor(torch.tensor([[-0.9], [0.9]]), corners, side=32)
    cells = SparseTensor(
        torch.zeros(3, 1), torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.int32), side=2
    )
    dense = dense_targets(field, cells)
    assert float(dense[0, 0, 0, 0]) == pytest.approx(-0.9)
    assert bool((dense[0].flatten()[1:] == -1).all())
    assert bool(dense[1].isnan().all())
    assert bool((dense[2].flatten()[:-1] == 1).all())


@settings(deadline=None, max_examples=10)
@given(radius=st.floats(9.0, 28.0), kind=st.sampled_from(["original", "residual", "patches"]))
def test_targets_are_the_clipped_distance_wherever_the_decoder_answers(radius: float, kind: str) -> None:
    vae = tiny.vae(**tiny.PATCHES) if kind == "patches" else tiny.vae(architecture=kind)
    batch = tiny.batch(radius)
    cells = vae.Encode(batch)
    decoded = vae.Decode(cells)
    dense = dense_targets(SparseTensor(batch["sparse_sdf"], tiny.coords(batch), side=tiny.SIDE), cells)
    target = targets_of(decoded, dense, vae.config.levels)
    exact = (((decoded.coords[:, 1:] + 0.5 - tiny.SIDE / 2).norm(dim=1) - radius) / tiny.BAND).clamp(-1, 1)
    known = ~target.isnan()
    assert float(known.float().mean()) > 0.99
    torch.testing.assert_close(target[known], exact[known], atol=1e-5, rtol=0)


def test_unsigned_targets_end_where_the_field_ends() -> None:
    batch = tiny.batch(20.0)
    vae = tiny.vae()
    cells = vae.Encode(batch)
    whole = SparseTensor(batch["sparse_sdf"].abs(), tiny.coords(batch), side=tiny.SIDE)
    dense = dense_targets(whole, cells, signed=False)
    assert int((~dense.isnan()).sum()) <= len(whole)
    assert float(dense[~dense.isnan()].max()) <= 1


def thin_of(field: SparseTensor, side: int) -> tuple[Tensor, SparseTensor]:
    """Return how thin each block is, and the cells."""
    cells = cells_near(field, side)
    return thin_blocks(dense_targets(field, cells), field, cells), cells


def solid_field(*parts: Solids) -> SparseTensor:
    index, distance = Solids.joined(parts).field(64)
    return SparseTensor(distance[:, None], functional.pad(index, (1, 0)), side=64)


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("thickness", [1.0, 2.0, 4.0, 8.0, 40.0])
@pytest.mark.parametrize("shift", [0.1, 0.3, 0.5])
def test_a_plate_is_as_thin_as_its_middle_is_near_and_a_block_is_not(
    side: int, thickness: float, shift: float
) -> None:
    field = solid_field(part((shift / 64, 0, 0), (thickness / 2 / 64, 0.3, 0.3)))
    thin, _ = thin_of(field, side)
    inside = field.coords[field.feats[:, 0] < 0].long()
    flat = inside[((inside[:, 2:] - 31.5).abs() < 10).all(1)]  # away from the rim
    values = thin[tuple((flat // torch.tensor([1, 4, 4, 4])).unbind(1))].float()
    expected = max(0.0, 1 - thickness / 2 / tiny.BAND)
    # The deepest sample lies up to half a voxel beside the middle.
    assert expected - 1e-3 <= float(values.min())
    assert float(values.max()) <= expected + (0.5 / tiny.BAND + 1e-3 if expected else 0)


@pytest.mark.parametrize("side", [8, 16])
def test_a_narrow_gap_is_thin_and_the_open_side_of_the_walls_is_not(side: int) -> None:
    wall = (10 / 64, 0.3, 0.3)
    field = solid_field(part((-11.3 / 64, 0, 0), wall), part((11.0 / 64, 0, 0), wall))
    thin, _ = thin_of(field, side)
    middle = thin[0, :, 6:10, 6:10].float()
    assert float(middle[8].min()) > 0.5
    assert float(middle[:6].max()) == 0
    assert float(middle[10:].max()) == 0


def test_thickness_of_coarser_and_finer_cells_is_that_of_their_blocks() -> None:
    thin = torch.zeros(1, 8, 8, 8)
    thin[0, 5, 2, 7] = 0.5
    at = {2: [[0, 1, 0, 1], [0, 0, 0, 1]], 8: [[0, 5, 2, 7], [0, 5, 2, 6]], 32: [[0, 21, 11, 30], [0, 24, 11, 30]]}
    for side, rows in at.items():
        cells = CoordinateSet(torch.tensor(rows, dtype=torch.int32).sort(0)[0], side)
        cells.coords[:] = torch.tensor(rows, dtype=torch.int32)
        assert thin_at(thin, cells).tolist() == [0.5, 0.0]
