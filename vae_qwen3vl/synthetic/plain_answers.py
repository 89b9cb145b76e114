"""A language model's own answers to everyday questions, and the file of them that training keeps it to.

Knows prompts and generation; what training does with the file is in `data.plain_text`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdf_vqvae.utils.files import write_json_lines
from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.synthetic.plain_prompts import plain_prompts

if TYPE_CHECKING:
    from vae_qwen3vl.model import Qwen3VLWith3DBranch
    from vae_qwen3vl.processor import Processor3D

MAX_NEW_TOKENS = 96


_AS_IT_IS: dict[str, Any] = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}
"""For `generate`: samples of the model's own distribution, whatever its checkpoint recommends."""


_MOST_TRIES = 8
"""Prompts asked for an answer wanted, before the program gives up."""


@dataclass(frozen=True, kw_only=True)
class PlainTextReport:
    """What became of the questions."""

    texts: int
    asked: int
    unfinished: int
    """Answers left out because they had not ended."""


def write_plain_text(
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    path: Path,
    count: int,
    *,
    split: str = "train",
    seed: int = 0,
    batch_size: int = 32,
) -> PlainTextReport:
    """Write `count` questions with the model's own answers as JSON lines; fewer if it hardly ends any.

    The same model, device, seed and batch size write the same file, in one go or in several: every batch of answers
    is appended to `path` with `.part` behind it, and what is there is not asked again. Prompts come in random order,
    and again with other answers after all were asked. Empty and repeated answers are left out too.

    Args:
        model: without adapters, in evaluation mode.
        processor: of its tokenizer.
        path: file to write; it appears when all is done.
        count: texts wanted.
        split: of the prompts: `train`, or `held_out` to measure with.
        seed: of prompts and answers.
        batch_size: prompts that are answered together.

    Raises:
        ValueError: the part that is there was asked with other settings.
    """
    settings = {"vl_model": model.vl_label, "split": split, "seed": seed, "batch_size": batch_size}
    part = path.with_name(path.name + ".part")
    earlier = _read_part(part, settings)
    pairs: dict[tuple[str, str], None] = {}
    asked = unfinished = 0
    batches = enumerate(_prompt_batches(plain_prompts(split), seed, batch_size))
    with (
        Progress(count, "answers", "answer") as progress,
        part.open("a", encoding="utf-8") as file,
    ):
        while len(pairs) < count and asked < _MOST_TRIES * count:
            number, prompts = next(batches)
            if number < len(earlier):
                answers = earlier[number]
            else:
                torch.manual_seed((seed << 32) + number)  # the same answers whichever run asked those before
                answers = own_answers(model, processor, prompts)
                file.write(json.dumps(answers, ensure_ascii=False) + "\n")
                file.flush()
            asked += len(prompts)
            for prompt, answer in zip(prompts, answers, strict=True):
                unfinished += answer is None
                if answer and len(pairs) < count:
                    pairs[prompt, answer] = None
            progress.update(len(pairs) - progress.done)
    texts = ({"question": prompt, "answer": answer} for prompt, answer in pairs)
    write_json_lines(path, texts, ensure_ascii=False)
    part.unlink()
    return PlainTextReport(texts=len(pairs), asked=asked, unfinished=unfinished)


def _read_part(part: Path, settings: dict[str, Any]) -> list[list[str | None]]:
    """Return the answers of each batch of an earlier run, and leave a file to which the next ones can be appended."""
    text = part.read_text(encoding="utf-8", errors="replace") if part.is_file() else ""
    whole = [json.loads(line) for line in text.split("\n")[:-1]]  # a killed run may have left half a line behind them
    if whole and whole[0] != settings:
        raise ValueError(f"{part} was begun with {whole[0]}, not {settings}: give those again, or delete it")
    write_json_lines(part, [settings, *whole[1:]], ensure_ascii=False)
    return whole[1:]


def own_answers(
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str | None]:
    """Sample an answer to each prompt; None for one that has not ended. Draws from torch's random numbers."""
    inputs = processor(list(prompts), objects=0, padding_side="left")
    ids = model.generate(**inputs, max_new_tokens=max_new_tokens, **_AS_IT_IS)
    ends = model.vl_model.generation_config.eos_token_id
    ended = torch.isin(ids, torch.tensor(ends, device=ids.device)).any(1).tolist()
    return [answer if over else None for answer, over in zip(processor.decode(ids), ended, strict=True)]


def _prompt_batches(prompts: list[str], seed: int, size: int) -> Iterator[list[str]]:
    """Yield batches for ever, in a new random order after all prompts were asked."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(prompts), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield [prompts[i] for i in order[start : start + size]]
