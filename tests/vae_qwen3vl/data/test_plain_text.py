"""Texts without an object: read, drawn anew each epoch, and trained on beside objects."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path

import plain_text_cost
import pytest
import torch

import align_worker as align
from vae_qwen3vl.commands.main import main as program
from vae_qwen3vl.data.collate import collate_codes_caption, collate_sdf_caption
from vae_qwen3vl.data.loading import BucketSampler, items_of_an_epoch
from vae_qwen3vl.data.plain_text import WithPlainText
from vae_qwen3vl.data.texts import Text, read_plain_texts
from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.synthetic import plain_answers
from vae_qwen3vl.synthetic.plain_answers import own_answers, write_plain_text
from vae_qwen3vl.synthetic.plain_prompts import plain_prompts
from vae_qwen3vl.train_finetune import main

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
]
RECORDS = [{"question": "What is one?", "answer": "A number."}, {"messages": CHAT}]
PLAIN = {"caption": "A number.", "conversation": [{"role": "user", "content": "What is one?"}]}


def texts(count: int) -> list[Text]:
    return [Text(answer="a" * (i + 1), conversation=({"role": "user", "content": "q"},)) for i in range(count)]


@pytest.fixture
def plain_text(tmp_path: Path) -> Path:
    path = tmp_path / "plain.jsonl"
    path.write_text("\n".join(map(json.dumps, RECORDS)) + "\n")
    return path


def test_questions_and_chats_without_an_object_are_read(plain_text: Path) -> None:
    question, chat = read_plain_texts(plain_text)
    assert question.answer == "A number."
    assert question.conversation == ({"role": "user", "content": "What is one?"},)
    assert chat.conversation == tuple(CHAT[:-1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sample_id": "a", "question": "x", "answer": "y"}', "line 2: a text without an object has no 'sample_id'"),
        ('{"caption": "x"}', "line 2: a text without an object holds 'question'"),
        ('{"question": "x"}', "line 2: 'answer' must be text"),
    ],
)
def test_a_bad_text_names_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps(RECORDS[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_plain_texts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no texts"):
        read_plain_texts(path)


def answers(data: WithPlainText, epoch: int) -> list[str]:
    data.set_epoch(epoch)
    return [data[i]["caption"] for i in range(data.count, len(data))]


def test_an_epoch_draws_its_share_of_texts_anew_and_repeatably() -> None:
    data = WithPlainText(list(range(90)), [50.0] * 90, texts(40), 0.1, seed=1)
    assert len(data) == len(data.lengths) == 100
    assert [data[i] for i in range(90)] == list(range(90))
    drawn = [answers(data, epoch) for epoch in range(30)]
    assert all(len(set(epoch)) == 10 for epoch in drawn)
    assert len({tuple(epoch) for epoch in drawn}) == 30
    assert len({answer for epoch in drawn for answer in epoch}) == 40
    again = WithPlainText(list(range(90)), [50.0] * 90, texts(40), 0.1, seed=1)
    assert answers(again, 7) == drawn[7]
    other = WithPlainText(list(range(90)), [50.0] * 90, texts(40), 0.1, seed=2)
    assert answers(other, 7) != drawn[7]
    with pytest.raises(IndexError):
        data[100]


def test_texts_are_a_share_of_the_objects_that_an_epoch_takes() -> None:
    limited = [(range(90, 690), 90)]
    lengths = [50.0] * 690
    data = WithPlainText(lengths, lengths, texts(40), 0.1, beside=items_of_an_epoch(690, limited))
    sampler = BucketSampler(data.lengths, 10, limited=limited)
    seen = [number for batch in sampler for number in batch]
    assert len(seen) == 200
    assert sum(number >= data.count for number in seen) == 20


def test_few_texts_are_repeated_evenly_and_a_share_of_one_is_text_alone() -> None:
    few = answers(WithPlainText(list(range(10)), [1.0] * 10, texts(3), 0.5), 0)
    assert sorted(few.count(answer) for answer in set(few)) == [3, 3, 4]
    alone = WithPlainText(list(range(10)), [1.0] * 10, texts(3), 1.0)
    assert answers(alone, 0) == ["a", "aa", "aaa"]
    assert len(alone) == len(alone.lengths) == 3
    assert len(WithPlainText(list(range(10)), [1.0] * 10, texts(3), 0.0)) == 10
    with pytest.raises(ValueError, match="a conversation"):
        WithPlainText([1], [1.0], [Text(answer="x")], 0.5)


def test_batches_hold_texts_of_similar_length() -> None:
    made = [Text(answer="word " * (1 + i % 100), conversation=CHAT[:1]) for i in range(400)]
    data = WithPlainText(list(range(64)), [1e4] * 64, made, 0.5)
    data.set_epoch(3)
    spreads = []
    for batch in BucketSampler(data.lengths, 8):
        sizes = [len(data[i]["caption"]) for i in batch if i >= data.count]
        assert len(sizes) in (0, 8)
        spreads += [max(sizes) - min(sizes)] if sizes else []
    assert sum(spreads) / len(spreads) < 150  # of 500 characters


def test_text_stands_beside_objects_and_alone_in_a_batch(tokenizer, make_vl) -> None:
    first, second = align.objects(2)
    mixed = collate_codes_caption([first, PLAIN, second], tokenizer)
    assert (mixed["input_ids"] == PLACEHOLDER_3D).sum(1).tolist() == [1, 0, 1]
    assert mixed["coords_3d"][:, 0].unique().tolist() == [0, 1]
    alone = collate_codes_caption([PLAIN], tokenizer)
    assert set(alone) == {"input_ids", "attention_mask", "labels"}
    said = alone["labels"][0]
    assert tokenizer.decode(said[said != -100]) == "A number.<|im_end|>"
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=align.WIDTH, merge=2).eval()
    with torch.no_grad():
        together = model(**mixed).logits
        text = model(**alone).logits[0]
        language_model = model.vl_model(input_ids=alone["input_ids"]).logits[0]
        shape = model(**collate_codes_caption([second], tokenizer)).logits[0]
    torch.testing.assert_close(text, language_model, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[1, : len(text)], text, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together[2, : len(shape)], shape, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="neither 'feats_3d' nor a 'conversation'"):
        collate_codes_caption([{"caption": "A chair.", "coords": first["coords"]}], tokenizer)


def test_text_stands_beside_fields(tokenizer, make_batch) -> None:
    items = [PLAIN, {"inputs_3d": make_batch([5]), "caption": "A."}, {"inputs_3d": make_batch([7]), "caption": "B."}]
    batch = collate_sdf_caption(items, tokenizer)
    assert torch.bincount(batch["inputs_3d"]["batch_idx"]).tolist() == [5, 7]
    assert (batch["input_ids"] == PLACEHOLDER_3D).sum(1).tolist() == [0, 1, 1]
    assert "inputs_3d" not in collate_sdf_caption([PLAIN], tokenizer)


def test_a_run_trains_on_plain_text_too(place: Path, vl: str, codes: Path, plain_text: Path, capsys, caplog) -> None:
    common = ["--vl_model", vl, "--device", "cpu", "--epochs", "1", "--batch_size", "2", "--plain_text"]
    with caplog.at_level(logging.INFO):
        assert main([*common, str(plain_text), "--plain_text_share", "0.4", "--data_dir", str(codes)]) == 0
    assert "2 of 5 training items are plain text" in caplog.text
    folder = Path(capsys.readouterr().out.strip())
    assert json.loads((folder / "result.json").read_text())["objects"] == 6  # three batches of two
    assert main([*common, "nowhere.jsonl", "--data_dir", str(codes)]) == 2
    assert "the plain text file nowhere.jsonl does not exist" in capsys.readouterr().err
    assert main([*common, str(plain_text), "--dummy_data"]) == 2
    assert "plain_text goes with data_dir" in capsys.readouterr().err


def test_prompts_are_many_distinct_and_apart() -> None:
    train, held_out = plain_prompts("train"), plain_prompts("held_out")
    assert len(train) == len(set(train)) > 500
    assert len(held_out) == len(set(held_out)) > 100
    assert not set(train) & set(held_out)
    with pytest.raises(ValueError, match="train or held_out"):
        plain_prompts("test")


class Loud(Qwen3VLWith3DBranch):
    """A model that ends a turn after a few words: random weights hardly ever would."""

    def generate(self, *given, **settings):
        self.vl_model.generation_config.eos_token_id = list(range(2, 400, 12))
        return super().generate(*given, **settings)


def test_own_answers_are_written_and_the_seed_repeats_them(tmp_path: Path, tokenizer, make_vl) -> None:
    model, processor = Loud(use_vl_model=make_vl("qwen2_vl"), latent_dim=8).eval(), Processor3D(tokenizer)

    def made(name: str, seed: int = 0, split: str = "train") -> list[tuple[str, str]]:
        path = tmp_path / name
        report = write_plain_text(model, processor, path, 6, split=split, seed=seed, batch_size=4)
        found = read_plain_texts(path)
        assert report.texts == len(found) == 6 and report.asked >= 6
        return [(text.conversation[0]["content"], text.answer) for text in found]

    first = made("one.jsonl")
    assert {question for question, _ in first} <= set(plain_prompts("train"))
    assert made("again.jsonl") == first
    assert made("other.jsonl", seed=1) != first
    assert {question for question, _ in made("held.jsonl", split="held_out")} <= set(plain_prompts("held_out"))


def test_a_killed_run_goes_on_and_writes_what_one_run_would(tmp_path: Path, tokenizer, make_vl) -> None:
    model, processor = Loud(use_vl_model=make_vl("qwen2_vl"), latent_dim=8).eval(), Processor3D(tokenizer)
    whole, path = tmp_path / "whole.jsonl", tmp_path / "texts.jsonl"
    write_plain_text(model, processor, whole, 40, batch_size=4)
    asked: list[int] = []
    generate = model.generate

    def killed(*given, **settings):
        asked.append(1)
        if len(asked) == 4 and not path.exists():
            raise KeyboardInterrupt
        return generate(*given, **settings)

    model.generate = killed
    with pytest.raises(KeyboardInterrupt):
        write_plain_text(model, processor, path, 40, batch_size=4)
    part = tmp_path / "texts.jsonl.part"
    assert not path.exists() and len(part.read_text().splitlines()) == 4  # settings and three batches
    with pytest.raises(ValueError, match="was begun with"):
        write_plain_text(model, processor, path, 40, batch_size=5)
    kept = part.read_text(encoding="utf-8").split("\n")
    said = json.loads(kept[1])
    kept[1] = json.dumps(["one\u2028two", *said[1:]], ensure_ascii=False)  # which str.splitlines takes for two lines
    part.write_text("\n".join(kept), encoding="utf-8")
    assert plain_answers._read_part(part, json.loads(kept[0]))[0][0] == "one\u2028two"
    kept[1] = json.dumps(said, ensure_ascii=False)
    part.write_text("\n".join(kept), encoding="utf-8")
    part.write_bytes(part.read_bytes()[:-9])  # the last batch half written
    write_plain_text(model, processor, path, 40, batch_size=4)
    assert path.read_bytes() == whole.read_bytes() and not part.exists()
    batches = len(asked) - 4
    asked.clear()
    write_plain_text(model, processor, path, 40, batch_size=4)
    assert len(asked) == batches + 2  # two whole batches had been kept


def test_an_unfinished_answer_is_no_answer(tmp_path: Path, tokenizer, make_vl) -> None:
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8).eval()
    model.vl_model.generation_config.eos_token_id = [399]
    assert own_answers(model, Processor3D(tokenizer), ["hi", "a longer one"], max_new_tokens=3) == [None, None]


def test_the_program_writes_what_training_reads(tmp_path: Path, vl: str, capsys) -> None:
    path = tmp_path / "own.jsonl"
    code = program(
        ["make-plain-text", "-o", str(path), "--count", "1", "--vl_model", vl, "--device", "cpu", "--json"]
    )
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["texts"] else 2)
    assert report["asked"] >= report["texts"] + report["unfinished"]
    assert path.is_file()
    assert program(["make-plain-text", "-o", str(tmp_path / "own.json"), "--vl_model", vl]) == 2
    assert "ends in .jsonl" in capsys.readouterr().err


def test_the_cost_is_what_one_text_after_another_says(tokenizer, make_vl) -> None:
    model, processor = (
        Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8).eval(),
        Processor3D(tokenizer),
    )
    some = [*texts(5), Text(answer="A chair.", conversation=tuple(CHAT[:1]))]
    loss, tokens = plain_text_cost.answer_loss(model, processor, some, batch_size=4)
    total = counted = 0
    for text in some:
        alone = collate_codes_caption([{"caption": text.answer, "conversation": text.conversation}], processor)
        own = int((alone["labels"] != -100).sum())
        total, counted = total + model(**alone)["loss"].item() * own, counted + own
    assert tokens == counted
    assert loss == pytest.approx(total / counted, rel=1e-4)
    prose = "Describe this 3D shape in one sentence: a red robot. " * 4
    ids = torch.tensor(processor.encode_text(prose))
    found, tokens = plain_text_cost.perplexity(model, processor, prose, piece=len(ids))
    assert tokens == len(ids) - 1
    own = float(model.vl_model(input_ids=ids[None], labels=ids[None]).loss)
    assert found == pytest.approx(math.exp(own), rel=1e-4)


def test_the_cost_of_no_change_is_nothing(vl: str, tmp_path: Path, monkeypatch, plain_text: Path) -> None:
    for name in ("untrained", "trained"):
        torch.manual_seed(0)
        model = Qwen3VLWith3DBranch(vl, latent_dim=8)
        model.add_lora(r=2)
        for key, value in model.vl_model.named_parameters():
            if name == "trained" and "lora_B" in key:
                torch.nn.init.normal_(value)
        model.save_lora(tmp_path / name)
    adapters = [f"--lora={name}={tmp_path / name}" for name in ("untrained", "trained")]
    command = ["plain_text_cost.py", *adapters, "--records", str(plain_text), "--vl_model", vl]
    monkeypatch.setattr(sys, "argv", [*command, "--device", "cpu", "--out", str(tmp_path)])
    monkeypatch.setattr(plain_text_cost, "docstrings", lambda: "A chair with four legs. " * 9)
    plain_text_cost.main()
    rows = json.loads((tmp_path / "plain_text_cost.json").read_text())["cpu"]["rows"]
    assert rows["untrained"] == pytest.approx(rows["no adapter"])
    assert rows["trained"] == rows["no adapter"]  # it is off where there is no object
    assert rows["trained, at work"]["perplexity"] > rows["no adapter"]["perplexity"] * 1.01


def test_the_text_that_every_machine_has() -> None:
    prose = plain_text_cost.docstrings()
    assert 60_000 < len(prose) < 120_000
    assert "Command-line parsing library" in prose
