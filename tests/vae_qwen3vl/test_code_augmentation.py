import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from vae_qwen3vl.code_augmentation import CodeAugmentation, turned

SIDE = 32


@st.composite
def cells(draw):
    numbers = draw(st.sets(st.integers(0, SIDE**3 - 1), min_size=1, max_size=60))
    keys = torch.tensor(sorted(numbers))
    return torch.stack([keys // SIDE**2, keys // SIDE % SIDE, keys % SIDE], 1).int()


@given(cells(), st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3))
def test_turned_cells_lie_in_the_grid_once_each_and_say_where_they_come_from(coords, angles):
    found, first = turned(coords, torch.tensor(angles), SIDE)
    assert found.dtype == coords.dtype and len(found) == len(first) >= 1
    assert int(found.min()) >= 0
    assert int(found.max()) < SIDE
    assert len(torch.unique(found, dim=0)) == len(found) and len(first.unique()) == len(first)
    for row, other in enumerate(torch.unique(found, dim=0)):
        assert torch.equal(found[row], other)  # x slowest


@given(cells())
def test_no_turn_leaves_cells_as_they_are(coords):
    found, first = turned(coords, torch.zeros(3), SIDE)
    assert torch.equal(found, coords) and torch.equal(first, torch.arange(len(coords)))


@given(cells())
def test_half_a_turn_mirrors_two_axes_within_the_bounding_box(coords):
    found, first = turned(coords, torch.tensor([0, 0, math.pi]), SIDE)
    mirrored = coords.clone()
    mirrored[:, :2] = coords[:, :2].amin(0) + coords[:, :2].amax(0) - coords[:, :2]
    assert torch.equal(found, mirrored[first])


def test_a_small_turn_moves_a_far_cell_along_the_arc():
    line = torch.stack([torch.arange(21) + 5, torch.full((21,), 15), torch.full((21,), 15)], 1)
    found, first = turned(line, torch.tensor([0, 0, math.asin(0.3)]), SIDE)
    tip = found[first == 20][0]
    assert tip.tolist() == [15 + round(10 * math.cos(math.asin(0.3))), 18, 15]


def test_what_no_longer_fits_is_made_smaller():
    ends = torch.tensor([[0, 0, 0], [31, 31, 0]])
    found, _ = turned(ends, torch.tensor([0, 0, math.pi / 4]), SIDE)
    assert sorted(found[:, 1].tolist()) == [0, 31] and set(found[:, 0].tolist()) <= {15, 16}


def test_angles_have_the_deviation_that_is_asked_for():
    line = torch.stack([torch.arange(31), torch.full((31,), 15), torch.full((31,), 15)], 1)
    turn = CodeAugmentation(turn_degrees=8)
    heights = []
    for number in range(400):
        codes, coords = turn(torch.arange(31), line, SIDE, lambda _, number=number: number << 8)
        ends = coords[codes == 30] - coords[codes == 0]
        if len(ends) == 1:
            heights.append(float(ends[0, 1]) / 30)
    assert math.degrees(torch.tensor(heights).std()) == pytest.approx(8, abs=1.2)


def test_an_augmentation_of_nothing_changes_nothing():
    codes, coords = torch.arange(4), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 5, 1], [3, 0, 0]])
    same = CodeAugmentation()(codes, coords, SIDE, hash)
    assert same[0] is codes and same[1] is coords
