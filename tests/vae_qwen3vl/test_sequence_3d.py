"""Order, padding, grouping and pooling of 3D tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vae_qwen3vl.sequence_3d import (
    coarse_occupancy,
    group_blocks,
    keep_head,
    object_counts,
    pool_to_budget,
    prepare_3d_sequence,
    prepare_3d_sequence_batched,
)


def zyx_order(coords):
    return sorted(range(len(coords)), key=lambda row: (coords[row][0], *reversed(coords[row][1:])))


def test_rows_are_sorted_by_batch_z_y_x_and_padded_to_exactly_max_tokens(make_codes):
    feats, coords = make_codes([20, 13])
    order = zyx_order(coords.tolist())
    out, mask, places = prepare_3d_sequence(feats, coords, max_3d_tokens=50, pad_value=-7.0)
    assert out.shape == (50, 8) and mask.shape == (50,) and places.shape == (50, 4)
    assert mask.dtype == torch.bool and mask.sum() == 33 and mask[:33].all()
    assert torch.equal(out[:33], feats[order]) and torch.equal(places[:33], coords[order])
    assert (out[33:] == -7).all() and (places[33:] == 0).all()


def test_too_many_rows_lose_the_tail_in_head_mode_and_nothing_in_none_mode(make_codes):
    feats, coords = make_codes([40])
    order = zyx_order(coords.tolist())
    out, mask, _ = prepare_3d_sequence(feats, coords, max_3d_tokens=16)
    assert torch.equal(out, feats[order[:16]]) and mask.all()
    out, mask, _ = prepare_3d_sequence(feats, coords, max_3d_tokens=16, truncate_mode="none")
    assert torch.equal(out, feats[order]) and mask.all()


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_zero_or_less_keeps_everything_and_pads_nothing(make_codes, limit):
    feats, coords = make_codes([40, 7])
    order = zyx_order(coords.tolist())
    out, mask, places = prepare_3d_sequence(feats, coords, max_3d_tokens=limit)
    assert torch.equal(out, feats[order]) and torch.equal(places, coords[order]) and mask.all()
    _, mask, _ = prepare_3d_sequence_batched(feats, coords, 2, max_3d_tokens=limit)
    assert mask.shape == (2, 40) and mask.sum(1).tolist() == [40, 7]
    rows, blocks = group_blocks(feats, coords, 1)
    assert len(pool_to_budget(rows, blocks, limit)[0]) == len(keep_head(rows, blocks, limit)[0]) == 47


def test_unsorted_preparation_keeps_the_given_order(make_codes):
    feats, coords = make_codes([9])
    out, _, places = prepare_3d_sequence(feats, coords, max_3d_tokens=12, sort=False)
    assert torch.equal(out[:9], feats) and torch.equal(places[:9], coords)


@pytest.mark.parametrize("limit", [0, 5, 40])
@pytest.mark.parametrize("sort", [True, False])
def test_a_batch_equals_its_samples_one_by_one(make_codes, limit, sort):
    feats, coords = make_codes([20, 3, 11])
    out, mask, places = prepare_3d_sequence_batched(feats, coords, 3, max_3d_tokens=limit, sort=sort)
    assert out.shape[:2] == mask.shape == places.shape[:2] == (3, limit or 20)
    for number in range(3):
        mine = coords[:, 0] == number
        single, real, place = prepare_3d_sequence(feats[mine], coords[mine], out.shape[1], sort=sort)
        assert torch.equal(out[number], single)
        assert torch.equal(mask[number], real)
        assert torch.equal(places[number], place)


def test_an_object_without_rows_is_all_padding_and_an_unknown_id_is_an_error(make_codes):
    feats, coords = make_codes([4])
    _, mask, _ = prepare_3d_sequence_batched(feats, coords, 2, max_3d_tokens=6)
    assert mask.sum(1).tolist() == [4, 0]
    with pytest.raises(ValueError, match="batch id 0, but batch_size is 0"):
        prepare_3d_sequence_batched(feats, coords, 0)


@pytest.mark.parametrize("merge", [1, 2, 4])
def test_blocks_hold_each_cell_once_in_its_place(make_codes, merge):
    feats, coords = make_codes([50, 7])
    rows, blocks = group_blocks(feats, coords, merge)
    expected: dict[tuple[int, ...], torch.Tensor] = {}
    for feature, (batch, *xyz) in zip(feats, coords.tolist(), strict=True):
        block = (batch, *(value // merge for value in xyz))
        x, y, z = (value % merge for value in xyz)
        row = expected.setdefault(block, torch.zeros(merge**3 * 9))
        cell = (x * merge + y) * merge + z
        row[cell * 8 : cell * 8 + 8] = feature
        row[merge**3 * 8 + cell] = 1
    keys = list(expected)
    order = [keys[row] for row in zyx_order(keys)]
    assert blocks.tolist() == [list(block) for block in order]
    wanted = torch.stack([expected[block] for block in order])
    assert torch.equal(rows, wanted if merge > 1 else wanted[:, :8])


def test_a_cell_given_twice_is_an_error_that_names_it(make_codes):
    feats, coords = make_codes([5])
    twice = torch.cat([coords, coords[3:4]])
    with pytest.raises(ValueError, match="more than once") as error:
        group_blocks(torch.cat([feats, feats[:1]]), twice, 1)
    assert str(coords[3].tolist()) in str(error.value)


def test_pooling_keeps_the_whole_object_within_the_budget_and_leaves_small_ones_alone(make_codes):
    feats, coords = make_codes([300, 10])
    rows, blocks = group_blocks(feats, coords, 1)
    pooled, places = pool_to_budget(rows, blocks, 64)
    counts = torch.bincount(places[:, 0])
    assert 0 < counts[0] <= 64 and counts[1] == 10
    assert torch.equal(pooled[places[:, 0] == 1], rows[blocks[:, 0] == 1])
    big = blocks[:, 0] == 0
    shift = next(k for k in range(1, 6) if len((blocks[big][:, 1:] >> k).unique(dim=0)) <= 64)
    for row, place in zip(pooled[:5], places[:5], strict=True):
        members = big & (blocks[:, 1:] >> shift == place[1:] >> shift).all(1)
        torch.testing.assert_close(row, rows[members].mean(0))
    assert len(places.unique(dim=0)) == len(places)
    assert places[:, 1:].min() >= 0 and (places.amax(0) <= blocks.amax(0)).all()


@pytest.mark.parametrize("budget", [1, 2, 7, 299, 300, 301])
def test_any_budget_is_met(make_codes, budget):
    rows, blocks = group_blocks(*make_codes([300]), 1)
    assert 0 < len(pool_to_budget(rows, blocks, budget)[0]) <= budget
    assert len(keep_head(rows, blocks, budget)[0]) == min(budget, 300)


def test_an_object_without_rows_between_others_is_named():
    coords = torch.tensor([[0, 1, 1, 1], [2, 1, 1, 1], [2, 1, 1, 2], [4, 1, 1, 1], [4, 2, 1, 1]])
    with pytest.raises(ValueError, match=r"samples 0..4, but no codes for \[1, 3\]"):
        object_counts(coords)


def test_objects_are_counted_in_any_order_and_none_has_a_negative_number():
    coords = torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [2, 0, 0, 0], [1, 2, 0, 0]])
    assert object_counts(coords).tolist() == [1, 3, 1]
    assert object_counts(coords[:0]).tolist() == []
    with pytest.raises(ValueError, match="has id -1, but only 5 codes"):
        object_counts(coords - torch.tensor([1, 0, 0, 0]))


def test_preparation_stays_differentiable(make_codes):
    feats, coords = make_codes([6, 3])
    feats.requires_grad_()
    prepare_3d_sequence_batched(feats, coords, 2, max_3d_tokens=8)[0].sum().backward()
    assert torch.equal(feats.grad, torch.ones_like(feats))


def test_bad_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"\[M, 4\]"):
        prepare_3d_sequence(torch.zeros(3, 8), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="negative"):
        prepare_3d_sequence(torch.zeros(1, 8), torch.tensor([[0, -1, 0, 0]]))
    with pytest.raises(ValueError, match="latent grids end at"):
        prepare_3d_sequence(torch.zeros(1, 8), torch.tensor([[0, 1 << 20, 0, 0]]))
    with pytest.raises(ValueError, match="only 1 codes"):
        pool_to_budget(torch.zeros(1, 8), torch.tensor([[10**12, 0, 0, 0]]), 4)
    with pytest.raises(ValueError, match="'head' or 'none'"):
        prepare_3d_sequence(torch.zeros(1, 8), torch.zeros(1, 4), truncate_mode="tail")


@given(seed=st.integers(0, 99), step=st.tuples(*[st.integers(0, 9)] * 3), factor=st.sampled_from([1, 2]))
def test_coarse_occupancy_is_the_same_wherever_an_object_stands_and_on_a_finer_grid(seed, step, factor):
    cells = torch.randperm(16**3, generator=torch.Generator().manual_seed(seed))[:300]
    xyz = torch.stack([cells // 256, cells // 16 % 16, cells % 16], dim=1)
    fine = torch.cat([xyz * factor + torch.tensor(part) for part in itertools.product(range(factor), repeat=3)])
    one = coarse_occupancy(F.pad(xyz, (1, 0)), 8)
    other = coarse_occupancy(torch.cat([F.pad(xyz, (1, 0)), F.pad(fine + torch.tensor(step), (1, 0), value=1)]), 8)
    torch.testing.assert_close(other[:1], one)
    torch.testing.assert_close(other[1:], one)


def test_coarse_occupancy_by_hand():
    solid = torch.tensor(list(itertools.product(range(16), repeat=3)))
    torch.testing.assert_close(coarse_occupancy(F.pad(solid, (1, 0)), 4), torch.ones(1, 64))
    half = coarse_occupancy(F.pad(solid[solid[:, 0] < 8], (1, 0)), 4).view(4, 4, 4)  # in the middle of its cube
    assert half[:, 0, 0].tolist() == [0, 1, 1, 0]
    assert float(coarse_occupancy(torch.tensor([[0, 5, 5, 5]]), 8).sum()) == 1
    with pytest.raises(ValueError, match="has id 1, but only 1 codes"):
        coarse_occupancy(torch.tensor([[1, 0, 0, 0]]), 8)
