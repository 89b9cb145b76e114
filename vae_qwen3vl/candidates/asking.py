"""Asks a model for candidates: the likeliest answer and others that are drawn, all behind one reading of the shape.

The engine computes what chats begin alike with once, so that many draws about one shape cost one reading of it and a
step of the batch for each token.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sdf_vqvae.codes.shape_codes import ShapeCodes
from vae_qwen3vl.candidates.choice import Choice
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.candidates.settings import CandidateSettings
from vae_qwen3vl.describer import Description
from vae_qwen3vl.generation.answer import Answer, Sampling
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import DEFAULT_PROMPT, Message, Processor3D

if TYPE_CHECKING:  # it needs transformers
    from vae_qwen3vl.generation.engine import Engine


def samplings(settings: CandidateSettings, likeliest: Sampling) -> list[Sampling]:
    """Return how each candidate is drawn: the likeliest one first, then those with seeds of their own."""
    seeds = range(settings.candidate_seed, settings.candidate_seed + settings.candidates)
    return [likeliest, *(replace(likeliest, temperature=settings.candidate_temperature, seed=seed) for seed in seeds)]


def submit_candidates(
    engine: Engine,
    messages: Sequence[Message],
    objects: Sequence[ShapeCodes],
    settings: CandidateSettings,
    likeliest: Sampling,
) -> list[Answer]:
    """Have a chat answered in several ways; arguments and errors as for `Engine.submit`."""
    return [engine.submit(messages, objects, sampling) for sampling in samplings(settings, likeliest)]


class BestAnswer(Answer):
    """The best of several answers that are being written, as one that is written when all of them are there.

    Args:
        answers: the likeliest first.
        chooser: takes one of them.
        shape: what they are about; None where they are about no shape or several.
    """

    def __init__(self, answers: Sequence[Answer], chooser: Chooser, shape: ShapeCodes | None) -> None:
        super().__init__(answers[0].prompt_tokens, answers[0].tokens_3d)
        self._answers, self._chooser, self._shape = answers, chooser, shape

    def start(self) -> None:
        """Begin to wait for them, in a thread of its own."""
        threading.Thread(target=self._take, name="best answer", daemon=True).start()

    def cancel(self) -> None:
        """Ask for the end of all of them."""
        super().cancel()
        for answer in self._answers:
            answer.cancel()

    def _take(self) -> None:
        try:
            texts = [answer.text() for answer in self._answers]
            self.completion_tokens = sum(answer.completion_tokens for answer in self._answers)
            self.cached_tokens = self._answers[0].cached_tokens
            if self.cancelled:
                self.finish("cancelled")
                return
            choice = self._chooser.choose(texts, self._shape)
        except (RuntimeError, ValueError, MemoryError) as error:
            self.finish("error", error)
            return
        self.add(choice.text)
        taken = self._answers[choice.place] if choice.place < len(self._answers) else self._answers[0]
        self.probabilities = taken.probabilities
        self.finish(taken.finish_reason or "stop")


def describe_by_choice(
    model: Qwen3VLWith3DBranch,
    codes: ShapeCodes,
    chooser: Chooser,
    prompt: str | None = None,
    *,
    max_new_tokens: int = 64,
) -> tuple[Description, Choice]:
    """Answer a prompt about one object with the best of several candidates; return it, and what it was chosen from.

    Args:
        model: of `load_describer`, with the tokenizer the codes were made with.
        codes: the object.
        chooser: among how many, and by what.
        prompt: None takes the one the projector was trained with.
        max_new_tokens: length of the answer.

    Raises:
        ValueError: the codes are another tokenizer's, or prompt and answer don't fit into the language model.
    """
    from vae_qwen3vl.generation.engine import Engine

    processor = Processor3D.from_pretrained(model.model_name_or_path)
    asked = prompt or model.prompt or DEFAULT_PROMPT
    messages = [{"role": "user", "content": [{"type": "3d"}, {"type": "text", "text": asked}]}]
    many = chooser.settings.candidates + 1
    with Engine(model, processor, max_batch=many, max_waiting=many, prefix_tokens=0) as engine:
        likeliest = Sampling(max_new_tokens=max_new_tokens)
        answers = submit_candidates(engine, messages, [codes], chooser.settings, likeliest)
        for answer in answers:
            answer.text()
    choice = chooser.choose(processor.decode([answer.token_ids for answer in answers]), codes)
    return Description(text=choice.text, prompt=asked, tokens_3d=answers[0].tokens_3d), choice
