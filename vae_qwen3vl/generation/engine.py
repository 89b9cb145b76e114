"""Many chats about shapes at once on one language model: continuous batching.

A chat joins the batch between two steps and leaves it when its answer ends, so nobody waits for the longest answer.
Transformers' own continuous batching takes token ids alone; chats about shapes are embeddings with positions of
their own. Chats that begin like one that ended (the next turn, another question about the same shape), or like one
that is being answered (another draw), reuse its keys and values. Knows the model's embeddings and forward; knows
nothing of HTTP or of meshes.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdf_vqvae.codes.shape_codes import ShapeCodes, check_codes
from sdf_vqvae.utils.errors import is_out_of_memory
from vae_qwen3vl.answer_confidence import Calibration
from vae_qwen3vl.generation.answer import Answer, FinishReason, PieceWriter, Sampling
from vae_qwen3vl.generation.graphs import Graphs, Results, few_sizes, read
from vae_qwen3vl.generation.kv_cache import Identity, PrefixStore, SlotCache, power_of_two, same_beginning
from vae_qwen3vl.inputs import BranchInputs
from vae_qwen3vl.language.adapted_rows import Rows, adapters_in, can_be_left_out
from vae_qwen3vl.language.backbone import name_cache, text_layers, without_wrapper
from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Message, Processor3D
from vae_qwen3vl.sequence_3d import joined_coords, object_counts
from vae_qwen3vl.vae_latent_extractor import codebook as codebook_of
from vae_qwen3vl.vae_latent_extractor import look_up

logger = logging.getLogger(__name__)

_MOST_RANKS = 2**20
"""Tokens an object has at most, as far as `Identity` can tell them apart."""
_MOST_OBJECTS = 2**16
_UNTOUCHED = 2**32
"""Added to the tokens of chats without adapters in `Identity`: their keys are others."""
_IMAGES = ("pixel_values", "image_grid_thw")
_WIDTHS = 32
"""Of new chats multiples of so many places are computed: libraries keep a kernel, with its memory, for each width."""

_GRAPH_WIDTHS, _GRAPH_PLACES, _WIDEST_GRAPH = 64, 256, 1024
"""Of a chat that is a graph likewise, and of what it reads; a wider chat keeps a GPU busy as it is written."""
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All kernels of attention but cuDNN's, which plans for a fraction of a second for each new length."""


class QueueFullError(RuntimeError):
    """Too many chats wait already; try again later."""


class TooManyAtOnceError(MemoryError):
    """Memory ran out with several answers at a time; fewer may fit."""

    def __init__(self, answers: int) -> None:
        super().__init__(f"memory ran out with {answers} answers at a time")
        self.answers = answers


class ClosedError(RuntimeError):
    """The engine takes no chats any more."""


@dataclass(frozen=True, kw_only=True)
class EngineLoad:
    """What an engine does and has done."""

    waiting: int
    active: int
    answers: int
    """Answers that ended."""
    prompt_tokens: int
    """Tokens of chats that were computed."""
    cached_tokens: int
    """Tokens of chats that were taken from chats before."""
    completion_tokens: int
    steps: int


@dataclass(kw_only=True)
class _Chat:
    """A chat that waits or is in the batch."""

    answer: Answer
    sampling: Sampling
    writer: PieceWriter
    embeds: Tensor
    """`[S, H]`."""
    positions: Tensor
    """int64 `[3, S]`."""
    identity: Identity | None
    """None where it can't be told, as for images."""
    images: dict[str, Tensor]
    generator: torch.Generator | None
    adapted: bool
    """Whether adapters are at work in it: it has an object."""
    length: int = 0
    """Places in the cache."""
    position: int = 0
    """Of the next token."""


