"""Ask about many objects: many at a time, with a file of answers that a killed run goes on with.

A record a line: `{"shape", "up", "up_from", "codes", "tokens_3d", "prompt", "text", "mean_probability",
"confidence"}`, with `"abstained"` where the text may say only what the object is like, `"similar"` where the model
read what objects like it are called, `"candidates"` instead of the two numbers where the text was chosen among more,
and `"settings"` where any were given that change answers; or `{"shape", "error"}` for what can't be read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.utils.files import only_writer, regular_file, write_json_lines
from sdf_vqvae.utils.progress import Progress
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.answer_confidence import check_calibrated, four_digits, hedged
from vae_qwen3vl.candidates.asking import submit_candidates
from vae_qwen3vl.candidates.chooser import Chooser
from vae_qwen3vl.data.look_up import Neighbors, told_of, with_neighbors
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.descriptions.settings import DescribeSettings
from vae_qwen3vl.descriptions.shapes import Shapes
from vae_qwen3vl.generation.answer import Answer, Sampling
from vae_qwen3vl.language import DEFAULT_PROMPT
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.search import ShapeIndex
from vae_qwen3vl.search.neighbors import neighbors_of_shape

if TYPE_CHECKING:  # it needs transformers
    from vae_qwen3vl.generation.engine import Engine

logger = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Described:
    """What a run came to."""

    described: int
    """Objects with answers of this run."""
    kept: int
    """Objects that an earlier run had answered all questions about."""
    failed: dict[str, str]
    """Name -> reason."""
    answers: int
    """Of this run."""
    seconds: float


def describe_all(
    settings: DescribeSettings, device: torch.device, tell: Callable[[Record], None] = lambda record: None
) -> Described:
    """Ask all questions about all objects.

    Args:
        settings: what is asked about what.
        device: of tokenizer and language model.
        tell: gets every record of this run as it comes.

    Raises:
        ValueError: there is nothing at a path, models don't fit, or `output` was begun with other settings.
        OSError: `output` can't be written, or another program writes it.
    """
    from vae_qwen3vl.generation.engine import Engine

    shapes = Shapes(settings, device)
    with contextlib.ExitStack() as stack:
        earlier: list[Record] = []
        if settings.output is not None:
            settings.output.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(only_writer(settings.output))
            earlier = _earlier(settings.output, settings.decisive)
        parts = settings.vl_model, settings.projector_ckpt, settings.lora_dir
        vae_hash = shapes.manifest.vae_hash
        more: dict[str, Any] = {"dtype": settings.dtype, "vae_hash": vae_hash, "plain_chats": False}
        model = load_describer(shapes.vae, *parts, device=device, **more)
        processor = Processor3D.from_pretrained(model.model_name_or_path)
        chooser = Chooser.load(settings.choice, shapes.codebook, vae_hash, device) if settings.choice else None
        file = None
        if settings.output is not None:
            file = stack.enter_context(settings.output.open("a", encoding="utf-8"))
        most = (2 * settings.batch_size + 1) * (settings.choice.candidates + 1)
        limits: dict[str, Any] = {"max_batch": settings.batch_size, "max_waiting": most}
        engine = stack.enter_context(Engine(model, processor, codebook=shapes.codebook, **limits))
        interview = _Interview(engine, shapes, settings, chooser)
        done = {(record["shape"], record["prompt"]) for record in earlier}
        start = time.perf_counter()
        names = [name for name in shapes.names if any((name, prompt) not in done for prompt in interview.prompts)]
        kept = len(shapes.names) - len(names)
        failed: dict[str, str] = {}
        answers = 0
        progress = stack.enter_context(Progress(len(shapes.names), "describe", initial=kept))
        for records in interview.records(names, done):
            for record in records:
                if "error" in record:
                    failed[record["shape"]] = record["error"]
                    logger.warning("%s", failure(record["shape"], record["error"]))
                answers += "text" in record
                if file is not None:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                tell(record)
            if file is not None:
                file.flush()
            progress.update()
    return Described(
        described=len(names) - len(failed),
        kept=kept,
        failed=failed,
        answers=answers,
        seconds=round(time.perf_counter() - start, 2),
    )


def failure(name: str, reason: str) -> str:
    """Return the line about an object that could not be read; most reasons name the file themselves."""
    return reason if name in reason else f"{name}: {reason}"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A question about an object."""

    name: str
    shape: ShapeCodes
    prompt: str
    of: int
    """How many there are about it."""
    near: Neighbors = ()
    """Objects like it, which the model is told of."""


