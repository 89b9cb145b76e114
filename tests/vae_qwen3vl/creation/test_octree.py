"""Bytes of a coarse-to-fine tree name the very cells they were made of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_qwen3vl.creation import octree
from vae_qwen3vl.creation.grids import ROOT, sides_of

SIDES = st.sampled_from([8, 16, 32])


@st.composite
def objects(draw):
    """Return a side and the cells of an object, in any order."""
    side = draw(SIDES)
    numbers = draw(st.lists(st.integers(0, side**3 - 1), min_size=1, max_size=60, unique=True))
    flat = torch.tensor(numbers)
    return side, torch.stack([flat // side**2, flat // side % side, flat % side], dim=1)


def sorted_rows(cells: torch.Tensor) -> list[list[int]]:
    return sorted(cells.tolist())


@settings(deadline=None, max_examples=60)
@given(objects())
def test_bytes_and_cells_are_the_same_said_twice(made):
    side, cells = made
    levels = octree.levels_of(cells, side)
    found = torch.cartesian_prod(*[torch.arange(ROOT)] * 3)
    for level in levels:
        assert torch.equal(level.cells, found)  # each level is asked at the cells that the one before names
        found = octree.children_of(found, level.bytes)
    assert found.tolist() == sorted_rows(cells)
    assert [level.side for level in levels] == sides_of(side)
    assert all((level.bytes > 0).all() for level in levels[1:])


@settings(deadline=None, max_examples=30)
@given(objects(), st.integers(0, 1000))
def test_what_is_known_of_an_object_allows_its_own_bytes_and_all_of_it_allows_nothing_else(made, seed):
    side, cells = made
    occupied = octree.dense(cells, side).long()
    hidden = torch.rand(occupied.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    for states, alone in ((occupied, True), (torch.where(hidden, octree.UNKNOWN, occupied), False)):
        fine = states
        for level in reversed(octree.levels_of(cells, side)):
            children = octree.by_parent(fine)[tuple(level.cells.T)]
            allowed = octree.allowed_bytes(children, root=level.side == ROOT)
            assert allowed.gather(1, level.bytes[:, None]).all()
            assert allowed.any(1).all()
            if alone:
                assert (allowed.sum(1) == 1).all()
            fine = octree.coarser_states(fine)


def test_another_grid_is_refused():
    for side in (4, 12, 33):
        with pytest.raises(ValueError, match="8, 16, 32"):
            sides_of(side)