class Engine:
    """Answers chats about shapes, as many at a time as there are.

    Args:
        model: a language model with its 3D branch and its tokenizer of shapes, in evaluation mode.
        processor: writes its chats.
        codebook: `[K, D]` of the tokenizer that codes come from, where the model has none with it: whoever asks has
            checked then that they do.
        max_batch: chats that are answered at a time.
        max_waiting: chats that may wait; one more is refused.
        max_length: places of a chat with its answer; None takes what the language model was made for.
        prefill_tokens: places of new chats that are computed between two steps of the others, at least one chat.
        prefix_tokens: places of chats that ended whose keys and values are kept.
        graphs: on a GPU, launch the kernels of a step at once; False computes every step as it is written.

    Raises:
        ValueError: the language model has layers that look at a part of the sequence only.
    """

    def __init__(
        self,
        model: Qwen3VLWith3DBranch,
        processor: Processor3D,
        *,
        codebook: Tensor | None = None,
        max_batch: int = 32,
        max_waiting: int = 256,
        max_length: int | None = None,
        prefill_tokens: int = 2048,
        prefix_tokens: int = 8192,
        graphs: bool = True,
    ) -> None:
        base = without_wrapper(model.vl_model)
        text_config = base.config.get_text_config()
        if "sliding_attention" in (getattr(text_config, "layer_types", None) or ()):
            raise ValueError("the engine needs a language model whose layers all look at the whole sequence")
        self.model, self.processor = model, processor
        self.max_batch, self.max_waiting, self.prefill_tokens = max_batch, max_waiting, prefill_tokens
        self.max_length = max_length or int(text_config.max_position_embeddings)
        self._codebook = codebook_of(model.vae_model).detach() if codebook is None else codebook
        self._base: Any = base
        ends = base.generation_config.eos_token_id
        tokenizer_end = processor.tokenizer.eos_token_id
        self._ends = {*(ends if isinstance(ends, list) else [ends]), tokenizer_end} - {None}
        self._layers = len(list(text_layers(model.vl_model)))
        (self._cache_name,) = name_cache(base.model, {"past_key_values": None})
        self._apart = can_be_left_out(model.vl_model)
        self._on_graphs = graphs and _fits_graphs(base)
        self._empty()
        self._prefixes = PrefixStore(prefix_tokens)
        self._objects: dict[bytes, int] = {}
        self._numbers = itertools.count()
        self._waiting: deque[_Chat] = deque()
        self._active: list[_Chat] = []
        self._changed = threading.Condition()
        self._building = threading.Lock()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._counts = dict.fromkeys(("answers", "prompt_tokens", "cached_tokens", "completion_tokens", "steps"), 0)

    def __enter__(self) -> Engine:
        """Start."""
        self.start()
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Finish what runs, or cancel it after an error."""
        self.close(finish=error is None)

    def start(self) -> None:
        """Begin to answer, in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
            self._thread.start()

    def close(self, finish: bool = True) -> None:
        """Take no more chats, and wait until those that there are have their answers, or cancel them."""
        with self._changed:
            self._closing = True
            if not finish:
                for chat in (*self._waiting, *self._active):
                    chat.answer.cancel()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def load(self) -> EngineLoad:
        """Return what the engine does and has done."""
        with self._changed:
            return EngineLoad(waiting=len(self._waiting), active=len(self._active), **self._counts)

    def submit(
        self, messages: Sequence[Message], objects: Sequence[ShapeCodes] = (), sampling: Sampling | None = None
    ) -> Answer:
        """Take a chat and return its answer, which is written from now on. Any thread may call it.

        Args:
            messages: see `Processor3D`; the assistant's turn is next.
            objects: the shapes of its "3d" parts, in their order.
            sampling: how the answer is drawn; the likeliest tokens by default.

        Raises:
            QueueFullError: `max_waiting` chats wait already.
            ClosedError: the engine is closed.
            ValueError: the chat can't be read, or is too long.
        """
        self._check_open()
        with self._building:
            chat = self._chat(messages, objects, sampling or Sampling())
        with self._changed:
            self._check_open()
            self._waiting.append(chat)
            self._changed.notify_all()
        return chat.answer

    def _check_open(self) -> None:
        if self._closing:
            raise ClosedError("the engine is closing and takes no more chats")
        if len(self._waiting) >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} chats wait already; try again in a while")

    @torch.inference_mode()
    def _chat(self, messages: Sequence[Message], objects: Sequence[ShapeCodes], sampling: Sampling) -> _Chat:
        encoded: dict[str, Any] = self.processor([list(messages)], objects=0)
        places = int((encoded["input_ids"] == PLACEHOLDER_3D).sum())
        if places != len(objects):
            raise ValueError(f"the chat has {places} 3d parts, but {len(objects)} shapes were given")
        shapes: dict[str, Any] = {}
        if objects:
            for codes in objects if self.model.vae_model is not None else ():
                check_codes(self.model.vae_model, codes)
            shapes["feats_3d"] = look_up(torch.cat([o.codes for o in objects]), self._codebook)
            shapes["coords_3d"] = joined_coords([o.coords for o in objects])
        images = {name: encoded.pop(name) for name in _IMAGES if name in encoded}
        grid = {"image_grid_thw": images["image_grid_thw"]} if images else {}
        inputs = self.model.build_inputs(**encoded, **shapes, **grid)
        length = inputs.inputs_embeds.shape[1]
        if length + sampling.max_new_tokens > self.max_length:
            raise ValueError(
                f"the chat has {length} tokens, {len(inputs.tokens_3d.coords)} of them of shapes, and an answer of "
                f"up to {sampling.max_new_tokens} doesn't fit into this model's {self.max_length}: shorten either"
            )
        device = inputs.inputs_embeds.device
        adapted = bool(objects) or not self._apart
        return _Chat(
            answer=Answer(length, len(inputs.tokens_3d.coords), calibration=self._calibration(messages)),
            sampling=sampling,
            writer=PieceWriter(self.processor.tokenizer, sampling.stop),
            embeds=inputs.inputs_embeds[0],
            positions=inputs.position_ids[:, 0],
            identity=None if images else self._identity(encoded["input_ids"][0], inputs, objects, adapted),
            images={name: value.to(device) for name, value in images.items()},
            generator=sampling.generator(device),
            adapted=adapted,
        )

    def _calibration(self, messages: Sequence[Message]) -> Calibration | None:
        """Return the model's calibration where a chat asks of one object what it was fitted on."""
        known = self.model.calibration
        if known is None or len(messages) != 1 or isinstance(messages[0]["content"], str):
            return None
        asked = sorted((part["type"], part.get("text", "").strip()) for part in messages[0]["content"])
        return known if asked == [("3d", ""), ("text", known.prompt.strip())] else None

    def _identity(
        self, ids: Tensor, inputs: BranchInputs, objects: Sequence[ShapeCodes], adapted: bool
    ) -> Identity:  # [S]
        """Return the text's ids, and for each place of a shape a negative number that no other shape's place has."""
        counts = object_counts(inputs.tokens_3d.coords).tolist() if objects else []
        parts: list[Identity] = []
        at = 0
        rows = ids.numpy()
        for place, codes, count in zip(np.flatnonzero(rows == PLACEHOLDER_3D), objects, counts, strict=True):
            number = self._number(codes)
            parts += [rows[at:place], -1 - (number * _MOST_RANKS + np.arange(count + 2))]
            at = place + 1
        return np.concatenate([*parts, rows[at:]]).astype(np.int64) + (0 if adapted else _UNTOUCHED)

    def _number(self, codes: ShapeCodes) -> int:
        """Return a number that this shape alone has."""
        digest = hashlib.sha256(codes.codes.numpy().tobytes() + codes.coords.numpy().tobytes()).digest()
        if len(self._objects) >= _MOST_OBJECTS:
            self._objects.clear()
        if digest not in self._objects:
            self._objects[digest] = next(self._numbers)
        return self._objects[digest]

    # -- the engine's thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._answer_all()
        finally:  # whoever waits for an answer is told, should a defect end the thread
            with self._changed:
                self._closing = True
                left = [*self._waiting, *self._active]
            for chat in left:
                self._end(chat, "error", ClosedError("the engine has ended; what it wrote last says why"))

    @torch.inference_mode()
    def _answer_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._active or self._closing)
                if not self._waiting and not self._active:
                    return
            self._leave_cancelled()
            self._guarded(self._admit)
            if self._active:
                self._guarded(self._step)

    def _guarded(self, work: Any) -> None:
        """Do a part of the work. What goes wrong in it ends the answers that it was for, and the engine goes on."""
        try:
            work()
        except (RuntimeError, ValueError, TypeError, IndexError, MemoryError) as error:
            with self._changed:
                ended, self._active = self._active, []
            if not is_out_of_memory(error):
                self._on_graphs = False  # which may be what went wrong
            self._empty()  # its cache may have grown to what does not fit
            if len(ended) > 1 and is_out_of_memory(error):
                reason: Exception = TooManyAtOnceError(len(ended))
                logger.warning("%s: they end with it", reason)
            else:
                logger.exception("a step of the engine failed; %d answers end with it", len(ended))
                reason = error.with_traceback(None)  # its frames hold tensors
            for chat in ended:
                self._end(chat, "error", reason)

    def _leave_cancelled(self) -> None:
        for slot in range(len(self._active) - 1, -1, -1):
            if self._active[slot].answer.cancelled:
                self._leave(slot, "cancelled")
        with self._changed:
            gone = [chat for chat in self._waiting if chat.answer.cancelled]
            for chat in gone:
                self._waiting.remove(chat)
        for chat in gone:
            self._end(chat, "cancelled")

    def _admit(self) -> None:
        """Bring waiting chats into the batch, as many as are computed in one go."""
        group: list[_Chat] = []
        starts: list[int] = []
        first, widest = len(self._active), 0
        while True:
            with self._changed:
                if not self._waiting or first + len(group) >= self.max_batch:
                    break
                chat = self._waiting[0]
            start, parts = (0, []) if chat.identity is None else self._prefixes.longest_match(chat.identity)
            alike = [_same_beginning(chat.identity, other.identity) for other in self._active]
            if max(alike[first:], default=0) > max(start, *alike[:first], len(chat.embeds) // 2, _WIDTHS):
                break  # a chat of this group computes most of what it needs: it comes in behind that
            if max(alike[:first], default=0) > start:
                start = max(alike[:first])
                parts = self._cache.take(alike.index(start), start)
            width = max(widest, len(chat.embeds) - start)
            unlike = group and chat.adapted != group[0].adapted
            if unlike or (group and width * (len(group) + 1) > self.prefill_tokens):
                break
            with self._changed:
                self._waiting.popleft()
                # From here on it ends with the batch, whatever happens.
                self._active.append(chat)
            if start:
                self._cache.put(first + len(group), parts, start)
            group.append(chat)
            starts.append(start)
            widest = width
        if group:
            self._prefill(group, starts, first)

    def _prefill(self, group: list[_Chat], starts: list[int], first: int) -> None:
        """Compute new chats, in the slots from `first` on, from where their keys begin to lack; draw their tokens."""
        many = 1 if self._graphs.wanted else len(group)  # a graph serves one chat, in any slot
        logits, looks = [], []
        for at in range(0, len(group), many):
            behind, look = self._read(group[at : at + many], starts[at : at + many], first + at)
            logits.append(behind.clone())  # the next chat may be computed by the same graph
            looks.append(look.clone())
        for chat, start in zip(group, starts, strict=True):
            chat.length = len(chat.embeds)
            chat.answer.cached_tokens = start
            self._counts["prompt_tokens"] += chat.length - start
            self._counts["cached_tokens"] += start
            chat.embeds = chat.embeds.new_empty((0, 0))  # the chat may be answered for long
        *likeliest, last = read(torch.cat(looks, dim=1))  # the one wait for the device
        for chat, position in zip(group, last, strict=True):
            chat.position = int(position) + 1
        self._draw(first, torch.cat(logits), *likeliest)

    def _read(self, group: list[_Chat], starts: list[int], first: int) -> Results:
        """Compute chats.

        Returns:
            The logits behind each `[n, V]`, and `_likeliest` of them and their last positions, float32 `[3, n]`.
        """
        widths = [len(chat.embeds) - start for chat, start in zip(group, starts, strict=True)]
        pictures = [chat.images for chat in group if chat.images]
        images = {name: torch.cat([images[name] for images in pictures]) for name in _IMAGES} if pictures else {}
        graph = self._graphs.wanted and not images and max(widths) <= _WIDEST_GRAPH
        width = few_sizes(max(widths), _GRAPH_WIDTHS) if graph else _rounded(max(widths))
        longest = few_sizes(max(starts) + width, _GRAPH_PLACES) if graph else _rounded(max(starts) + width)
        embeds = group[0].embeds.new_zeros((len(group), width, group[0].embeds.shape[1]))  # [n, Q, H]
        positions = torch.zeros((3, len(group), width), dtype=torch.long, device=embeds.device)
        for row, (chat, start, count) in enumerate(zip(group, starts, widths, strict=True)):
            embeds[row, :count] = chat.embeds[start:]
            positions[:, row, :count] = chat.positions[:, start:]
        slots = range(first, first + len(group))
        numbers = torch.tensor([slots, starts, [count - 1 for count in widths]])
        adapted = group[0].adapted

        def work(numbers: Tensor, embeds: Tensor, positions: Tensor) -> Results:
            slots, starts, ends = numbers
            place = slots if graph else first
            hidden = self._forward(place, starts, positions, embeds, images, longest, adapted)
            logits = self._base.lm_head(hidden[torch.arange(len(ends), device=ends.device), ends])
            return logits, torch.cat([_likeliest(logits), positions.amax((0, 2))[None]])

        if not graph:
            return work(numbers.to(embeds.device, non_blocking=True), embeds, positions)
        self._cache.reserve(first + 1, longest)
        return self._graphs.run(("chat", width, longest, adapted), work, (numbers, embeds, positions), soon=False)

    def _step(self) -> None:
        """Give every active chat one more token."""
        chats = self._active
        numbers = torch.tensor(
            [
                [chat.answer.token_ids[-1] for chat in chats],
                [chat.length for chat in chats],
                [chat.position for chat in chats],
                [chat.adapted for chat in chats],
            ]
        )
        both = len({chat.adapted for chat in chats}) > 1
        adapted = None if both else chats[0].adapted
        rows, longest = len(chats), max(chat.length for chat in chats) + 1
        if self._graphs.wanted:  # idle rows write into slots that nobody has
            rows, longest = power_of_two(rows), few_sizes(longest, _GRAPH_PLACES)
            numbers = torch.nn.functional.pad(numbers, (0, rows - len(chats)))

        def work(numbers: Tensor) -> Results:
            tokens, starts, positions, there = numbers[:, :, None]  # [n, 1] each
            embeds = self._base.get_input_embeddings()(tokens)
            rows = there[:, 0].bool() if adapted is None else adapted
            hidden = self._forward(0, starts[:, 0], positions.expand(3, -1, -1), embeds, {}, longest, rows)
            logits = self._base.lm_head(hidden[:, 0])
            return logits, _likeliest(logits)

        self._cache.reserve(rows, longest)
        logits, likeliest = self._graphs.run(("step", rows, longest, adapted), work, (numbers,))
        for chat in chats:
            chat.length += 1
            chat.position += 1
        self._counts["steps"] += 1
        self._draw(0, logits, *read(likeliest[:, : len(chats)]))

    def _forward(
        self,
        slots: int | Tensor,
        starts: Tensor,
        positions: Tensor,
        embeds: Tensor,
        images: dict[str, Tensor],
        longest: int,
        adapted: Rows,
    ) -> Tensor:  # [n, Q, H]
        seen = self._cache.aim_at(slots, starts, embeds.shape[1], longest)
        # What attention makes of a mask of truth values, in each layer anew.
        mask = torch.zeros(seen.shape, dtype=embeds.dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        cache = {self._cache_name: self._cache}
        with sdpa_kernel(_ATTENTION), adapters_in(self.model.vl_model, adapted):
            return self._base.model(
                inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, **cache, **images
            ).last_hidden_state

    def _empty(self) -> None:
        """Begin with an empty cache."""
        self._cache = SlotCache(self._layers)
        self._graphs = Graphs(self._cache, self.model.device, wanted=self._on_graphs)

    def _draw(self, first: int, logits: Tensor, likeliest: list[float], probabilities: list[float]) -> None:
        """Draw the next token of the chats from slot `first` on, from logits `[n, V]`; end those that end."""
        for slot in range(len(likeliest) - 1, -1, -1):  # backwards: a chat that leaves is replaced by the last one
            chat = self._active[first + slot]
            token, probability = int(likeliest[slot]), probabilities[slot]
            if chat.generator is not None:
                token = chat.sampling.draw(logits[slot], chat.generator)
                probability = float(logits[slot].float().softmax(-1)[token])
            chat.answer.probabilities.append(probability)
            chat.answer.completion_tokens += 1
            self._counts["completion_tokens"] += 1
            if token in self._ends:
                self._leave(first + slot, "stop")
                continue
            chat.answer.token_ids.append(token)
            chat.answer.add(chat.writer.write(token))
            if chat.writer.stopped:
                self._leave(first + slot, "stop")
            elif len(chat.answer.token_ids) >= chat.sampling.max_new_tokens:
                self._leave(first + slot, "length")

    def _leave(self, slot: int, reason: FinishReason) -> None:
        """Take a chat out of the batch; the last one moves into its slot."""
        chat = self._active[slot]
        if chat.identity is not None and chat.length <= self._prefixes.most:
            told = np.array(chat.answer.token_ids[: chat.length - len(chat.identity)], dtype=np.int64)
            told += 0 if chat.adapted else _UNTOUCHED
            self._prefixes.keep(np.concatenate([chat.identity, told]), self._cache.take(slot, chat.length))
        with self._changed:
            last = self._active.pop()
            if last is not chat:
                self._cache.move(len(self._active), slot, last.length)
                self._active[slot] = last
        self._end(chat, reason)

    def _end(self, chat: _Chat, reason: FinishReason, error: Exception | None = None) -> None:
        self._counts["answers"] += 1
        if not chat.writer.stopped:
            chat.answer.add(chat.writer.rest())
        chat.answer.finish(reason, error)


def _same_beginning(chat: Identity | None, other: Identity | None) -> int:
    """Return how many of a chat's first places another one has too, never its last one; 0 where it can't be told."""
    return 0 if chat is None or other is None else same_beginning(chat, other)


def _likeliest(logits: Tensor) -> Tensor:  # [n, V] -> [2, n]
    """Return the likeliest tokens and their probabilities, float32, which is exact for numbers of tokens."""
    likeliest = logits.argmax(-1)
    wide = logits.float()
    return torch.stack([likeliest, (wide.gather(-1, likeliest[:, None])[:, 0] - wide.logsumexp(-1)).exp()])


def _rounded(places: int) -> int:
    """Return the multiple of `_WIDTHS` that is not below `places`."""
    return -(-places // _WIDTHS) * _WIDTHS


def _fits_graphs(base: torch.nn.Module) -> bool:
    """Return whether steps of a language model can be CUDA graphs: it is whole on one GPU, as PyTorch computes it."""
    devices = {parameter.device for parameter in base.parameters()}
    quantized = getattr(base, "is_quantized", False)
    return len(devices) == 1 and next(iter(devices)).type == "cuda" and not quantized
