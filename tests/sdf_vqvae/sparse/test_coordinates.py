"""Coordinate sets: neighbors, pooling cells, subdivision and windows say what a plain loop says."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.sparse.coordinates import CoordinateSet, coords_of_keys, linear_keys


def random_set(seed: int, side: int, count: int, batch_size: int = 2) -> CoordinateSet:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randperm(batch_size * side**3, generator=generator)[:count].sort().values
    return CoordinateSet(coords_of_keys(keys, side), side, batch_size)


def plain_neighbors(coordinates: CoordinateSet) -> torch.Tensor:
    rows = {tuple(c): i for i, c in enumerate(coordinates.coords.tolist())}
    return torch.tensor(
        [
            [rows.get((b, x + i, y + j, z + k), -1) for i, j, k in product((-1, 0, 1), repeat=3)]
            for b, x, y, z in coordinates.coords.tolist()
        ]
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), side=st.sampled_from([3, 8, 20, 33]), count=st.integers(1, 300))
def test_neighbors_equal_a_plain_search(seed: int, side: int, count: int) -> None:
    coordinates = random_set(seed, side, min(count, 2 * side**3))
    expected = plain_neighbors(coordinates)
    assert torch.equal(coordinates.neighbors().long(), expected)
    assert torch.equal(coordinates._neighbors_by_search().long(), expected)
    assert torch.equal(coordinates._neighbors_by_cells().long(), expected)


def test_neighbors_of_subdivided_sets_need_no_search_and_are_right() -> None:
    fine = random_set(1, 12, 60).finer().finer()
    assert fine.side == 48
    assert torch.equal(fine.neighbors().long(), plain_neighbors(fine))


def test_children_are_adjacent_and_z_runs_fastest() -> None:
    fine = CoordinateSet(torch.tensor([[0, 1, 2, 3]]), 4).finer()
    assert fine.coords[:3].tolist() == [[0, 2, 4, 6], [0, 2, 4, 7], [0, 2, 5, 6]]
    cells, parent = fine.coarser()
    assert cells.coords.tolist() == [[0, 1, 2, 3]]
    assert parent.tolist() == [0] * 8


def test_coarser_cells_hold_exactly_their_voxels_and_are_sorted() -> None:
    coordinates = random_set(2, 16, 500)
    cells, parent = coordinates.coarser()
    assert cells.is_sorted
    expected = coordinates.coords.clone()
    expected[:, 1:] //= 2
    assert torch.equal(cells.coords[parent], expected)


@pytest.mark.parametrize(("size", "shift"), [(8, 0), (8, 4), (4, 2), (32, 0)])
def test_windows_partition_the_rows(size: int, shift: int) -> None:
    coordinates = random_set(3, 32, 900)
    windows = coordinates.windows(size, shift)
    seen = []
    for bucket in windows.buckets:
        real = torch.ones_like(bucket.rows, dtype=torch.bool) if bucket.real is None else bucket.real
        own = torch.arange(real.numel()) if bucket.own is None else bucket.own
        assert torch.equal(bucket.rows.flatten()[own], bucket.rows[real])
        for row, mask in zip(bucket.rows, real, strict=True):
            members = coordinates.coords[row[mask]]
            moved = torch.cat([members[:, :1], (members[:, 1:] + shift) // size], dim=1)
            assert len(torch.unique(moved, dim=0)) == 1
            seen.append(row[mask])
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(900))
    assert torch.equal(windows.order[windows.position], torch.arange(900))
    assert windows.bounds.diff().max() == windows.longest


@pytest.mark.parametrize(("side", "count"), [(4, 100), (40, 1000), (200, 50)])
def test_cells_are_marked_or_sorted_and_the_same(side: int, count: int) -> None:
    coordinates = random_set(5, side, count)
    keys = linear_keys(coordinates.coords // torch.tensor([1, 2, 2, 2]), side // 2)
    different, place = torch.unique(keys, return_inverse=True)
    cells, parent = coordinates.coarser()
    assert torch.equal(cells.keys, different)
    assert torch.equal(parent, place)


def test_keys_invert() -> None:
    coordinates = random_set(4, 20, 100)
    assert torch.equal(coords_of_keys(linear_keys(coordinates.coords, 20), 20), coordinates.coords)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ([[0, 0, 0, 4]], "0..3"),
        ([[0, -1, 0, 0]], "0..3"),
        ([[1, 0, 0, 0], [0, 0, 0, 0]], "ascending"),
        ([], "shape"),
    ],
)
def test_wrong_coordinates_are_refused(coords: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoordinateSet(torch.tensor(coords), 4)
