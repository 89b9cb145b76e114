"""The same seed draws the same object, what is known stays, and a network that has learned draws what it saw."""

from __future__ import annotations

import pytest
import torch

import tiny_generator as tiny
from vae_qwen3vl.creation.config import Sampling
from vae_qwen3vl.creation.drawing import draw_shape, fill
from vae_qwen3vl.creation.known import KnownShape, all_but_blocks, box_region, read_box
from vae_qwen3vl.creation.networks import MASKED
from vae_qwen3vl.creation.octree import dense


@pytest.fixture(scope="module")
def learned():
    """A generator that has seen three objects often; and how its losses fell."""
    model = tiny.generator(where_blocks=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    batch, losses = tiny.batch(*[0, 1, 2] * 3), []
    torch.manual_seed(0)
    for _ in range(150):
        parts = model(batch)
        loss = parts["where"] + parts["what"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def test_a_generator_learns_a_few_objects_and_draws_them_by_their_words(learned):
    model, losses = learned
    assert sum(losses[-20:]) < sum(losses[:20]) / 2
    for number in range(3):
        codes, cells = draw_shape(
            model, tiny.batch(number).given, seed=1, sampling=Sampling(guidance=1.0, temperature=0.0, order_noise=0.0)
        )
        own_codes, own_cells = tiny.an_object(number)
        assert torch.equal(cells, own_cells)
        assert (codes == own_codes).float().mean() > 0.8
    bound, other = (model.code_length(tiny.batch(n), torch.Generator().manual_seed(0)) for n in (1, 4))
    assert bound["where"] < other["where"]  # which it has never seen


def test_the_same_seed_draws_the_same_object_and_another_seed_another_one():
    model, given = tiny.generator(), tiny.batch(1).given
    first, again, other = (draw_shape(model, given, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[1].shape != other[1].shape or not torch.equal(first[1], other[1])


@pytest.mark.parametrize("box", ["left", "bottom", "front", "0,0,0,1,0.6,0.5"])
def test_what_is_known_stays_exactly(box):
    """A network of random weights draws nonsense, but inside the box the object is what it was, cells and codes."""
    model = tiny.generator()
    codes, cells = tiny.an_object(4)
    region = box_region(read_box(box), cells, tiny.SIDE)
    known = KnownShape.inside(region, codes, cells)
    drawn, places = draw_shape(model, tiny.batch(4).given, seed=0, known=known)
    assert torch.equal(dense(places, tiny.SIDE) & region, dense(cells, tiny.SIDE) & region)
    found, expected = (
        {tuple(c): int(v) for c, v in zip(p.tolist(), values, strict=True) if region[tuple(c)]}
        for p, values in ((places, drawn), (cells, codes))
    )
    assert found == expected
    assert len(found) > 0
    assert len(drawn) > len(found)  # and more than that was drawn


def test_an_object_of_which_all_is_known_comes_back_as_it_was():
    codes, cells = tiny.an_object(2)
    known = KnownShape.inside(torch.ones([tiny.SIDE] * 3, dtype=torch.bool), codes, cells)
    drawn = draw_shape(tiny.generator(), tiny.batch(2).given, seed=0, known=known)
    assert torch.equal(drawn[0], codes)
    assert torch.equal(drawn[1], cells)


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_filling_ends_with_nothing_masked_in_as_many_steps_as_asked(steps):
    calls = []

    def predict(values, masked):
        calls.append(int(masked.sum()))
        assert torch.equal(values == MASKED, masked)
        return torch.zeros(calls[-1], 7)

    values = torch.where(torch.arange(30) % 3 == 0, torch.arange(30), MASKED)
    filled = fill(values, predict, Sampling(steps=steps), torch.Generator().manual_seed(0))
    kept = values != MASKED
    assert torch.equal(filled[kept], values[kept])
    assert ((filled[~kept] >= 0) & (filled[~kept] < 7)).all()
    assert calls[0] == 20
    assert len(calls) == min(steps, 20)
    assert calls == sorted(calls, reverse=True)


def test_boxes_are_halves_or_six_numbers():
    assert read_box("top") == (0, 0.5, 0, 1, 1, 1)
    assert read_box("0,0,0,1,.5,1") == read_box("bottom")
    for text in ("upper", "0,0,0,1,1", "0,0,0,1,0,1", "a,b,c,d,e,f"):
        with pytest.raises(ValueError, match="a box is one of"):
            read_box(text)


def test_blocks_are_taken_from_where_the_object_is():
    _, cells = tiny.an_object(4)
    kept = all_but_blocks(cells, 0.3, tiny.SIDE, seed=1)
    gone = (~kept[tuple(cells.T)]).sum()
    assert 0 < gone < len(cells)
    assert torch.equal(kept, all_but_blocks(cells, 0.3, tiny.SIDE, seed=1))
    assert not all_but_blocks(cells, 1.0, tiny.SIDE, seed=1)[tuple(cells.T)].any()
