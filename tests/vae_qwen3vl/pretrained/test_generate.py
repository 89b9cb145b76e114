"""`generate` keeps transformers' conventions, and says what `Qwen3VLWith3DBranch` says."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from transformers import GenerationConfig, TextIteratorStreamer

from vae_qwen3vl.language.backbone import kept_cache
from vae_qwen3vl.pretrained import ShapeVLForConditionalGeneration

GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def model(request, saved):
    return ShapeVLForConditionalGeneration.from_pretrained(saved[request.param].folder)


@pytest.fixture
def inputs(shape_processor, ask, ball, box):
    return shape_processor([ask(ball, "What is it?"), ask(box, "and", ball, "?")])


def branch_inputs(model, inputs):
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": inputs["attention_mask"],
        "feats_3d": model.codebook[inputs["codes_3d"].long()],
        "coords_3d": inputs["coords_3d"],
    }


SEARCHES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.8, "num_return_sequences": 2},
}


@pytest.mark.parametrize("search", SEARCHES)
def test_the_prompt_comes_back_in_front_of_what_the_branch_says(model, inputs, search):
    more = {**GREEDY, **SEARCHES[search], "max_new_tokens": 5}
    several = more.get("num_return_sequences", 1)
    torch.manual_seed(3)
    out = model.generate(**inputs, **more)
    torch.manual_seed(3)
    expected = model.branch.generate(**branch_inputs(model, inputs), **more)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(out[:, width:], expected) and expected.shape == (2 * several, 5)
    assert torch.equal(out[:, :width], inputs["input_ids"].repeat_interleave(several, 0))
    torch.manual_seed(3)
    full = model.generate(**inputs, **more, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(full.sequences, out) and len(full.logits) == 5


def test_a_batch_says_what_its_chats_say_alone(model, shape_processor, ask, ball, box):
    chats = [ask("hello"), ask(box, "and", ball, "?"), ask(ball, "What is it?")]
    together = shape_processor(chats)
    out = model.generate(**together, max_new_tokens=6, **GREEDY)[:, together["input_ids"].shape[1] :]
    for row, chat in enumerate(chats):
        alone = shape_processor([chat])
        said = model.generate(**alone, max_new_tokens=6, **GREEDY)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(said[0], out[row])


def test_a_streamer_gets_the_words_as_they_come(model, shape_processor, ask, ball):
    inputs = shape_processor([ask(ball, "What is it?")])
    whole = model.generate(**inputs, max_new_tokens=8, **GREEDY)[0, inputs["input_ids"].shape[1] :]
    streamer = TextIteratorStreamer(shape_processor.tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=model.generate, kwargs={**inputs, "streamer": streamer, "max_new_tokens": 8, **GREEDY})
    thread.start()
    assert "".join(streamer) == shape_processor.tokenizer.decode(whole)
    thread.join()


def test_a_later_turn_on_the_kept_cache_equals_a_full_pass(model, shape_processor, ask, ball, box):
    inputs = dict(shape_processor([ask(ball, "What is it?")]))
    more = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True, **GREEDY}
    first = model.generate(**inputs, **more)
    turn = shape_processor([ask("And", box, "?")])["input_ids"]  # behind the system's turn comes the user's
    turn = turn[:, (turn[0] == 2).nonzero()[0, 0] :]
    ids = torch.cat([first.sequences, turn], dim=1)
    both = shape_processor([ask(ball, box)])
    later = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "codes_3d": both["codes_3d"],
        "coords_3d": both["coords_3d"],
    }
    fresh = model.generate(**later, **more)
    cached = model.generate(**later, **more, past_key_values=kept_cache(first))
    assert torch.equal(cached.sequences, fresh.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(fresh.logits), rtol=0, atol=1e-4)
    with torch.no_grad():
        full = model(
            **{**later, "input_ids": fresh.sequences, "attention_mask": torch.ones_like(fresh.sequences)}
        ).logits
    torch.testing.assert_close(torch.stack(fresh.logits, 1), full[:, -6:-1], rtol=0, atol=1e-4)


def test_the_generation_config_is_the_language_models(model, inputs):
    before = model.generation_config
    try:
        model.generation_config = GenerationConfig(max_new_tokens=2, eos_token_id=None, pad_token_id=0)
        assert model.branch.vl_model.get_base_model().generation_config is model.generation_config
        out = model.generate(**inputs, generation_config=model.generation_config)
        assert out.shape[1] == inputs["input_ids"].shape[1] + 2
    finally:
        model.generation_config = before


def test_hidden_states_stand_where_their_tokens_do(model, inputs):
    """As trl reads them: what follows each of `input_ids` is predicted from the state at its place."""
    with torch.no_grad():
        states = model.base_model(**inputs).last_hidden_state
        assert states.shape[:2] == inputs["input_ids"].shape
        aligned = model.get_output_embeddings()(states)
        begun = inputs["attention_mask"].cumsum(1) > 1  # nothing stands before a row's first token
        labels = inputs["input_ids"].where(begun & (inputs["input_ids"] >= 0), -100)
        merged = model(**inputs, labels=labels)
    real = labels[:, 1:] != -100
    loss = torch.nn.functional.cross_entropy(aligned[:, :-1][real], labels[:, 1:][real])
    torch.testing.assert_close(loss, merged.loss, rtol=1e-5, atol=1e-5)


def test_codes_that_can_not_be_read_are_refused(model, inputs):
    with pytest.raises(ValueError, match="the codebook has 32 entries"):
        model(**{**inputs, "codes_3d": inputs["codes_3d"] + 100})
    with pytest.raises(ValueError, match="belong together"):
        model(input_ids=inputs["input_ids"], codes_3d=inputs["codes_3d"])
    with pytest.raises(ValueError, match="not both"):
        model(**inputs, feats_3d=torch.zeros(1, 4))
