"""How likely a language model finds each of many answers about each object: for ranking closed sets and retrieval.

A prompt with its shape is read once; all answers are then read behind it, beginnings they share once. Knows the model
and its processor; nothing of measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.evaluation.answer_tree import AnswerTree, groups_alike
from vae_qwen3vl.evaluation.objects import EvalData, EvalObject
from vae_qwen3vl.language.backbone import kept_cache, name_cache
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL, Processor3D

_MOST_LOGITS = {"cuda": 3_000_000_000, "cpu": 40_000_000}
"""Values of the vocabulary's logits that are held at a time."""
_MOST_TOKENS = 1024
"""Tokens of answers that are read together behind a prompt; attention among them grows by the square."""


@torch.no_grad()
def answer_likelihoods(
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
        describe: what the progress is called; None shows none.

    Raises:
        ValueError: the lists don't fit together.
    """
    if len(objects) != len(prompts) or not answers:
        raise ValueError(f"{len(objects)} objects, {len(prompts)} prompts and {len(answers)} answers")
    replies = [_reply(processor, answer) for answer in answers]
    trees: dict[int, list[tuple[list[int], AnswerTree]]] = {}  # by the tokens that are read together
    scores = np.zeros((len(objects), len(answers)))
    with Progress(len(objects), describe or "", shown=describe is not None) as progress:
        for numbers in batches_alike(objects, batch_size):
            cache, mask, last, first = _read_prompts(
                model, processor, data, [objects[n] for n in numbers], [prompts[n] for n in numbers]
            )
            most = _most_tokens(len(numbers), first.shape[-1], model.device)
            if most not in trees:
                groups = groups_alike(replies, most)
                trees[most] = [(chosen, AnswerTree.of([replies[i] for i in chosen])) for chosen in groups]
            for chosen, tree in trees[most]:
                likelihoods = _read_tree(model, cache, mask, last, first, tree)
                scores[np.ix_(numbers, chosen)] = likelihoods.double().cpu().numpy()
            progress.update(len(numbers))
    return scores


def _reply(processor: Processor3D, answer: str) -> list[int]:
    """Return the tokens of an answer as training supervises them."""
    text = processor("?", answer, objects=0)
    ids, labels = text["input_ids"][0], text["labels"][0]
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


def _most_tokens(rows: int, vocabulary: int, device: torch.device) -> int:
    """Return how many tokens of answers are read together behind each of `rows` prompts."""
    values = _MOST_LOGITS["cuda" if device.type == "cuda" else "cpu"]
    return max(1, min(_MOST_TOKENS, values // (rows * vocabulary)))


def _read_tree(
    model: Qwen3VLWith3DBranch, cache: Any, mask: Tensor, last: Tensor, first: Tensor, tree: AnswerTree
) -> Tensor:  # [B, R]
    """Return the log-likelihood of each answer behind each prompt; the cache is as it was when this returns."""
    rows, device = len(mask), mask.device
    places, targets = tree.places.to(device), tree.targets.to(device)
    likelihoods = first[:, targets]  # [B, E]
    if len(tree.tokens):
        count = len(tree.tokens)
        visible = torch.cat(
            [mask.bool()[:, None].expand(-1, count, -1), tree.visible.to(device).expand(rows, -1, -1)], dim=2
        )  # [B, N, P + N]
        dtype = model.vl_model.dtype
        unseen = torch.zeros(visible.shape, dtype=dtype, device=device)
        unseen = unseen.masked_fill(~visible, torch.finfo(dtype).min)[
            :, None
        ]  # [B, 1, N, P + N], added to the scores
        positions = (last[:, None] + tree.depths.to(device)).expand(3, -1, -1)
        behind = name_cache(model.vl_model, {"past_key_values": cache})
        ids = tree.tokens.to(device).expand(rows, -1)
        logits = model.vl_model(input_ids=ids, attention_mask=unseen, position_ids=positions, **behind).logits.float()
        cache.crop(-count)
        node = (places - 1).clamp(min=0)
        later = logits[:, node, targets] - logits.logsumexp(-1)[:, node]
        likelihoods = torch.where(places == 0, likelihoods, later)
    total = torch.zeros(rows, tree.answers, dtype=likelihoods.dtype, device=device)
    return total.index_add(1, tree.replies.to(device), likelihoods)
