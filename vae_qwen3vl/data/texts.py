"""The words of objects in their three forms: captions, questions with answers, chats.

Knows the captions of a table's rows and JSONL records; knows nothing of shapes or tokens. One of an object's several
texts is chosen by a seed, so that a run can be repeated.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.files import regular_file
from sdf_vqvae.utils.strict_files import parse_json

logger = logging.getLogger(__name__)

RECORDS = "conversations.jsonl"
"""Name of the records beside a dataset's table that are read without being asked for."""
_IDS = ("sample_id", "sha256", "id")
_ROLES = ("system", "user", "assistant")
CAPTION_SHARE = 0.5
_RECORD = "record"
_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class Text:
    """One thing to say about an object."""

    answer: str
    """What the model learns to say."""
    conversation: tuple[dict[str, str], ...] | None = None
    """The turns before it, `{"role", "content"}` each; None where the trainer's own prompt asks."""
    kind: str = ""
    """What sort of record it is of, language included; empty for a caption of the table."""

    def __post_init__(self) -> None:
        """Check that there is something to learn."""
        if not self.answer.strip():
            raise ValueError("the answer is empty")


def read_records(path: str | os.PathLike[str]) -> dict[str, list[Text]]:
    """Read texts from a JSONL file: one record a line, several for an object are fine.

    Each has `sample_id` (or `sha256`, `id`), and either `caption`, or `question` and `answer`, or `messages`: turns
    `{"role": "system" | "user" | "assistant", "content": text}` that end with the assistant's.

    Raises:
        ValueError: the file is missing, or a line is something else; the message names the line.
    """
    texts: dict[str, list[Text]] = {}
    for name, text in read_lines(regular_file(path, "records file"), _named_text_of):
        texts.setdefault(name, []).append(text)
    return texts


def read_plain_texts(path: str | os.PathLike[str]) -> list[Text]:
    """Read texts about no object from a JSONL file: `question` and `answer`, or `messages`, as in `read_records`.

    Raises:
        ValueError: the file is missing or empty, or a line is something else or names an object.
    """
    file = regular_file(path, "plain text file")
    texts = list(read_lines(file, _plain_text_of))
    if not texts:
        raise ValueError(f"{file} holds no texts")
    return texts


def choose(
    texts: Sequence[Text],
    sample_id: str,
    *,
    seed: int,
    epoch: int,
    caption_share: float = CAPTION_SHARE,
    kind_weights: Mapping[str, int] | None = None,
) -> Text:
    """Return one of an object's texts: the same for the same seed, epoch and object, on every machine.

    Args:
        texts: of the object.
        sample_id: its id.
        seed: of the run.
        epoch: each draws anew.
        caption_share: how often a caption of the table is taken where there are records too. Among records, first the
            kind is drawn, then one of that kind: kinds with many questions don't crowd out the others.
        kind_weights: how often a kind (of any language) is drawn, beside 1 for kinds that are not named.
    """
    captions = [text for text in texts if not text.kind]
    records = [text for text in texts if text.kind]
    drawn = pick(seed, epoch, sample_id)
    if captions and (not records or pick(seed, epoch, sample_id, "form") < caption_share * 2**64):
        return captions[drawn % len(captions)]
    kinds = sorted({text.kind for text in records})
    weights = [(kind_weights or {}).get(kind.partition(" ")[0], 1) for kind in kinds]
    if not any(weights):
        weights = [1] * len(kinds)
    place = pick(seed, epoch, sample_id, "kind") % sum(weights)
    kind = kinds[bisect.bisect_right(list(itertools.accumulate(weights)), place)]
    of_kind = [text for text in records if text.kind == kind]
    return of_kind[drawn % len(of_kind)]


def pick(*parts: Any) -> int:
    """Return a number that is the same for the same parts (plain values) on every machine."""
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest(), "big")


def as_sentence(text: str) -> str:
    """Return words with a large first letter and a full stop, where they have no other end."""
    return text[:1].upper() + text[1:] + ("" if text[-1:] in ".!?" else ".")


