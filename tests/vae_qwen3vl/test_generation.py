"""Generation with a cache says what full forwards say."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.language.backbone import kept_cache
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import DEFAULT_PROMPT, Processor3D

PROMPTS = ["hi", "a longer prompt here", "and one more?"]
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture
def vl_model(vl_model):
    """A model that goes on speaking."""
    vl_model.generation_config.eos_token_id = None
    return vl_model


def full_forward_logits(model, inputs, new, feats, coords):
    """Return `[B, new, V]`: what one uncached forward over prompt and continuation predicts at each new token."""
    rows = []
    for row in range(len(new)):
        real = inputs["attention_mask"][row].bool()
        ids = torch.cat([inputs["input_ids"][row][real], new[row]])[None]
        mine = coords[:, 0] == row
        alone = coords[mine].clone()
        alone[:, 0] = 0
        with torch.no_grad():
            rows.append(model(ids, feats_3d=feats[mine], coords_3d=alone).logits[0, -len(new[row]) - 1 : -1])
    return torch.stack(rows)


@pytest.mark.parametrize("positions", ["mrope", "sequential"])
@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("objects", [0, 1], ids=["plain ids", "placeholders"])
def test_cached_generation_equals_full_forwards(build, processor, make_codes, positions, cache, objects):
    model = build(positions=positions)
    inputs = processor(PROMPTS, objects=objects)
    feats, coords = make_codes([40, 3, 17])
    out = model.generate(
        **inputs,
        feats_3d=feats,
        coords_3d=coords,
        max_new_tokens=12,
        cache_implementation=cache,
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    assert out.sequences.shape == (3, 12)
    full = full_forward_logits(model, inputs, out.sequences, feats, coords)
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, rtol=0, atol=1e-4)
    assert torch.equal(full.argmax(-1), out.sequences)


def test_cached_generation_equals_uncached(build, processor, make_codes):
    model = build(merge=2, max_3d_tokens=10)
    feats, coords = make_codes([90, 3, 17])
    inputs = {**processor(PROMPTS), "feats_3d": feats, "coords_3d": coords, "max_new_tokens": 8, **GREEDY}
    assert torch.equal(model.generate(**inputs), model.generate(**inputs, use_cache=False))


def test_a_batch_generates_what_its_samples_generate_alone(build, vae, processor, make_batch):
    model = build(vae)
    batch = make_batch([60, 9, 30])
    together = model.generate(**processor(PROMPTS), inputs_3d=batch, max_new_tokens=8, **GREEDY)
    for row, prompt in enumerate(PROMPTS):
        mine = batch["batch_idx"] == row
        single = {key: value[mine] for key, value in batch.items()}
        single["batch_idx"] = torch.zeros_like(single["batch_idx"])
        alone = model.generate(**processor(prompt), inputs_3d=single, max_new_tokens=8, **GREEDY)
        assert torch.equal(alone[0], together[row])


def test_beams_equal_those_of_each_sample_and_score_what_full_forwards_say(build, processor, make_codes):
    model = build()
    feats, coords = make_codes([20, 5])
    inputs = processor(PROMPTS[:2])
    search = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, **GREEDY}
    more = {"return_dict_in_generate": True, "output_scores": True}
    together = model.generate(**inputs, feats_3d=feats, coords_3d=coords, **search, **more)
    assert together.sequences.shape == (4, 6)
    for row in range(2):
        mine = coords[:, 0] == row
        single = coords[mine] * torch.tensor([0, 1, 1, 1])
        alone = model.generate(**processor(PROMPTS[row]), feats_3d=feats[mine], coords_3d=single, **search)
        assert torch.equal(together.sequences[2 * row : 2 * row + 2], alone)
    for beam in range(2):
        new = together.sequences[beam::2]
        full = full_forward_logits(model, inputs, new, feats, coords).log_softmax(-1)  # [B, new, V]
        picked = full.gather(2, new[..., None]).sum((1, 2)) / 6
        torch.testing.assert_close(together.sequences_scores[beam::2], picked, rtol=1e-4, atol=1e-4)


def test_seeded_sampling_draws_from_what_full_forwards_say(build, processor, make_codes):
    model = build()
    feats, coords = make_codes([20, 5])
    inputs = processor(PROMPTS[:2])
    draw = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(11)
    drawn = model.generate(**inputs, feats_3d=feats, coords_3d=coords, max_new_tokens=8, **draw)
    torch.manual_seed(11)
    new = torch.zeros((2, 0), dtype=torch.long)
    for _ in range(8):
        more = torch.cat([new, torch.zeros((2, 1), dtype=torch.long)], dim=1)  # what is predicted after `new`
        full = full_forward_logits(model, inputs, more, feats, coords)[:, -1]
        new = torch.cat([new, torch.multinomial((full / 0.7).softmax(-1), 1)], dim=1)
    assert torch.equal(drawn, new)
    assert len(set(drawn.flatten().tolist())) > 4
    several = model.generate(
        **inputs, feats_3d=feats, coords_3d=coords, max_new_tokens=3, num_return_sequences=2, **draw
    )
    assert several.shape == (4, 3)


TURNS = {
    "one row, another object in each turn": (["What is it?"], [1, 2, 3]),
    "rows of unequal length": (["hi", "a longer prompt here"], [2, 2, 2]),
}


@pytest.mark.parametrize("positions", ["mrope", "sequential"])
@pytest.mark.parametrize("case", TURNS)
def test_later_turns_on_the_kept_cache_equal_a_full_recompute(build, processor, make_codes, positions, case):
    prompts, objects = TURNS[case]
    model = build(positions=positions, merge=2, max_3d_tokens=12)
    first = processor(prompts)
    ids, mask, past = first["input_ids"], first["attention_mask"], None
    more = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True, **GREEDY}
    all_feats, all_coords = make_codes([25, 9, 3])
    for number in range(3):
        shown = all_coords[:, 0] < objects[number]
        shapes = {"feats_3d": all_feats[shown], "coords_3d": all_coords[shown]}
        given = {"input_ids": ids, "attention_mask": mask, **shapes, **more}
        fresh = model.generate(**given)
        known = past.get_seq_length() if past is not None else 0
        read = []
        hook = model.vl_model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs, read=read: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        out = model.generate(**given, past_key_values=past)
        hook.remove()
        assert read == [kept_cache(fresh).get_seq_length() - 4 - known, 1, 1, 1, 1]  # only what is new
        assert torch.equal(out.sequences, fresh.sequences)
        torch.testing.assert_close(torch.stack(out.logits), torch.stack(fresh.logits), rtol=0, atol=1e-4)
        past = kept_cache(out)
        turn = [2, 1, *processor.encode_text("user\nAnd this?"), 2, 1, *processor.encode_text("assistant\n")]
        if objects[min(number + 1, 2)] > objects[number]:
            turn.insert(3, -200)
        new = torch.cat([out.sequences, torch.tensor([turn] * len(prompts))], dim=1)
        ids, mask = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)


def test_positions_change_the_answer_so_the_test_above_can_fail(build, processor, make_codes):
    model = build()
    feats, coords = make_codes([40])
    inputs = model.build_inputs(**processor("hi"), feats_3d=feats, coords_3d=coords, padding_side="left")
    with torch.no_grad():
        right = model.vl_model(**inputs.model_kwargs()).logits[0, -1]
        lost = model.vl_model(inputs_embeds=inputs.inputs_embeds, attention_mask=inputs.attention_mask).logits[0, -1]
    assert (right - lost).abs().max() > 1e-2


def test_describe_answers_each_object(build, vae, processor, make_batch):
    model = build(vae)
    batch = make_batch([60, 9])
    answers = model.describe(batch, processor=processor, max_new_tokens=4)
    assert len(answers) == 2 and all(isinstance(answer, str) for answer in answers)
    expected = model.generate(**processor([DEFAULT_PROMPT] * 2), inputs_3d=batch, max_new_tokens=4, do_sample=False)
    assert answers == processor.decode(expected)
    with pytest.raises(ValueError, match="3 prompts for 2 objects"):
        model.describe(batch, prompt=PROMPTS, processor=processor)
    with pytest.raises(ValueError, match="needs a shape"):
        model.describe(processor=processor)


def test_generate_without_ids_passes_all_else_through(build):
    model = build()
    embeds = model.vl_model.get_input_embeddings()(torch.tensor([[1, 2, 7, 8, 9]]))
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    more = {"max_new_tokens": 3, "output_logits": True, "return_dict_in_generate": True, **GREEDY}
    ours = model.generate(inputs_embeds=embeds, attention_mask=mask, **more)
    theirs = model.vl_model.generate(inputs_embeds=embeds, attention_mask=mask, **more)
    unmasked = model.vl_model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(mask), **more)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))
    assert not torch.allclose(torch.stack(ours.logits), torch.stack(unmasked.logits), atol=1e-3)


@pytest.mark.slow
def test_the_default_language_model_generates_what_full_forwards_say(make_codes):
    from vae_qwen3vl.language.default_model import default_lm_folder

    folder = default_lm_folder()
    if folder is None:
        pytest.skip("the default language model is not on this machine")
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(folder, latent_dim=8).eval()
    processor = Processor3D.from_pretrained(folder)
    plain = model.generate(
        **processor("What is the capital of France?", objects=0), max_new_tokens=8, do_sample=False
    )
    assert "Paris" in processor.decode(plain)[0]

    inputs = processor(["What is it?", "And this object, what could it be?"])
    feats, coords = make_codes([60, 9])
    out = model.generate(
        **inputs,
        feats_3d=feats,
        coords_3d=coords,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_logits=True,
        **GREEDY,
    )
    full = full_forward_logits(model, inputs, out.sequences, feats, coords)
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, rtol=0, atol=5e-3)
