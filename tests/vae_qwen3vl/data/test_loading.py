"""Batches hold every object once an epoch, are of similar length, and are shared out fairly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_qwen3vl.data.loading import BucketSampler

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=300)


@given(lengths=LENGTHS, batch=st.integers(1, 9), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_every_object_is_seen_once_and_processes_keep_step(
    lengths: list[int], batch: int, world: int, epoch: int
) -> None:
    seen: list[int] = []
    for rank in range(world):
        sampler = BucketSampler(lengths, batch, seed=3, rank=rank, world_size=world)
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert {len(b) for b in batches} == {batch}
        seen += [i for b in batches for i in b]
    counts = torch.bincount(torch.tensor(seen), minlength=len(lengths))
    assert int(counts.min()) >= 1
    assert int(counts.sum()) - len(lengths) < batch * world


@given(lengths=LENGTHS, half=st.integers(1, 5))
def test_two_processes_see_together_what_one_sees(lengths: list[int], half: int) -> None:
    alone = [sorted(b) for b in BucketSampler(lengths, 2 * half, seed=1)]
    both = [BucketSampler(lengths, half, seed=1, rank=rank, world_size=2) for rank in (0, 1)]
    assert alone == [sorted(a + b) for a, b in zip(*both, strict=True)]


@given(st.integers(2, 60), st.integers(0, 40), st.integers(1, 30), st.integers(1, 4))
def test_of_a_limited_group_an_epoch_takes_so_many_and_all_have_their_turn(
    group: int, others: int, most: int, batch: int
) -> None:
    sampler = BucketSampler(range(1, group + others + 1), batch, limited=[(range(others, group + others), most)])
    most = min(most, group)
    turns = torch.zeros(group + others)
    for epoch in range(-(-group // most)):
        sampler.set_epoch(epoch)
        seen = torch.tensor([i for b in sampler for i in b])
        assert len(seen) == len(sampler) * batch
        assert int((seen.unique() >= others).sum()) == most
        assert len(seen.unique()) == others + most
        turns[seen.unique()] += 1
    assert int(turns.min()) >= 1


def test_limits_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        BucketSampler([1.0, 2.0], 1, limited=[([0, 1], 0)])


def test_an_epoch_goes_on_where_it_stopped_and_the_next_has_another_order() -> None:
    sampler = BucketSampler(range(1, 200), 4)
    whole = list(sampler)
    sampler.set_epoch(0, start=17)
    assert list(sampler) == whole[17:]
    sampler.set_epoch(1)
    assert list(sampler) != whole


def test_little_of_a_batch_is_padding() -> None:
    lengths = torch.randint(20, 513, (4000,), generator=torch.Generator().manual_seed(0))
    batches = torch.tensor(list(BucketSampler(lengths.tolist(), 16)))
    longest = lengths[batches].amax(1) * 16
    assert float(1 - lengths[batches].sum() / longest.sum()) < 0.03  # 46 % in random batches


@pytest.mark.parametrize(("batch", "rank", "world"), [(0, 0, 1), (1, 1, 1), (1, -1, 2)])
def test_impossible_shares_are_refused(batch: int, rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"process {rank} of {world} with batches of {batch}"):
        BucketSampler([1.0], batch, rank=rank, world_size=world)