def texts_of_table(
    rows: Sequence[Mapping[str, str]],
    folder: Path,
    records: str | os.PathLike[str] | None,
    id_column: str,
    *,
    known: Collection[str] | None = None,
) -> dict[str, list[Text]]:
    """Return the texts of a dataset's objects: captions of its table, and records.

    Args:
        rows: the table.
        folder: the dataset; its `conversations.jsonl` is read where no other records are given.
        records: a JSONL file, see `read_records`.
        id_column: the column of the objects' ids.
        known: ids of all objects of the dataset, not only of those asked for; by default those of `rows`. Where
            records tell of others too, that is said.

    Raises:
        ValueError: the records can't be read, or tell of none of the dataset's objects.
    """
    texts = {row[id_column]: [Text(answer=c) for c in captions_of_row(row)] for row in rows}
    beside = folder / RECORDS
    source = records if records is not None else (beside if beside.is_file() else None)
    if source is not None:
        told = read_records(source)
        _check_ids(told, texts if known is None else known, source, folder)
        for name, of_object in told.items():
            if name in texts:
                texts[name] += of_object
    return texts


def _check_ids(told: Collection[str], known: Collection[str], source: object, folder: Path) -> None:
    """Say of how many objects that are not there records tell. Raises a ValueError if it is all of them."""
    strangers = [name for name in told if name not in known]
    if told and len(strangers) == len(told):
        example = next(iter(known), None)
        raise ValueError(
            f"{source} tells of {len(told)} objects, and none of them is in {folder}: its first id is "
            f"{strangers[0][:80]!r}, an id of the dataset is {example!r}"
        )
    if strangers:
        among = f"{len(strangers)} of the {len(told)} objects that it tells of"
        logger.warning("%s: %s are not in %s, e.g. %s", source, among, folder, strangers[0])


def read_lines(file: Path, read: Callable[[dict[str, Any]], _Read]) -> Iterator[_Read]:
    """Yield what `read` makes of each line's record. Raises a ValueError that names the line."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = parse_json(line)
                if not isinstance(record, dict):
                    raise ValueError("a record is a JSON object")
                yield read(record)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: {brief(error)}") from error


def _plain_text_of(record: dict[str, Any]) -> Text:
    named = [key for key in _IDS if key in record]
    if named:
        raise ValueError(f"a text without an object has no {named[0]!r}: texts of objects are records of the dataset")
    text = _text_of(record)
    if text.conversation is None:
        raise ValueError("a text without an object holds 'question' and 'answer', or 'messages'")
    return text


def _id_of(record: dict[str, Any]) -> str:
    for key in _IDS:
        if isinstance(record.get(key), str) and record[key]:
            return str(record[key])
    raise ValueError(f"a record needs an id: {', '.join(_IDS)}")


def _named_text_of(record: dict[str, Any]) -> tuple[str, Text]:
    return _id_of(record), replace(_text_of(record), kind=_kind_of(record))


def _kind_of(record: dict[str, Any]) -> str:
    return " ".join(str(record[key]) for key in ("kind", "language") if record.get(key)) or _RECORD


def _text_of(record: dict[str, Any]) -> Text:
    if "messages" in record:
        return _chat(record["messages"])
    if "question" in record:
        question = _string(record, "question")
        return Text(answer=_string(record, "answer"), conversation=({"role": "user", "content": question},))
    if "caption" in record:
        return Text(answer=_string(record, "caption"))
    raise ValueError("a record holds 'caption', 'question' and 'answer', or 'messages'")


def _string(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} must be text, not {value!r}")
    return value


def _chat(messages: Any) -> Text:
    if not isinstance(messages, list) or len(messages) < 2:
        raise ValueError("'messages' must be a list of at least two turns")
    turns = []
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in _ROLES:
            raise ValueError(f"a turn needs a role of {', '.join(_ROLES)}")
        turns.append({"role": str(turn["role"]), "content": _string(turn, "content")})
    if turns[-1]["role"] != "assistant" or turns[0]["role"] == "assistant":
        raise ValueError("'messages' begin with a user or system turn and end with the assistant's")
    return Text(answer=turns[-1]["content"], conversation=tuple(turns[:-1]))
