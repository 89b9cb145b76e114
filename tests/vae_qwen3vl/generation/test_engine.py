"""The engine: each of many chats gets the very answer that it would get alone, whatever comes and goes beside it."""

from __future__ import annotations

import asyncio
import copy
import threading
import time

import pytest
import torch
from PIL import Image

from engine_chats import alone, chat, chats, submitted
from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.answer_confidence import Calibration, GreedyProbabilities
from vae_qwen3vl.generation.answer import PieceWriter, Sampling
from vae_qwen3vl.generation.engine import ClosedError, Engine, QueueFullError, TooManyAtOnceError
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook_vectors


@pytest.mark.parametrize("max_batch", [1, 2, 32])
def test_every_chat_gets_the_answer_that_it_gets_alone(model, processor, shapes, max_batch):
    with Engine(model, processor, max_batch=max_batch, prefill_tokens=200) as engine:
        asked = submitted(engine, shapes)
    for messages, objects, length, answer, text in asked:
        assert answer.token_ids == alone(model, processor, messages, objects, max_new_tokens=length)
        assert text == processor.decode([answer.token_ids])[0].rstrip("\ufffd").rstrip()
        assert answer.finish_reason == "length" and answer.completion_tokens == length
    load = engine.load()
    assert load.answers == len(asked) and load.active == load.waiting == 0
    assert load.completion_tokens == sum(length for _, _, length, *_ in asked)


@pytest.mark.slow
def test_in_float32_the_default_model_draws_the_same_words_alone_and_beside_others():
    from sdf_vqvae.model.checkpoint import load_vae_from_config
    from vae_qwen3vl.describer import load_describer
    from vae_qwen3vl.language.default_model import default_lm_folder

    if default_lm_folder() is None:
        pytest.skip("the default language model is not on this machine")
    there = load_describer(load_vae_from_config(None, None, "cpu"), device="cpu", dtype="float32")
    drawn = Sampling(max_new_tokens=16, temperature=2.0, seed=3)  # many words are likely: small changes show
    asked = [chat(f"Tell a story of {count} cats.") for count in ("two", "four", "six")]
    words = Processor3D.from_pretrained(there.model_name_or_path)
    with Engine(there, words, prefix_tokens=0) as engine:
        by_itself = [engine.submit(messages, (), drawn).text() for messages in asked]
    with Engine(there, words, prefix_tokens=0) as engine:
        answers = [engine.submit(messages, (), drawn) for messages in asked]
        assert [answer.text() for answer in answers] == by_itself
    assert len(set(by_itself)) > 1


def test_a_next_turn_and_another_question_reuse_what_was_computed(model, processor, shapes):
    first, more = chat(None, "What is it?"), chat("With four legs?")
    with Engine(model, processor) as engine:
        said = engine.submit(first, shapes[3:], Sampling(max_new_tokens=9)).text()
        turns = [*first, {"role": "assistant", "content": said}, *more]
        second = engine.submit(turns, shapes[3:], Sampling(max_new_tokens=9))
        other = engine.submit(chat(None, "Which color?"), shapes[3:], Sampling(max_new_tokens=9))
        unlike = engine.submit(chat(None, "What is it?"), shapes[1:2], Sampling(max_new_tokens=9))
        [answer.text() for answer in (second, other, unlike)]
    shape_tokens = second.tokens_3d
    assert shape_tokens > 50
    assert second.cached_tokens > shape_tokens and other.cached_tokens > shape_tokens
    assert unlike.cached_tokens < unlike.prompt_tokens - unlike.tokens_3d  # the template's beginning alone
    assert second.token_ids == alone(model, processor, turns, shapes[3:], max_new_tokens=9)
    assert other.token_ids == alone(model, processor, chat(None, "Which color?"), shapes[3:], max_new_tokens=9)
    assert unlike.token_ids == alone(model, processor, first, shapes[1:2], max_new_tokens=9)


def test_what_is_kept_of_ended_chats_is_bounded(model, processor, shapes):
    with Engine(model, processor, prefix_tokens=300) as engine:
        for number in range(12):
            engine.submit(chat(None, f"question {number}"), shapes[1:2]).text()
            assert engine._prefixes.held <= 300
    assert engine.load().cached_tokens > 0
    with Engine(model, processor, prefix_tokens=0) as engine:
        for _ in range(2):
            engine.submit(chat(None, "again"), shapes[1:2]).text()
    assert engine.load().cached_tokens == 0


