"""Batched, padded and vectorised, the model says what its plain, slow twin says: logits, loss and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import slow_twin as twin
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D

ANSWERS = ["a red robot.", "no"]
LAYOUTS = {
    "in front": ([["hi"], ["a longer prompt here"]], [4, 17]),
    "one a row": ([[None, "hi"], [None, "a longer prompt here"]], [17, 4]),
    "several": ([[None, "or ", None, None, "?"], ["this: ", None]], [6, 9, 1, 14]),
}


@pytest.fixture
def build(build):
    def make(**settings):
        branch = build(**settings)
        torch.nn.init.normal_(branch.projector.output_gain, std=0.1)
        return branch

    return make


def chats(prompts):
    """The product's form of prompts written as lists of text and objects."""
    return [
        [{"role": "user", "content": [{"type": "3d"} if p is None else {"type": "text", "text": p} for p in parts]}]
        for parts in prompts
    ]


def check(branch, tokenizer, prompts, answers, feats, coords, side="right"):
    """Compare a batch with the twin's samples."""
    inputs = Processor3D(tokenizer)(chats(prompts), answers, objects=0, padding_side=side)
    outputs = branch(**inputs, feats_3d=feats, coords_3d=coords)

    how = twin.Settings(max_tokens=branch.max_3d_tokens, mode=branch.truncate_mode, positions=branch.positions)
    shapes, results = twin.shapes_of(feats, coords), []
    in_front = not any(None in parts for parts in prompts)
    for parts, answer in zip(prompts, answers, strict=True):
        mine = shapes[: 1 if in_front else parts.count(None)]
        shapes = shapes[len(mine) :]
        results.append(twin.run(branch, *twin.write_chat(tokenizer, parts, answer), mine, how))
    assert not shapes
    assert outputs.logits.shape[1] == max(len(logits) for logits, _ in results)
    twin.compare(outputs, results, branch.projector)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_3d_tokens", [0, 6, 1000])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("merge", [1, 2, 4])
def test_every_layout_merge_padding_and_budget(build, tokenizer, make_codes, layout, max_3d_tokens, side, merge):
    prompts, sizes = LAYOUTS[layout]
    branch = build(merge=merge, max_3d_tokens=max_3d_tokens)
    check(branch, tokenizer, prompts, ANSWERS, *make_codes(sizes), side)


@pytest.mark.parametrize("positions", ["mrope", "sequential"])
@pytest.mark.parametrize("truncate_mode", ["pool", "head"])
@pytest.mark.parametrize("max_3d_tokens", [-1, 7, 1000])
def test_every_way_over_budget_and_every_kind_of_position(
    build, tokenizer, make_codes, positions, truncate_mode, max_3d_tokens
):
    prompts, sizes = LAYOUTS["several"]
    branch = build(
        merge=2,
        max_3d_tokens=max_3d_tokens,
        truncate_mode=truncate_mode,
        positions=positions,
        use_3d_pos=True,
        projector_num_layers=3,
    )
    check(branch, tokenizer, prompts, ANSWERS, *make_codes(sizes))


@pytest.mark.parametrize("side", ["left", "right"])
def test_plain_text_that_is_its_own_label(build, tokenizer, make_codes, side):
    """The plainest use: no chat, every token supervised, the object in front."""
    branch = build(max_3d_tokens=6)
    feats, coords = make_codes([4, 17, 2])
    text = tokenizer(["A shape.", "Another shape, red.", "x"], padding=True, padding_side=side, return_tensors="pt")
    ids, mask = text["input_ids"], text["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    outputs = branch.forward_with_3d(
        input_ids=ids, attention_mask=mask, labels=labels, feats_3d=feats, coords_3d=coords
    )
    results = []
    for row, shape in enumerate(twin.shapes_of(feats, coords)):
        own = ids[row][mask[row].bool()].tolist()
        results.append(twin.run(branch, own, own, [shape], twin.Settings(max_tokens=6)))
        torch.testing.assert_close(outputs.logits[row, : len(results[row][0])], results[row][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs["loss"], twin.loss(results), rtol=1e-5, atol=1e-6)


PARTS = st.lists(st.sampled_from([None, None, "a chair", "is it red?\n", "one"]), min_size=0, max_size=5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_any_batch(tokenizer, make_codes, vl_models, kind, data):
    prompts = data.draw(st.lists(PARTS, min_size=1, max_size=4))
    count = sum(parts.count(None) for parts in prompts)
    if count == 0:
        prompts[0].append(None)
        count = 1
    sizes = data.draw(st.lists(st.integers(1, 25), min_size=count, max_size=count))
    torch.manual_seed(0)
    branch = Qwen3VLWith3DBranch(
        use_vl_model=vl_models[kind],
        latent_dim=8,
        projector_num_layers=data.draw(st.integers(1, 2)),
        merge=data.draw(st.sampled_from([1, 2, 4])),
        max_3d_tokens=data.draw(st.integers(-1, 30)),
        truncate_mode=data.draw(st.sampled_from(["pool", "head"])),
        positions=data.draw(st.sampled_from(["mrope", "sequential"])),
        use_3d_pos=data.draw(st.booleans()),
    ).eval()
    answers = data.draw(
        st.lists(st.sampled_from(["yes", "a red robot."]), min_size=len(prompts), max_size=len(prompts))
    )
    side = data.draw(st.sampled_from(["left", "right"]))
    check(branch, tokenizer, prompts, answers, *make_codes(sizes), side)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_merged_sequence_may_be_padded_on_either_side(build, tokenizer, make_codes, side):
    prompts, sizes = LAYOUTS["several"]
    branch = build(merge=2)
    feats, coords = make_codes(sizes)
    inputs = Processor3D(tokenizer)(chats(prompts))
    merged = branch.build_inputs(**inputs, feats_3d=feats, coords_3d=coords, padding_side=side)
    with torch.no_grad():
        logits = branch.vl_model(**merged.model_kwargs()).logits
        shapes = twin.shapes_of(feats, coords)
        alone = [
            twin.run(branch, *twin.write_chat(tokenizer, parts), mine, twin.Settings(max_tokens=2048))[0]
            for parts, mine in zip(prompts, [shapes[:3], shapes[3:]], strict=True)
        ]
    assert len(alone[0]) != len(alone[1])
    for row, expected in enumerate(alone):
        real = merged.attention_mask[row].bool()
        assert real[-1 if side == "left" else 0]
        torch.testing.assert_close(logits[row][real], expected, rtol=1e-4, atol=1e-4)
