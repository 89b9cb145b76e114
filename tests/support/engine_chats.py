"""Chats about shapes for the tests of the engine, and what a model answers them alone."""

from __future__ import annotations

import torch

from vae_qwen3vl.generation.answer import Sampling
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import codebook_vectors


def chat(*content):
    parts = []
    for part in content:
        if part is None:
            parts.append({"type": "3d"})
        elif isinstance(part, str):
            parts.append({"type": "text", "text": part})
        else:
            parts.append({"type": "image", "image": part})
    return [{"role": "user", "content": parts}]


def alone(model, processor, messages, objects, **settings):
    """What the model itself generates, token for token."""
    shapes = {}
    if objects:
        shapes["feats_3d"] = codebook_vectors(torch.cat([o.codes for o in objects]), model.vae_model)
        shapes["coords_3d"] = joined_coords([o.coords for o in objects])
    ids = model.generate(**processor([messages], objects=0), **shapes, do_sample=False, **settings)
    return ids[0].tolist()


def submitted(engine, shapes):
    """Ask all chats twice, for answers of three lengths, and wait for them.

    Each chat's messages, its objects, its length, its answer and the answer's text.
    """
    asked = chats(shapes) * 2
    lengths = [5 + 7 * (number % 3) for number in range(len(asked))]
    answers = [
        engine.submit(messages, objects, Sampling(max_new_tokens=length))
        for (messages, objects), length in zip(asked, lengths, strict=True)
    ]
    texts = [answer.text() for answer in answers]
    return [(*one, *rest) for one, *rest in zip(asked, lengths, answers, texts, strict=True)]


def chats(shapes):
    a, b, c, d = shapes
    return [
        (chat(None, "Describe this."), [b]),
        (chat("only words"), []),
        (chat(None, "and", None, "which is it?"), [d, a]),
        (chat(None, "A chair?"), [c]),
        (
            [
                *chat(None, "What is it?"),
                {"role": "assistant", "content": "a robot."},
                *chat("With four legs?"),
            ],
            [b],
        ),
        (chat("x"), []),
    ]
