"""How likely a language model finds each of many answers about each object: for ranking closed sets and retrieval.

A prompt with its shape is read once; the answers are then read behind it from the cache. Knows the model and its
processor; nothing of measures.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vae_qwen3vl.eval_objects import EvalData, EvalObject
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL, Processor3D
from vae_qwen3vl.vl_backbone import kept_cache, name_cache

_MOST_LOGITS = {"cuda": 3_000_000_000, "cpu": 40_000_000}
"""Values of the vocabulary's logits that are held at a time."""
_MOST_CACHE = {"cuda": 24_000_000_000, "cpu": 1_000_000_000}
"""Bytes of the key-value cache that are held at a time: every answer reads its prompt from a copy."""


@torch.no_grad()
def answer_scores(
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    data: EvalData,
    objects: Sequence[EvalObject | None],
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int = 16,
    describe: str | None = None,
) -> npt.NDArray[np.float64]:
    """Return the log-likelihood of every answer, end of turn included, for every object. `[objects, answers]`

    Args:
        model: in evaluation mode.
        processor: of its tokenizer.
        data: whose codebook the objects' codes are of.
        objects: the shapes; None asks without any.
        prompts: the question to each object. `[objects]`
        answers: the candidates, without repeats.
        batch_size: objects whose prompts are read together.
        describe: name of a progress bar; None shows none.

    Raises:
        ValueError: the lists don't fit together.
    """
    from tqdm import tqdm

    if len(objects) != len(prompts) or not answers:
        raise ValueError(f"{len(objects)} objects, {len(prompts)} prompts and {len(answers)} answers")
    replies = [_reply(processor, answer) for answer in answers]
    by_length = sorted(range(len(replies)), key=lambda i: len(replies[i]))
    scores = np.zeros((len(objects), len(answers)))
    bar = tqdm(total=len(objects), desc=describe, unit="object", disable=True if describe is None else None)
    with bar:
        for numbers in batches_alike(objects, batch_size):
            cache, mask, last, first = _read_prompts(
                model, processor, data, [objects[n] for n in numbers], [prompts[n] for n in numbers]
            )
            most = _most_answers(cache, model.device)
            for chosen in _chunks(by_length, replies, len(numbers), first.shape[-1], model.device, most):
                found = _read_replies(model, cache, mask, last, first, [replies[i] for i in chosen])
                scores[np.ix_(numbers, chosen)] = found.double().cpu().numpy()
            bar.update(len(numbers))
    return scores


def _reply(processor: Processor3D, answer: str) -> list[int]:
    """Return the tokens of an answer as training supervises them."""
    made = processor("?", answer, objects=0)
    ids, labels = made["input_ids"][0], made["labels"][0]
    return [int(token) for token in ids[labels != IGNORED_LABEL]]


def batches_alike(objects: Sequence[EvalObject | None], size: int) -> Iterator[list[int]]:
    """Yield numbers of objects in batches of similar length, with and without shapes apart."""
    for there in (True, False):
        numbers = [n for n, one in enumerate(objects) if (one is not None) == there]
        numbers.sort(key=lambda n: 0 if objects[n] is None else len(objects[n].codes))  # type: ignore[union-attr]
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _read_prompts(
    model: Qwen3VLWith3DBranch,
    processor: Processor3D,
    data: EvalData,
    objects: Sequence[EvalObject | None],
    prompts: Sequence[str],
) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Return cache, mask `[B, P]`, last positions `[B]` and the log-probabilities of the next token `[B, V]`."""
    shapes = [one for one in objects if one is not None]
    text = processor(list(prompts), objects=1 if shapes else 0, padding_side="left")
    feats, coords = data.batch(shapes) if shapes else (None, None)
    inputs = model.build_inputs(**text, feats_3d=feats, coords_3d=coords, padding_side="left")
    out = model.vl_model(**inputs.model_kwargs(), use_cache=True, logits_to_keep=1)
    first = out.logits[:, -1].float().log_softmax(-1)
    return kept_cache(out), inputs.attention_mask, inputs.position_ids[0, :, -1], first


def _most_answers(cache: Any, device: torch.device) -> int:
    """Return how many answers may read copies of a cache at the same time."""
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    return max(1, _MOST_CACHE["cuda" if device.type == "cuda" else "cpu"] // held)


def _chunks(
    order: Sequence[int],
    replies: Sequence[Sequence[int]],
    rows: int,
    vocabulary: int,
    device: torch.device,
    most_replies: int,
) -> Iterator[list[int]]:
    """Yield numbers of replies whose logits and caches fit together, of similar length."""
    most = _MOST_LOGITS["cuda" if device.type == "cuda" else "cpu"]
    chunk: list[int] = []
    for number in order:
        values = (len(chunk) + 1) * rows * len(replies[number]) * vocabulary
        if chunk and (values > most or len(chunk) == most_replies):
            yield chunk
            chunk = []
        chunk.append(number)
    if chunk:
        yield chunk


def _read_replies(
    model: Qwen3VLWith3DBranch, cache: Any, mask: Tensor, last: Tensor, first: Tensor, replies: Sequence[list[int]]
) -> Tensor:  # [B, C]
    """Return the log-likelihood of each reply behind each prompt."""
    rows, count = len(mask), len(replies)
    longest = max(len(reply) for reply in replies)
    ids = torch.tensor([reply + [0] * (longest - len(reply)) for reply in replies], device=mask.device)  # [C, L]
    real = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in replies], device=mask.device)
    total = first[:, ids[:, 0]]  # [B, C]
    if longest == 1:
        return total
    grown = copy.deepcopy(cache)
    grown.batch_repeat_interleave(count)
    read = ids[:, :-1].repeat(rows, 1)  # [B * C, L - 1]
    whole = torch.cat([mask.repeat_interleave(count, 0), real[:, :-1].repeat(rows, 1)], dim=1)
    steps = torch.arange(1, longest, device=mask.device)
    positions = (last.repeat_interleave(count)[:, None] + steps).expand(3, -1, -1)
    behind = name_cache(model.vl_model, {"past_key_values": grown})
    out = model.vl_model(input_ids=read, attention_mask=whole, position_ids=positions, **behind)
    losses = torch.nn.functional.cross_entropy(
        out.logits.float().transpose(1, 2), ids[:, 1:].repeat(rows, 1), reduction="none"
    )  # [B * C, L - 1]
    return total - (losses * real[:, 1:].repeat(rows, 1)).sum(1).view(rows, count)
