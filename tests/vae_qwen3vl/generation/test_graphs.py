"""Steps as graphs: each answer is what it is without them, whoever joins and leaves and however the cache grows.

Without a GPU a graph is stood in for by the same work on the same memory: what a capture would fix is fixed here too.
"""

from __future__ import annotations

import copy
import logging
import threading
import time

import pytest
import torch

from engine_chats import alone, chat, chats, submitted
from vae_qwen3vl.generation import engine as engine_module
from vae_qwen3vl.generation import graphs as graphs_module
from vae_qwen3vl.generation.answer import Sampling
from vae_qwen3vl.generation.engine import Engine
from vae_qwen3vl.generation.graphs import Graphs, few_sizes

ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=ON_A_GPU)])
def graphs(request, monkeypatch, model):
    """The model where graphs are, and a list of what was captured: True once it was replayed."""
    made = []
    capture = graphs_module.captured

    def stand_in(work, device, pool):
        results = tuple(result.clone() for result in work())

        def replay():
            for result, new in zip(results, work(), strict=True):
                result.copy_(new)

        return replay, results, pool

    def noting(*arguments):
        replay, results, pool = (stand_in if request.param == "stand-in" else capture)(*arguments)
        number = len(made)
        made.append(0)

        def counted():
            made[number] += 1
            replay()

        return counted, results, pool

    monkeypatch.setattr(graphs_module, "captured", noting)
    if request.param == "stand-in":
        monkeypatch.setattr(engine_module, "_fits_graphs", lambda base: True)
        return model, made
    return copy.deepcopy(model).to("cuda"), made


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_every_chat_gets_the_answer_that_it_gets_alone(graphs, processor, shapes, max_batch):
    model, made = graphs
    with Engine(model, processor, max_batch=max_batch, prefill_tokens=200) as engine:
        asked = submitted(engine, shapes)
    for messages, objects, length, answer, _ in asked:
        assert answer.token_ids == alone(model, processor, messages, objects, max_new_tokens=length)
    steps = engine.load().steps
    assert steps / 2 < sum(made) < steps + len(asked)


def test_logits_are_those_of_work_as_it_is_written(graphs, processor, shapes, monkeypatch):
    """Over the edge of a buffer that grows, with rows that are idle, in chats that begin like others."""
    model, made = graphs
    engine, compare = Engine(model, processor), []
    run = Graphs.run

    def comparing(self, sort, work, inputs, **how):
        results = [result.clone() for result in run(self, sort, work, inputs, **how)]
        with torch.inference_mode():
            written = work(*(given.to(model.device) for given in inputs))
        compare.append((results[0], written[0]))
        return results

    monkeypatch.setattr(Graphs, "run", comparing)
    asked = [(chat(None, "x " * 52), shapes[3:]), (chat("y"), []), (chat(None, "z"), shapes[1:2])]
    answers = [engine.submit(*each, Sampling(max_new_tokens=64)) for each in asked]
    with engine:
        [answer.text() for answer in answers]
        for question in ("which?", "and?", "so?"):
            engine.submit(chat(None, question), shapes[3:], Sampling(max_new_tokens=4)).text()
    longest = max(answer.prompt_tokens + answer.completion_tokens for answer in answers)
    assert min(answer.prompt_tokens for answer in answers) < 256 < longest
    for found, written in compare:
        torch.testing.assert_close(found, written, rtol=1e-4, atol=1e-4)
    assert engine.load().cached_tokens > 0
    assert len(compare) == 63 + 3 + 3 * 4 and len(made) >= 3 and sum(made) > 50


def test_draws_and_stop_texts_are_what_they_are_without(graphs, processor, shapes):
    model, made = graphs
    drawn = Sampling(max_new_tokens=20, temperature=1.5, top_p=0.9, seed=7)
    results = []
    for on_graphs in (True, False):
        with Engine(model, processor, prefix_tokens=0, graphs=on_graphs) as engine:
            likely = engine.submit(chat(None, "x"), shapes[:1], Sampling(max_new_tokens=30))
            stop = likely.text()[4:6]
            stopped = Sampling(max_new_tokens=30, stop=(stop,))
            answers = [engine.submit(chat(None, "x"), shapes[:1], sampling) for sampling in (drawn, stopped)]
            results.append([(answer.text(), answer.token_ids, answer.finish_reason) for answer in answers])
    assert results[0] == results[1]
    assert results[0][1][2] == "stop" and results[0][0][1] != likely.token_ids[:20]
    assert sum(made) > 0


def test_a_failed_step_leaves_nothing_behind(graphs, processor, shapes, monkeypatch):
    model, made = graphs
    messages, wanted = chat(None, "x"), alone(model, processor, chat(None, "x"), shapes[:1], max_new_tokens=9)
    with Engine(model, processor) as engine:
        engine.submit(messages, shapes[:1], Sampling(max_new_tokens=9)).text()
        before, step = len(made), engine._step
        monkeypatch.setattr(engine, "_step", lambda: [][0])
        with pytest.raises(IndexError):
            engine.submit(messages, shapes[:1], Sampling(max_new_tokens=9)).text()
        monkeypatch.setattr(engine, "_step", step)
        again = engine.submit(messages, shapes[:1], Sampling(max_new_tokens=9))
        again.text()
    assert again.token_ids == wanted
    assert len(made) == before + 1  # a chat for the second time; none when work has failed