def test_chats_of_any_length_are_computed_in_few_widths(model, processor, monkeypatch):
    """Libraries keep a kernel for each shape of a product: as many shapes as chats would be memory without end."""
    with Engine(model, processor, prefix_tokens=0) as engine:
        forward, widths = engine._forward, set()

        def noting(first, starts, positions, embeds, *more):
            widths.add(embeds.shape[1])
            return forward(first, starts, positions, embeds, *more)

        monkeypatch.setattr(engine, "_forward", noting)
        for length in range(1, 60, 2):
            engine.submit(chat("x " * length), (), Sampling(max_new_tokens=2)).text()
    assert len(widths) <= 6 and all(width == 1 or width % 32 == 0 for width in widths)


def test_images_beside_shapes(model, processor, shapes):
    pixels = torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    asked = [(chat(image, "shows", None, "?"), shapes[:1]), (chat(None, "x"), shapes[1:2]), (chat("and", image), [])]
    with Engine(model, processor) as engine:
        answers = [engine.submit(messages, objects, Sampling(max_new_tokens=8)) for messages, objects in asked]
        [answer.text() for answer in answers]
    for (messages, objects), answer in zip(asked, answers, strict=True):
        assert answer.token_ids == alone(model, processor, messages, objects, max_new_tokens=8)


def test_a_draw_is_the_same_for_the_same_seed_whoever_else_is_answered(model, processor, shapes):
    drawn = Sampling(max_new_tokens=20, temperature=1.5, top_p=0.9, seed=7)
    with Engine(model, processor) as engine:
        first = engine.submit(chat(None, "x"), shapes[:1], drawn)
        first.text()
        beside = [engine.submit(messages, objects) for messages, objects in chats(shapes)]
        again = engine.submit(chat(None, "x"), shapes[:1], drawn)
        unlike = engine.submit(chat(None, "x"), shapes[:1], Sampling(max_new_tokens=20, temperature=1.5, seed=8))
        [answer.text() for answer in (again, unlike, *beside)]
    assert first.token_ids == again.token_ids != unlike.token_ids
    assert first.token_ids != alone(model, processor, chat(None, "x"), shapes[:1], max_new_tokens=20)


def test_an_answer_ends_where_the_model_ends_it(model, processor, shapes):
    messages = chat(None, "x")
    base = model.vl_model
    before = base.generation_config
    ids = model.generate(
        **processor([messages]), feats_3d=codebook_vectors(shapes[0].codes, model.vae_model),
        coords_3d=joined_coords([shapes[0].coords]), do_sample=False, max_new_tokens=8,
    )[0].tolist()  # fmt: skip
    end = next(token for token in ids[2:] if token not in ids[:2])
    base.generation_config = copy.deepcopy(before)
    base.generation_config.eos_token_id = [end]
    try:
        with Engine(model, processor) as engine:
            answer = engine.submit(messages, shapes[:1], Sampling(max_new_tokens=8))
            answer.text()
    finally:
        base.generation_config = before
    assert answer.finish_reason == "stop"
    assert answer.token_ids == ids[: ids.index(end)]


def test_too_many_and_too_long_are_refused_with_the_reason(model, processor, shapes):
    engine = Engine(model, processor, max_waiting=2)  # not started: what is submitted waits
    for _ in range(2):
        engine.submit(chat("x"))
    with pytest.raises(QueueFullError, match="2 chats wait"):
        engine.submit(chat("x"))
    engine.start()
    engine.close()
    with pytest.raises(ClosedError):
        engine.submit(chat("x"))
    engine = Engine(model, processor)
    with pytest.raises(ValueError, match="an answer of up to 500"):
        engine.submit(chat("x"), (), Sampling(max_new_tokens=500))
    with pytest.raises(ValueError, match="1 3d parts, but 2 shapes"):
        engine.submit(chat(None, "x"), shapes[:2])
    with pytest.raises(ValueError, match="role"):
        engine.submit([{"role": "robot", "content": "x"}])
    with pytest.raises(ValueError, match="codes"):
        engine.submit(chat(None), [ShapeCodes(**{**vars(shapes[0]), "vae_hash": "0" * 64})])


