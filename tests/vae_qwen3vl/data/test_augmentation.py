import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vae_qwen3vl.data.augmentation import CodeAugmentation, turned

SIDE = 32
QUIET = settings(deadline=None)


@st.composite
def cells(draw):
    numbers = draw(st.sets(st.integers(0, SIDE**3 - 1), min_size=1, max_size=60))
    keys = torch.tensor(sorted(numbers))
    return torch.stack([keys // SIDE**2, keys // SIDE % SIDE, keys % SIDE], 1).int()


@QUIET
@given(cells(), st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3))
def test_turned_cells_lie_in_the_grid_once_each_in_order(coords, angles):
    found, first = turned(coords, torch.tensor(angles), SIDE)
    assert found.dtype == coords.dtype and len(found) == len(first) >= 1
    assert int(found.min()) >= 0
    assert int(found.max()) < SIDE
    assert torch.equal(found, torch.unique(found, dim=0)) and len(first.unique()) == len(first)


@QUIET
@given(cells())
def test_no_turn_leaves_cells_as_they_are(coords):
    found, first = turned(coords, torch.zeros(3), SIDE)
    assert torch.equal(found, coords) and torch.equal(first, torch.arange(len(coords)))


@QUIET
@given(cells())
def test_half_a_turn_mirrors_two_axes_within_the_bounding_box(coords):
    found, first = turned(coords, torch.tensor([0, 0, math.pi]), SIDE)
    mirrored = coords.clone()
    mirrored[:, :2] = coords[:, :2].amin(0) + coords[:, :2].amax(0) - coords[:, :2]
    assert torch.equal(found, mirrored[first])


def test_a_small_turn_moves_a_far_cell_along_the_arc():
    line = torch.stack([torch.arange(21) + 5, torch.full((21,), 15), torch.full((21,), 15)], 1)
    for axis, place in (([0, 0, 1], (0, 3)), ([0, -1, 0], (0, 0, 3))):
        found, first = turned(line, torch.tensor(axis) * math.asin(0.3), SIDE)
        tip = found[first == 20][0] - torch.tensor([15, 15, 15])
        assert tip.tolist() == [round(10 * math.cos(math.asin(0.3))), *place[1:], *[0] * (3 - len(place))]


def test_what_no_longer_fits_is_made_smaller_as_a_whole():
    diagonal = torch.tensor([[0, 0, 0], [8, 8, 0], [31, 31, 0]])
    found, first = turned(diagonal, torch.tensor([0, 0, math.pi / 4]), SIDE)
    assert dict(zip(first.tolist(), found[:, 1].tolist(), strict=True)) == {0: 0, 1: 8, 2: 31}
    assert set(found[:, 0].tolist()) <= {15, 16}


def test_what_sticks_out_is_moved_in_as_a_whole():
    column = torch.tensor([[31, 0, 0], [31, 5, 0], [31, 10, 0]])
    found, first = turned(column, torch.tensor([0, 0, math.pi / 2]), SIDE)
    assert dict(zip(first.tolist(), found.tolist(), strict=True)) == {0: [31, 5, 0], 1: [26, 5, 0], 2: [21, 5, 0]}


def test_of_cells_that_come_together_the_first_stays():
    pair = torch.tensor([[0, 0, 0], [10, 10, 10], [10, 11, 10], [31, 31, 31]])
    for number in range(200):
        found, first = turned(pair, torch.tensor([math.radians(number), 0.3, 0.7]), SIDE)
        if len(found) == 3:
            assert 2 not in first.tolist()
            return
    pytest.fail("no turn brings the two together")


def test_cells_of_a_narrow_type_turn_about_the_same_middle():
    wide = torch.tensor([[100, 100, 100], [200, 180, 150]])
    for dtype in (torch.uint8, torch.int16, torch.int64):
        found, _ = turned(wide.to(dtype), torch.tensor([0, 0, math.pi]), 256)
        assert found.tolist() == [[100, 100, 150], [200, 180, 100]]
        assert found.dtype == dtype


def test_a_grid_of_one_cell_has_one():
    assert turned(torch.zeros(1, 3, dtype=torch.int32), torch.ones(3), 1)[0].tolist() == [[0, 0, 0]]


def test_codes_go_with_their_cells():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randperm(SIDE**3, generator=generator)[:500].sort().values
    coords = torch.stack([keys // SIDE**2, keys // SIDE % SIDE, keys % SIDE], 1)
    found, cells_found = CodeAugmentation(turn_degrees=40)(torch.arange(500), coords, SIDE, lambda _: 77 << 8)
    angles = torch.randn(3, generator=torch.Generator().manual_seed(77 << 7)) * math.radians(40)
    expected, first = turned(coords, angles, SIDE)
    assert torch.equal(found, first) and torch.equal(cells_found, expected)
    assert len(first) < 500 and not torch.equal(first, torch.arange(len(first)))
    same = CodeAugmentation(turn_degrees=40)(torch.arange(500), coords, SIDE, lambda _: 77 << 8, turn=False)
    assert torch.equal(same[1], coords)


def test_angles_about_each_axis_have_the_deviation_that_is_asked_for():
    line = torch.stack([torch.arange(31), torch.full((31,), 15), torch.full((31,), 15)], 1)
    upright = line[:, [1, 0, 2]]
    turn, found = CodeAugmentation(turn_degrees=8), []
    for number in range(500):
        tips = []
        for cells_of in (line, upright):
            codes, coords = turn(torch.arange(31), cells_of, SIDE, lambda _, number=number: number << 8)
            ends = coords[codes == 30] - coords[codes == 0]
            tips.append(ends[0].float() / 30 if len(ends) else None)
        if tips[0] is not None and tips[1] is not None:  # both ends are the first in their cells
            found.append([float(tips[0][1]), float(tips[0][2]), float(tips[1][2])])
    slopes = torch.tensor(found)  # about z, y and x
    assert len(slopes) > 300
    assert [math.degrees(value) for value in slopes.std(0)] == pytest.approx([8, 8, 8], abs=1.2)
    kurtosis = ((slopes - slopes.mean(0)) / slopes.std(0)).pow(4).mean(0)
    assert (kurtosis > 2.2).all()  # 1.8 were they uniform


def test_what_makes_no_sense_is_refused():
    for told in ({"drop_cells": 2.0}, {"drop_cells": math.nan}, {"turn_degrees": -8.0}, {"turn_degrees": math.inf}):
        with pytest.raises(ValueError, match=f"{next(iter(told))} must be"):
            CodeAugmentation(**told)
    for shift in (-1, 1.5):
        with pytest.raises(ValueError, match="shift_cells must be an integer"):
            CodeAugmentation(shift_cells=shift)


def test_an_augmentation_of_nothing_changes_nothing():
    codes, coords = torch.arange(4), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 5, 1], [3, 0, 0]])
    same = CodeAugmentation()(codes, coords, SIDE, hash)
    assert same[0] is codes and same[1] is coords
    none = CodeAugmentation(drop_cells=0.5, turn_degrees=8, shift_cells=2)(codes[:0], coords[:0], SIDE, hash)
    assert len(none[0]) == len(none[1]) == 0
