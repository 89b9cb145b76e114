"""Ask about many objects: in batches, with a file of answers that a killed run goes on with.

A record a line: `{"shape", "up", "up_from", "codes", "tokens_3d", "prompt", "text"}`, with `"settings"` where any
were given that change answers; or `{"shape", "error"}` for what can't be read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.utils.errors import is_out_of_memory
from sdf_vqvae.utils.files import AlreadyLockedError, file_lock, regular_file, write_json_lines
from sdf_vqvae.utils.progress import Progress
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.describer import load_describer
from vae_qwen3vl.descriptions.settings import DescribeSettings
from vae_qwen3vl.descriptions.shapes import Shape, Shapes
from vae_qwen3vl.language import DEFAULT_PROMPT
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.sequence_3d import joined_coords
from vae_qwen3vl.vae_latent_extractor import look_up

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
    shapes = Shapes(settings, device)
    with contextlib.ExitStack() as stack:
        earlier: list[Record] = []
        if settings.output is not None:
            stack.enter_context(_only_writer(settings.output))
            earlier = _earlier(settings.output, settings.decisive)
        parts = settings.vl_model, settings.projector_ckpt, settings.lora_dir
        model = load_describer(shapes.vae, *parts, device=device, vae_hash=shapes.vae_hash)
        asked = _Asked(model, shapes.codebook, settings)
        done = {(record["shape"], record["prompt"]) for record in earlier}
        file = None
        if settings.output is not None:
            file = stack.enter_context(settings.output.open("a", encoding="utf-8"))
        start = time.perf_counter()
        names = [name for name in shapes.names if any((name, prompt) not in done for prompt in asked.prompts)]
        kept = len(shapes.names) - len(names)
        failed: dict[str, str] = {}
        answers = 0
        progress = stack.enter_context(Progress(len(shapes.names), "describe", initial=kept))
        for at in range(0, len(names), settings.batch_size):
            group = names[at : at + settings.batch_size]
            for record in asked(group, shapes.read(group), done):
                if "error" in record:
                    failed[record["shape"]] = record["error"]
                    logger.warning("%s", failure(record["shape"], record["error"]))
                answers += "text" in record
                if file is not None:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                tell(record)
            if file is not None:
                file.flush()
            progress.update(len(group))
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


class _Asked:
    """Questions, put to a model about a few objects at a time."""

    def __init__(self, model: Qwen3VLWith3DBranch, codebook: Tensor, settings: DescribeSettings) -> None:
        self.prompts = settings.prompts or (model.prompt or DEFAULT_PROMPT,)
        self._model, self._codebook, self._settings = model, codebook, settings
        self._processor = Processor3D.from_pretrained(model.model_name_or_path)
        self._about = {"settings": settings.decisive} if settings.decisive else {}

    def __call__(
        self, names: Sequence[str], shapes: Sequence[Shape | str], done: set[tuple[str, str]]
    ) -> Iterator[Record]:
        """Yield the records of some objects: reasons first, then answers to the questions that are not done."""
        pairs: list[tuple[str, Shape, str]] = []
        for name, shape in zip(names, shapes, strict=True):
            if isinstance(shape, str):
                yield {"shape": name, "error": shape}
            else:
                pairs += [(name, shape, prompt) for prompt in self.prompts if (name, prompt) not in done]
        for at in range(0, len(pairs), self._settings.batch_size):
            yield from self._answer(pairs[at : at + self._settings.batch_size])

    def _answer(self, pairs: Sequence[tuple[str, Shape, str]]) -> Iterator[Record]:
        feats = look_up(torch.cat([shape.codes for _, shape, _ in pairs]), self._codebook)  # [M, D]
        coords = joined_coords([shape.coords for _, shape, _ in pairs])  # [M, 4]
        try:
            texts = self._model.describe(
                feats_3d=feats,
                coords_3d=coords,
                prompt=[prompt for _, _, prompt in pairs],
                processor=self._processor,
                max_new_tokens=self._settings.max_new_tokens,
            )
        except (MemoryError, RuntimeError) as error:
            if len(pairs) == 1 or not is_out_of_memory(error):
                raise
            logger.warning("out of memory with %d answers at a time: half as many now", len(pairs))
            half = len(pairs) // 2
            yield from self._answer(pairs[:half])
            yield from self._answer(pairs[half:])
            return
        tokens = (self._model.count_3d_tokens(feats, coords) - 2).tolist()
        for (name, shape, prompt), text, read in zip(pairs, texts, tokens, strict=True):
            up = {} if shape.up is None else {"up": shape.up.axis, "up_from": shape.up.known_from}
            about = {"shape": name, **up, "codes": len(shape.codes), "tokens_3d": read}
            yield {**about, "prompt": prompt, "text": text, **self._about}


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Keep other runs from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(path.with_name(f".{path.name}.lock"), wait=False))
        except AlreadyLockedError as error:
            raise OSError(f"another program is writing {path}: let it end, or choose another --output") from error
        yield


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