def test_who_goes_away_frees_the_place(model, processor, shapes):
    with Engine(model, processor, max_batch=1) as engine:
        long = engine.submit(chat(None, "x"), shapes[:1], Sampling(max_new_tokens=400))
        waits = engine.submit(chat("y"), (), Sampling(max_new_tokens=400))
        short = engine.submit(chat(None, "A chair?"), shapes[2:3], Sampling(max_new_tokens=3))
        next(iter(long))
        long.cancel()
        waits.cancel()
        [answer.text() for answer in (short, long, waits)]
    assert short.token_ids == alone(model, processor, chat(None, "A chair?"), shapes[2:3], max_new_tokens=3)
    assert long.finish_reason == waits.finish_reason == "cancelled"
    assert 0 < long.completion_tokens < 400 and waits.completion_tokens == 0


def test_closing_finishes_what_runs_or_cancels_it(model, processor, shapes):
    engine = Engine(model, processor, max_batch=2)
    answers = [engine.submit(*asked) for asked in chats(shapes)]
    engine.start()
    engine.close()
    assert {answer.finish_reason for answer in answers} <= {"length", "stop"}
    engine = Engine(model, processor)
    answer = engine.submit(chat("x"), (), Sampling(max_new_tokens=400))
    engine.start()
    engine.close(finish=False)
    assert answer.finish_reason == "cancelled"


def test_a_failing_step_ends_its_answers_and_no_others(model, processor, shapes, monkeypatch):
    with Engine(model, processor) as engine:
        forward = engine._forward

        def fail(*arguments):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(engine, "_forward", fail)
        broken = engine.submit(chat(None, "x"), shapes[:1])
        with pytest.raises(RuntimeError, match="out of memory"):
            broken.text()
        monkeypatch.setattr(engine, "_forward", forward)
        whole = engine.submit(chat(None, "x"), shapes[:1], Sampling(max_new_tokens=4))
        whole.text()
    assert broken.finish_reason == "error"
    assert whole.token_ids == alone(model, processor, chat(None, "x"), shapes[:1], max_new_tokens=4)


def test_memory_that_runs_out_is_told_apart_by_how_many_were_answered(model, processor, shapes, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = Engine(model, processor)
    monkeypatch.setattr(engine, "_forward", fail)
    together = [engine.submit(chat(None, "x"), [shape]) for shape in shapes[:3]]  # before it begins
    with engine:
        for answer in together:
            with pytest.raises(TooManyAtOnceError) as told:
                answer.text()
            assert told.value.answers == 3
        with pytest.raises(torch.OutOfMemoryError):
            engine.submit(chat(None, "x"), shapes[:1]).text()


def test_a_defect_that_ends_the_engine_ends_its_answers(model, processor, shapes, monkeypatch):
    engine = Engine(model, processor)
    monkeypatch.setattr(engine, "_forward", lambda *arguments: {}["nothing"])
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    answers = [engine.submit(chat(None, "x"), shapes[:1]) for _ in range(2)]
    with engine:
        for answer in answers:
            with pytest.raises(ClosedError):
                answer.text()
        with pytest.raises(ClosedError):
            engine.submit(chat(None, "x"), shapes[:1])


def test_codes_are_looked_up_in_a_codebook_where_the_model_has_no_tokenizer(model, processor, shapes):
    table, vae = model.vae_model.vq.embeddings.weight, model.vae_model
    messages, wanted = chat(None, "x"), alone(model, processor, chat(None, "x"), shapes[:1], max_new_tokens=5)
    model.vae_model = None
    try:
        with Engine(model, processor, codebook=table) as engine:
            answer = engine.submit(messages, shapes[:1], Sampling(max_new_tokens=5))
            answer.text()
    finally:
        model.vae_model = vae
    assert answer.token_ids == wanted


def test_event_loops_read_answers_without_a_thread_each(model, processor, shapes):
    async def read(engine, asked):
        return "".join([piece async for piece in engine.submit(*asked)])

    async def read_all(engine):
        return await asyncio.gather(*(read(engine, asked) for asked in chats(shapes)))

    before = threading.active_count()
    with Engine(model, processor) as engine:
        texts = asyncio.run(read_all(engine))
        deadline = time.monotonic() + 5
        while threading.active_count() > before + 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() <= before + 1
    wholes = [alone(model, processor, *asked, max_new_tokens=64) for asked in chats(shapes)]
    assert texts == [text.rstrip("\ufffd").rstrip() for text in processor.decode(wholes)]


@pytest.mark.parametrize("stop", [(), ("needle",), ("e h", "zz"), ("hay",)])
def test_pieces_joined_are_the_text_before_the_stop(tokenizer, stop):
    text = "  a chair in the hay, é 椅子 needles and more \n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    writer = PieceWriter(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(writer.write(token))
        if writer.stopped:
            break
    else:
        pieces.append(writer.rest())
    ends = [at for word in stop if (at := text.find(word)) >= 0]
    assert "".join(pieces) == text[: min(ends, default=len(text))].strip()
    assert "\ufffd" not in "".join(pieces)
    assert writer.stopped == bool(ends)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ("",)}, "stop"),
        ({"stop": tuple("abcde")}, "stop"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_what_can_not_be_drawn_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**wrong)


