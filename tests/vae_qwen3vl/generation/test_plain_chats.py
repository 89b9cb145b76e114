"""Chats without an object get the untouched model's answer, whatever adapters do to those with one."""

from __future__ import annotations

import copy

import pytest
import torch

from engine_chats import alone, chat, submitted
from vae_qwen3vl.generation.answer import Sampling
from vae_qwen3vl.generation.engine import Engine
from vae_qwen3vl.language import adapters
from vae_qwen3vl.language.adapted_rows import AdaptedLinear
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook_vectors


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """A folder of adapters that change what the model says."""
    pytest.importorskip("peft")
    torch.manual_seed(3)
    adapted = adapters.add_lora(copy.deepcopy(model.vl_model), 3, dropout=0.0, targets="all")
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) * 0.2
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    adapters.save_lora(adapted, folder, "tiny")
    return folder


def with_model(model, vl_model):
    """Return the branch around another language model."""
    other = copy.copy(model)
    other._modules = {**model._modules, "vl_model": vl_model}
    return other.eval()


@pytest.fixture(scope="module")
def merged(model, saved):
    """Adapters in the weights for good: every chat is adapted."""
    return with_model(model, adapters.load_merged(copy.deepcopy(model.vl_model), saved))


@pytest.fixture(scope="module", params=["merged", "beside"])
def adapted(request, model, saved):
    vl_model = copy.deepcopy(model.vl_model)
    if request.param == "merged":
        return with_model(model, adapters.load_merged(vl_model, saved, keep_untouched=True))
    return with_model(model, adapters.load_lora(vl_model, saved))


def asked(shapes, processor, model, messages, objects):
    """Return what `generate` takes."""
    feats = torch.cat([codebook_vectors(o.codes, model.vae_model) for o in objects])
    given = {"feats_3d": feats, "coords_3d": joined_coords([o.coords for o in objects])} if objects else {}
    return {**processor(messages, objects=0), **given, "do_sample": False, "max_new_tokens": 12}


def test_a_batch_of_both_kinds_is_answered_by_both_models(model, merged, adapted, processor, shapes):
    both = [chat(None, "What is it?"), chat("What is it?"), chat("And", None, "x")]
    given = asked(shapes, processor, model, both, shapes[:2])
    out = adapted.generate(**given, num_beams=2)
    untouched, with_adapters = (one.generate(**given, num_beams=2).tolist() for one in (model, merged))
    width = out.shape[1]
    for row, expected in enumerate((with_adapters, untouched, with_adapters)):
        assert out[row].tolist() == expected[row][:width]
    assert untouched != with_adapters
    given = {name: value for name, value in given.items() if name not in ("do_sample", "max_new_tokens")}
    with torch.no_grad():
        read, before, after = (one(**given).logits for one in (adapted, model, merged))
    assert torch.equal(read[1], before[1])
    torch.testing.assert_close(read[[0, 2]], after[[0, 2]], rtol=1e-4, atol=1e-4)


def test_text_alone_is_read_to_the_same_bit_as_without_adapters(model, merged, adapted):
    ids = torch.arange(10, 34).view(2, 12)
    with torch.no_grad():
        assert torch.equal(adapted(input_ids=ids).logits, model(input_ids=ids).logits)
        assert not torch.equal(merged(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_engine_answers_both_kinds_side_by_side(model, merged, adapted, processor, shapes):
    with Engine(adapted, processor) as engine:
        answers = submitted(engine, shapes)
    kinds = set()
    for messages, objects, length, answer, _ in answers:
        expected = alone(merged if objects else model, processor, messages, objects, max_new_tokens=length)
        assert answer.token_ids == expected
        kinds.add(bool(objects))
    assert kinds == {True, False}


def test_what_was_computed_with_adapters_is_not_reused_without(model, merged, adapted, processor, shapes):
    words = "a chat that begins with the same words each time "
    with Engine(adapted, processor) as engine:
        for _ in range(2):
            for objects in ([], shapes[2:3]):
                messages = chat(words, None, "?") if objects else chat(words, "?")
                answer = engine.submit(messages, objects, Sampling(max_new_tokens=8))
                answer.text()
                one = merged if objects else model
                assert answer.token_ids == alone(one, processor, messages, objects, max_new_tokens=8)
    assert engine.load().cached_tokens > 0


def test_adapters_that_peft_merges_can_be_left_out_too(model, merged, saved):
    by_peft = adapters.merge_lora(adapters.load_lora(copy.deepcopy(model.vl_model), saved), keep_untouched=True)
    ids = torch.arange(10, 34).view(2, 12)
    with torch.no_grad():
        assert torch.equal(with_model(model, by_peft)(input_ids=ids).logits, model(input_ids=ids).logits)
        assert torch.equal(by_peft(input_ids=ids).logits, merged(input_ids=ids).logits)


def test_training_reads_text_with_its_adapters(adapted, merged):
    ids = torch.arange(10, 34).view(2, 12)
    learning = adapted.train()
    try:
        with torch.no_grad():
            found = learning(input_ids=ids).logits
    finally:
        adapted.eval()
    torch.testing.assert_close(found, merged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


def test_the_weights_from_before_are_no_part_of_the_state(model, saved):
    kept = adapters.load_merged(copy.deepcopy(model.vl_model), saved, keep_untouched=True)
    without = adapters.load_merged(copy.deepcopy(model.vl_model), saved)
    states = kept.state_dict(), without.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    kept = kept.to(torch.bfloat16)
    maps = [module for module in kept.modules() if isinstance(module, AdaptedLinear)]
    assert len(maps) == 14 and all(one.untouched.dtype == torch.bfloat16 for one in maps)


@pytest.mark.slow
def test_the_default_model_without_an_object_says_what_it_says_untouched():
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.language.default_model import default_lm_folder
    from vae_qwen3vl.model import Qwen3VLWith3DBranch

    folder = default_lm_folder()
    if folder is None:
        pytest.skip("the default language model is not on this machine")
    shipped = load_describer(None, device="cpu", dtype="float32")
    untouched = Qwen3VLWith3DBranch(str(folder), torch_dtype="float32").eval()
    words = Processor3D.from_pretrained(str(folder))
    questions = ["What is the capital of France?", "Why is the sky blue?", "你好"]
    expected = [alone(untouched, words, chat(one), [], max_new_tokens=24) for one in questions]
    with Engine(shipped, words, codebook=torch.zeros(1, 1)) as engine:
        answers = [engine.submit(chat(one), (), Sampling(max_new_tokens=24)) for one in questions]
        [answer.text() for answer in answers]
    assert [alone(shipped, words, chat(one), [], max_new_tokens=24) for one in questions] == expected
    ends = untouched.vl_model.generation_config.eos_token_id, words.tokenizer.eos_token_id
    assert [answer.token_ids for answer in answers] == [
        [token for token in tokens if token not in ends] for tokens in expected
    ]
