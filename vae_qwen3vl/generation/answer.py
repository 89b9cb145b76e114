"""One answer while it is being written: how its tokens are drawn, its text in pieces, and when it ends.

Threads write it and threads or event loops read it. Knows tokens and text; knows nothing of models or shapes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vae_qwen3vl.answer_confidence import Calibration

FinishReason = Literal["stop", "length", "cancelled", "error"]
_MOST_STOPS = 4
_GREEDY = 0.01
"""Below this temperature all but the likeliest token would round to nothing."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn, by the names of OpenAI's interface."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    """Below 0.01 the likeliest token is taken."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that have this probability together."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int | None = None
    """Of the draw; None draws anew each time."""

    def __post_init__(self) -> None:
        """Check every value; the message names it."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be 1 or more, not {self.max_new_tokens}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be from 0 to 2, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if len(self.stop) > _MOST_STOPS or not all(self.stop):
            raise ValueError(f"stop must be at most {_MOST_STOPS} texts, none of them empty")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be a 64-bit number, not {self.seed}")

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return what the draw begins with, None where nothing is drawn."""
        if self.temperature < _GREEDY:
            return None
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def draw(self, logits: Tensor, generator: torch.Generator | None) -> int:
        """Return one token from logits `[V]`."""
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        if generator is None:
            return int(logits.argmax())
        nothing = torch.empty((1, 0), dtype=torch.long, device=logits.device)
        scores = TemperatureLogitsWarper(self.temperature)(nothing, logits[None].float())
        if self.top_p < 1:
            scores = TopPLogitsWarper(self.top_p)(nothing, scores)
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=generator))


class PieceWriter:
    """Turns tokens into pieces of text, as soon as their characters are whole and no stop text can begin in them.

    White space before and behind the answer is left out.

    Args:
        tokenizer: a fast tokenizer of transformers.
        stop: texts that end the answer.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...] = ()) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self._begun = False
        self.stopped = False

    def write(self, token: int) -> str:
        """Take a token and return the text that is certain now; `stopped` tells whether a stop text was met."""
        self._held += self._stream.step(self._tokenizer, token) or ""
        if not self._begun:
            self._held = self._held.lstrip()
        ends = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if ends:
            self.stopped = True
            piece, self._held = self._held[: min(ends)].rstrip(), ""
            return piece
        sure = len(self._held) - max((_overlap(self._held, text) for text in self._stop), default=0)
        sure = len(self._held[:sure].rstrip())
        piece, self._held = self._held[:sure], self._held[sure:]
        self._begun = self._begun or bool(piece)
        return piece

    def rest(self) -> str:
        """Return what was held back, at the end."""
        piece, self._held = self._held.rstrip(), ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Return how many of the last characters of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class Answer:
    """An answer that is being written: iterate over its pieces of text, in a thread or in an event loop.

    Args:
        prompt_tokens: how many tokens the chat has, those of shapes among them.
        tokens_3d: how many of them are of shapes, markers not counted.
        calibration: of answers to this question; None where there is none.
    """

    def __init__(self, prompt_tokens: int = 0, tokens_3d: int = 0, *, calibration: Calibration | None = None) -> None:
        self.prompt_tokens, self.tokens_3d, self.calibration = prompt_tokens, tokens_3d, calibration
        self.cached_tokens = 0
        """Of the prompt's tokens, how many had been computed for another chat."""
        self.token_ids: list[int] = []
        """What was drawn so far, without the token that ends it."""
        self.probabilities: list[float] = []
        """The model's, at temperature 1, of each token that was drawn, the one that ends it among them."""
        self.completion_tokens = 0
        self.finish_reason: FinishReason | None = None
        """None while it is being written."""
        self.error: Exception | None = None
        self.cancelled = False
        self._pieces: deque[str] = deque()
        self._changed = threading.Condition()
        self._wake: Callable[[], object] | None = None

    @property
    def mean_probability(self) -> float | None:
        """Mean of the drawn tokens' probabilities, None before there are any."""
        return sum(self.probabilities) / len(self.probabilities) if self.probabilities else None

    @property
    def confidence(self) -> float | None:
        """Probability that the answer is right; None where that is not known of such answers."""
        mean = self.mean_probability
        return None if mean is None or self.calibration is None else self.calibration.probability(mean)

    def cancel(self) -> None:
        """Ask for the end; what was written stays. Nothing happens where it has ended."""
        self.cancelled = True

    def text(self) -> str:
        """Wait for the end and return the pieces that were not taken yet, joined.

        Raises:
            Exception: what went wrong while it was written.
        """
        return "".join(self)

    def __iter__(self) -> Iterator[str]:
        """Yield pieces of text as they come; raise what went wrong while they were written."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pieces or self.finish_reason)
                piece = self._pieces.popleft() if self._pieces else None
            if piece is None:
                break
            yield piece
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield pieces of text as they come, without a thread that waits."""
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: loop.call_soon_threadsafe(event.set)
        while True:
            event.clear()
            with self._changed:
                piece = self._pieces.popleft() if self._pieces else None
                ended = self.finish_reason is not None
            if piece is not None:
                yield piece
            elif ended:
                break
            else:
                await event.wait()
        if self.error is not None:
            raise self.error

    def add(self, piece: str) -> None:
        """Write a piece of text; for the engine."""
        if piece:
            with self._changed:
                self._pieces.append(piece)
                self._tell()

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End the answer; for the engine."""
        with self._changed:
            self.finish_reason, self.error = reason, error
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            try:
                self._wake()
            except RuntimeError:  # the event loop that read it is closed
                self._wake = None