@pytest.mark.parametrize(("budget", "over"), [(2048, "pool"), (20, "pool"), (20, "head")])
def test_a_chat_is_written_and_read_without_a_look_at_the_device(model, processor, shapes, budget, over):
    """A GPU may be at others' answers, and each look would wait for them. The meta device can't be looked at."""
    here = copy.deepcopy(model)
    here.max_3d_tokens, here.truncate_mode = budget, over
    table = model.vae_model.vq.embeddings.weight.detach()
    engine = Engine(copy.deepcopy(here).to("meta"), processor, codebook=table.to("meta"))
    for messages, objects in chats(shapes):
        written = engine._chat(messages, objects, Sampling())
        wanted = Engine(here, processor)._chat(messages, objects, Sampling())
        assert written.embeds.is_meta and written.embeds.shape == wanted.embeds.shape
        assert written.answer.tokens_3d == wanted.answer.tokens_3d
        with torch.inference_mode():
            logits, looks = engine._read([written], [0], 0)
        assert logits.is_meta and logits.shape == (1, 400) and looks.shape == (3, 1)


def test_many_draws_about_one_shape_compute_it_once(model, processor, shapes):
    drawn = [Sampling(max_new_tokens=6, temperature=1.5, seed=seed) for seed in range(5)]
    apart = []
    for sampling in drawn:
        with Engine(model, processor, prefix_tokens=0) as engine:
            apart.append(engine.submit(chat(None, "x"), shapes[3:], sampling))
    engine = Engine(model, processor, prefix_tokens=0)  # not started: all of them wait when it begins
    together = [engine.submit(chat(None, "x"), shapes[3:], sampling) for sampling in drawn]
    with engine:
        [answer.text() for answer in together]
    assert [a.token_ids for a in together] == [a.token_ids for a in apart]
    assert engine.load().prompt_tokens == together[0].prompt_tokens + 4  # of each other draw, the last place alone


def test_an_answer_carries_the_probability_of_its_tokens(model, processor, shapes, monkeypatch):
    from transformers import LogitsProcessorList

    messages = chat(None, "What is it?")
    known = Calibration(slope=1.0, intercept=0.0, prompt="What is it?", right="", data="", projector="")
    monkeypatch.setattr(model, "calibration", known)
    given = {
        **processor([messages], objects=0),
        "feats_3d": codebook_vectors(shapes[1].codes, model.vae_model),
        "coords_3d": joined_coords([shapes[1].coords]),
    }
    sure = GreedyProbabilities()
    ids = model.generate(**given, do_sample=False, max_new_tokens=9, logits_processor=LogitsProcessorList([sure]))
    whole = {**given, "input_ids": torch.cat([given["input_ids"], ids], dim=1), "attention_mask": None}
    with torch.no_grad():
        logits = model(**whole)
    before = logits.logits[0, -ids.shape[1] - 1 : -1].float().softmax(-1)
    expected = before.gather(1, ids[0][:, None])[:, 0].tolist()
    with Engine(model, processor) as engine:
        answer = engine.submit(messages, shapes[1:2], Sampling(max_new_tokens=9))
        drawn = engine.submit(messages, shapes[1:2], Sampling(max_new_tokens=9, temperature=1.0, seed=1))
        other = engine.submit(chat(None, "Another?"), shapes[1:2], Sampling(max_new_tokens=3))
        [one.text() for one in (answer, drawn, other)]
    assert answer.token_ids == ids[0].tolist()
    assert answer.probabilities == pytest.approx(expected, rel=1e-3)
    assert sure.means(ids, []) == pytest.approx([answer.mean_probability], rel=1e-3)
    assert sure.means(ids, ids[0, 2:3].tolist())[0] >= min(expected[:3])
    assert answer.confidence == pytest.approx(known.probability(answer.mean_probability))
    assert len(drawn.probabilities) == 9 and drawn.mean_probability < answer.mean_probability
    assert other.mean_probability is not None and other.confidence is None