def test_what_can_not_be_captured_is_computed_as_it_is_written(graphs, processor, shapes, monkeypatch, caplog):
    model, _ = graphs

    def refuse(work, device, pool):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(graphs_module, "captured", refuse)
    with caplog.at_level(logging.WARNING), Engine(model, processor) as engine:
        answers = [engine.submit(*asked, Sampling(max_new_tokens=9)) for asked in chats(shapes)]
        [answer.text() for answer in answers]
    for asked, answer in zip(chats(shapes), answers, strict=True):
        assert answer.token_ids == alone(model, processor, *asked, max_new_tokens=9)
    assert [record.message for record in caplog.records] == [
        "the language model can't be captured as CUDA graphs and is slower: "
        "operation not permitted when stream is capturing"
    ]


def test_few_graphs_serve_chats_of_any_length_and_number(graphs, processor, monkeypatch):
    model, made = graphs
    monkeypatch.setattr(graphs_module, "_MOST_GRAPHS", 3)
    with Engine(model, processor, max_batch=8, prefix_tokens=0) as engine:
        for length in range(1, 230, 45):
            answers = [
                engine.submit(chat("x " * length), (), Sampling(max_new_tokens=2 + number)) for number in range(8)
            ]
            [answer.text() for answer in answers]
            assert len(engine._graphs._captured) <= 3
    assert sum(made) > 0


@pytest.mark.parametrize("step", [64, 256])
def test_sizes_are_few_and_little_more_than_there_is(step):
    sizes = [few_sizes(count, step) for count in range(1, 8193)]
    for count, size in enumerate(sizes, 1):
        assert count <= size <= max(count * 1.25, count + step - 1) and size % step == 0
    assert len(set(sizes)) <= {64: 28, 256: 20}[step]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_are_captured_soon_and_share_their_memory(graphs, processor, shapes):
    model, made = graphs
    if model.device.type != "cuda":
        pytest.skip("a stand-in has no memory of its own")
    seconds, grown = [], []
    for _ in range(2):
        engine = Engine(model, processor, max_batch=8, prefix_tokens=0)
        answers = [engine.submit(*asked, Sampling(max_new_tokens=20)) for asked in chats(shapes)]
        torch.cuda.synchronize()
        before, start = torch.cuda.memory_reserved(), time.perf_counter()
        with engine:
            [answer.text() for answer in answers]
        seconds.append(time.perf_counter() - start)
        grown.append(torch.cuda.memory_reserved() - before)
    assert len(made) >= 4
    assert seconds[1] < len(made) / 2  # in which the chats are answered, too
    assert grown[1] < 2**28


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_chat_is_written_without_a_wait_for_the_gpu(model, processor, shapes):
    """The GPU may be at others' answers: each look at it would wait for them."""
    with Engine(copy.deepcopy(model).to("cuda"), processor) as engine:
        engine.submit(chat(None, "x"), shapes[3:]).text()  # the tokenizer's fingerprint is computed once
        torch.cuda.set_sync_debug_mode("error")
        try:
            engine._chat(chat(None, "x"), shapes[3:], Sampling())
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_other_threads_use_the_gpu_while_graphs_are_captured(model, processor, shapes, caplog):
    there, asked = copy.deepcopy(model).to("cuda"), chats(shapes)
    ended, wrong = threading.Event(), []

    def compute():
        while not ended.is_set():
            many = torch.ones(257, 1021, device="cuda")
            wrong.extend([] if bool((many @ many.T == 1021).all()) else ["product"])
            torch.cuda.empty_cache()

    other = threading.Thread(target=compute)
    other.start()
    try:
        for _ in range(3):
            engine = Engine(there, processor, prefix_tokens=0)
            answers = [engine.submit(*each, Sampling(max_new_tokens=12)) for each in asked * 2]
            with engine:
                [answer.text() for answer in answers]
            for each, answer in zip(asked * 2, answers, strict=True):
                assert answer.token_ids == alone(there, processor, *each, max_new_tokens=12)
            assert engine._graphs.wanted and engine._graphs._captured
    finally:
        ended.set()
        other.join()
    assert not wrong and not caplog.records


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_capture_that_fails_hurts_nobody(model, processor, shapes, caplog, monkeypatch):
    there, asked = copy.deepcopy(model).to("cuda"), chats(shapes)
    wanted = [alone(there, processor, *each, max_new_tokens=9) for each in asked]
    for refused in (True, False):
        engine = Engine(there, processor)
        forward = engine._forward

        def looking(*arguments, forward=forward):
            hidden = forward(*arguments)
            assert bool(hidden.isfinite().all())  # a wait, which no graph can hold
            return hidden

        if refused:
            monkeypatch.setattr(engine, "_forward", looking)
        with engine:
            answers = [engine.submit(*each, Sampling(max_new_tokens=9)) for each in asked]
            [answer.text() for answer in answers]
        assert [answer.token_ids for answer in answers] == wanted
        assert engine._graphs.wanted != refused and bool(engine._graphs._captured) != refused
    assert len(caplog.records) == 1