class _Interview:
    """Questions about objects. As many are on their way as keep an engine's batch full while objects are read."""

    def __init__(
        self, engine: Engine, shapes: Shapes, settings: DescribeSettings, chooser: Chooser | None = None
    ) -> None:
        self.prompts = settings.prompts or (engine.model.prompt or DEFAULT_PROMPT,)
        self._engine, self._shapes = engine, shapes
        self._choice, self._chooser = settings.choice, chooser
        self._index = None if settings.look_up is None else ShapeIndex.open(settings.look_up)
        self._sampling = Sampling(max_new_tokens=settings.max_new_tokens)
        self._at_once = max(1, settings.batch_size // (settings.choice.candidates + 1))
        self._abstain = settings.abstain
        if settings.abstain is not None:
            for prompt in self.prompts:
                check_calibrated(engine.model.calibration, prompt)
        self._about = {"settings": settings.decisive} if settings.decisive else {}

    def records(self, names: Sequence[str], done: set[tuple[str, str]]) -> Iterator[list[Record]]:
        """Yield the records of each object: why it can't be asked about, or answers to the questions not done."""
        waiting: deque[tuple[_Asked, list[Answer]]] = deque()
        told: dict[str, list[Record]] = {}
        for asked in self._questions(names, done):
            if not isinstance(asked, _Asked):
                yield [asked]
                continue
            waiting.append((asked, self._submit(asked)))
            if len(waiting) > 2 * self._at_once:
                yield from self._told(*waiting.popleft(), told)
        while waiting:
            yield from self._told(*waiting.popleft(), told)

    def _questions(self, names: Sequence[str], done: set[tuple[str, str]]) -> Iterator[_Asked | Record]:
        """Yield each question about some objects before the next: what was computed of them is still there."""
        for at in range(0, len(names), self._at_once):
            group = names[at : at + self._at_once]
            readable: list[tuple[str, ShapeCodes, Neighbors]] = []
            for name, shape in zip(group, self._shapes.read(group), strict=True):
                if isinstance(shape, str):
                    yield {"shape": name, "error": shape}
                else:
                    near = () if self._index is None else neighbors_of_shape(self._index, shape)
                    readable.append((name, shape, near))
            for prompt in self.prompts:
                for name, shape, near in readable:
                    of = sum((name, each) not in done for each in self.prompts)
                    if (name, prompt) not in done:
                        yield _Asked(name=name, shape=shape, prompt=prompt, of=of, near=near)

    def _submit(self, asked: _Asked) -> list[Answer]:
        """Have a question answered: the likeliest answer comes first."""
        content = [{"type": "3d"}, {"type": "text", "text": with_neighbors(asked.prompt, asked.near)}]
        messages = [{"role": "user", "content": content}]
        return submit_candidates(self._engine, messages, [asked.shape], self._choice, self._sampling)

    def _told(self, asked: _Asked, answers: list[Answer], told: dict[str, list[Record]]) -> Iterator[list[Record]]:
        """Wait for the answers to a question, and yield the records about its object if it is the last one."""
        from vae_qwen3vl.generation.engine import TooManyAtOnceError

        while True:
            try:
                for answer in answers:
                    answer.text()
                break
            except TooManyAtOnceError as error:
                fewer = max(1, error.answers // 2)
                if fewer < self._engine.max_batch:
                    self._engine.max_batch = fewer
                    logger.warning("at most %d at a time from now on", fewer)
                answers = self._submit(asked)
        text, *others = self._engine.processor.decode([answer.token_ids for answer in answers])
        among: Record = {"similar": told_of(asked.near)} if asked.near else {}
        if self._chooser is not None:
            choice = self._chooser.choose([text, *others], asked.shape)
            text, among = choice.text, {**among, "candidates": choice.ranked()}
        shape = asked.shape
        up = {"up": shape.up, "up_from": shape.up_from} if shape.up_from else {}
        about = {"shape": asked.name, **up, "codes": shape.count, "tokens_3d": answers[0].tokens_3d}
        records = told.setdefault(asked.name, [])
        if self._chooser is None:
            sure, text = self._sureness(answers[0], text)
            among = {**sure, **among}
        records.append({**about, "prompt": asked.prompt, "text": text, **among, **self._about})
        if len(records) == asked.of:
            yield told.pop(asked.name)

    def _sureness(self, answer: Answer, text: str) -> tuple[Record, str]:
        """Return how sure the model is of an answer, and the answer as it is told then."""
        mean, confidence = answer.mean_probability, answer.confidence
        sure: Record = {"mean_probability": four_digits(mean), "confidence": four_digits(confidence)}
        if self._abstain is None or confidence is None:
            return sure, text
        unsure = confidence < self._abstain
        return {**sure, "abstained": unsure}, hedged(text) if unsure else text


def _earlier(path: Path, settings: dict[str, Any]) -> list[Record]:
    """Return the answers of an earlier run, and leave a file of them to which the next ones can be appended.

    A killed run may have left half a line at its end; objects that failed are tried again.

    Raises:
        ValueError: the file is something else, or was begun with other settings.
    """
    if not path.exists():
        write_json_lines(path, ())
        return []
    lines = regular_file(path, "file of answers").read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    answers: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse_json(line)
            if "error" in record:
                continue
            record["shape"], record["prompt"], record["text"]
            before = record.get("settings", {})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}, is no answer of this program: give another --output") from error
        if before != settings:
            raise ValueError(
                f"{path} was begun with {before or 'default settings'}, not with {settings or 'default ones'}: give "
                "those again, or another --output"
            )
        answers.append(record)
    write_json_lines(path, answers, ensure_ascii=False)
    return answers
