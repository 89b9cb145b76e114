"""Writes a chat about 3D objects as token ids: template, placeholders, labels, padding.

Works with any tokenizer that has a chat template. Knows nothing of the VAE, of embeddings or of how many 3D tokens
an object has: one placeholder stands for one object and the model expands it. Images become the language model's own
image tokens and pixel values, through its own image processor.

User text is encoded as plain text. It never passes through the template engine, and a special token spelled out
in it becomes ordinary characters, so no text can produce a placeholder or a template token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vae_qwen3vl.language import DEFAULT_PROMPT
from vae_qwen3vl.layout import PLACEHOLDER_3D

IGNORED_LABEL = -100
ROLES = ("system", "user", "assistant")

Message = Mapping[str, Any]
Conversation = str | Sequence[Message]
Piece = str | list[int] | None
"""A piece of content: text, the ids of an image's tokens, or None for an object."""

IMAGE_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
END_OF_THOUGHT = "</think>"
_MOST_CACHED = 65_536

# Private-use characters mark where content goes in the rendered template; only the template's text is searched.
_MARK = "\ue0f0{}\ue0f1"
_MARKED = re.compile("\ue0f0([0-9]+)\ue0f1")


class Processor3D:
    """Turns prompts or conversations (and answers) into the model's inputs.

    Args:
        tokenizer: a transformers tokenizer with a chat template, or a processor that has one.
        image_processor: the language model's image processor, for prompts with images; a processor's own if None.

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Any, image_processor: Any = None) -> None:
        self.image_processor = image_processor or getattr(tokenizer, "image_processor", None)
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; use the tokenizer of an instruction-tuned model")
        self.tokenizer = tokenizer
        vocabulary: dict[str, int] = tokenizer.get_added_vocab()
        added = [str(token) for token in vocabulary if len(str(token)) > 1]
        self._added_ids = set(vocabulary.values()) | set(tokenizer.all_special_ids)
        self._end_of_thought = vocabulary.get(END_OF_THOUGHT)
        longest_first = sorted(added, key=len, reverse=True)
        self._added = re.compile("|".join(re.escape(token) for token in longest_first)) if added else None
        self._rendered: dict[tuple[Any, ...], str] = {}
        self._encoded: dict[str, list[int]] = {}

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, images: bool = False, **kwargs: Any
    ) -> Processor3D:
        """Load the tokenizer of a language model (folder or Hub id), with `images` its image processor too."""
        from transformers import AutoImageProcessor, AutoTokenizer

        source = os.fspath(name_or_path)
        image_processor = AutoImageProcessor.from_pretrained(source, **kwargs) if images else None
        return cls(AutoTokenizer.from_pretrained(source, **kwargs), image_processor)

    def __call__(
        self,
        conversations: Conversation | Sequence[Conversation] = DEFAULT_PROMPT,
        answers: str | Sequence[str] | None = None,
        *,
        objects: int | Sequence[int] = 1,
        padding_side: Literal["left", "right"] | None = None,
        generation_prompt: bool = True,
    ) -> dict[str, Tensor]:
        """Encode a batch.

        Args:
            conversations: a prompt, a conversation, or a list of either. A conversation is a list of messages
                `{"role", "content"}`; content is text, or a list of `{"type": "3d"}`,
                `{"type": "text", "text": ...}` and, in user turns, `{"type": "image", "image": ...}` parts.
            answers: one answer a conversation, for training: it becomes the assistant's turn and is supervised,
                with its end-of-turn token; so are earlier assistant turns. It is never cut. None prepares for
                generation.
            objects: placeholders before the first user text of conversations that name no "3d" part themselves
                (0 for a control without 3D); one number, or one a conversation.
            padding_side: None means "right" with answers and "left" without.
            generation_prompt: without answers, end where the assistant's turn begins; False ends with the last turn.

        Returns:
            `input_ids` and `attention_mask` `[B, S]`, `labels` `[B, S]` if there are answers, and `pixel_values` and
            `image_grid_thw` if there are images.
        """
        batch = _as_batch(conversations)
        replies: list[str | None] = [None] * len(batch)
        if answers is not None:
            replies = [answers] if isinstance(answers, str) else list(answers)
            if len(replies) != len(batch):
                raise ValueError(f"{len(batch)} conversations, but {len(replies)} answers")
        pictures: list[Mapping[str, Tensor]] = []
        counts = [objects] * len(batch) if isinstance(objects, int) else list(objects)
        if len(counts) != len(batch):
            raise ValueError(f"{len(batch)} conversations, but {len(counts)} numbers of objects")
        rows = [
            self._encode(chat, reply, count, pictures, generation_prompt and reply is None)
            for chat, reply, count in zip(batch, replies, counts, strict=True)
        ]
        side = padding_side or ("left" if answers is None else "right")
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (self.tokenizer.eos_token_id or 0)
        encoded = {
            "input_ids": _pad([ids for ids, _ in rows], pad, side),
            "attention_mask": _pad([[1] * len(ids) for ids, _ in rows], 0, side),
        }
        if answers is not None:
            encoded["labels"] = _pad([labels for _, labels in rows], IGNORED_LABEL, side)
        if pictures:
            for name in ("pixel_values", "image_grid_thw"):
                encoded[name] = torch.cat([picture[name] for picture in pictures])
        return encoded

    def encode_text(self, text: str) -> list[int]:
        """Encode text as plain text: no added token of the vocabulary can come out of it.

        Raises:
            ValueError: the tokenizer makes an added token of it all the same.
        """
        ids: list[int] = []
        rest = text
        while self._added is not None and (token := self._added.search(rest)):
            cut = token.start() + 1  # inside the token's spelling, so that neither half spells it
            ids += self._plain(rest[:cut])
            rest = rest[cut:]
        ids += self._plain(rest)
        if forbidden := self._added_ids.intersection(ids):
            raise ValueError(
                f"the text holds the special token {self.tokenizer.convert_ids_to_tokens(min(forbidden))!r}"
            )
        return ids

    def decode(self, token_ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row `[B, S]`, without special tokens and without thoughts before the answer."""
        rows = token_ids.tolist() if isinstance(token_ids, Tensor) else [list(row) for row in token_ids]
        answers = [[token for token in self._behind_thoughts(row) if token >= 0] for row in rows]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in answers]

    def _behind_thoughts(self, row: list[int]) -> list[int]:
        if self._end_of_thought not in row:
            return row
        return row[len(row) - row[::-1].index(self._end_of_thought) :]

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        # The template's pieces and a dataset's questions come again and again.
        if text not in self._encoded:
            _make_room(self._encoded)
            self._encoded[text] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._encoded[text]

    def _encode(
        self,
        chat: Conversation,
        answer: str | None,
        objects: int,
        pictures: list[Mapping[str, Tensor]],
        generation_prompt: bool,
    ) -> tuple[list[int], list[int]]:
        messages = self._as_messages(chat, objects, pictures)
        if answer is not None:
            messages.append(("assistant", [answer]))
        marked, pieces = _mark(messages)
        full = self._render(marked, prompt=generation_prompt)
        if sorted(map(int, _MARKED.findall(full))) != list(range(len(pieces))):
            raise ValueError("the chat template drops or repeats the content of a message; use another template")
        if answer is None:
            ids = self._fill(full, pieces)
            return ids, [IGNORED_LABEL] * len(ids)
        ids, labels, done = [], [], 0
        for turn, (role, _) in enumerate(messages):
            if role != "assistant":
                continue
            before = self._begin_of_reply(full, marked[:turn])
            after = self._end_of_turn(full, marked[turn]["content"])
            context, reply = self._fill(full[done:before], pieces), self._fill(full[before:after], pieces)
            ids += context + reply
            labels += [IGNORED_LABEL] * len(context) + reply
            done = after
        tail = self._fill(full[done:], pieces)
        return ids + tail, labels + [IGNORED_LABEL] * len(tail)

    def _render(self, marked: list[dict[str, str]], prompt: bool) -> str:
        # Only marks are rendered, so chats with the same turns look the same to the template.
        key = (prompt, *((turn["role"], turn["content"]) for turn in marked))
        if key not in self._rendered:
            _make_room(self._rendered)
            # A template of a thinking model that can do without is asked to; others ignore the argument.
            self._rendered[key] = str(
                self.tokenizer.apply_chat_template(
                    marked, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
                )
            )
        return self._rendered[key]

    def _begin_of_reply(self, full: str, marked: list[dict[str, str]]) -> int:
        """Return where the reply to `marked` begins: behind what `full` has in common with its generation prompt.

        That is the whole prompt, unless the template opens thoughts in the prompt and drops them from earlier turns.
        """
        head, prompt = self._render(marked, prompt=False), self._render(marked, prompt=True)
        pairs = enumerate(zip(full, prompt, strict=False))
        begin = next((at for at, (there, here) in pairs if there != here), min(len(full), len(prompt)))
        inside = self._added is not None and any(
            token.start() < begin < token.end() for token in self._added.finditer(full)
        )
        if inside or begin <= len(head) or not full.startswith(head):
            raise ValueError(
                "the chat template does not continue its generation prompt with the assistant's turn, so the "
                "answer's tokens can't be told apart; use another template"
            )
        return begin

    def _end_of_turn(self, full: str, content: str) -> int:
        """Return where the turn that holds `content` ends: behind the special token that closes it."""
        start = full.index(content) + len(content)
        closing = self._added.search(full, start) if self._added is not None else None
        return closing.end() if closing else len(full)

    def _fill(self, rendered: str, pieces: list[Piece]) -> list[int]:
        """Encode rendered template text, with the content put back at its marks."""
        ids: list[int] = []
        for number, part in enumerate(_MARKED.split(rendered)):
            if number % 2 == 0:
                ids += self._plain(part)  # the template's own text: special tokens count
            else:
                piece = pieces[int(part)]
                if piece is None:
                    ids.append(PLACEHOLDER_3D)
                else:
                    ids += self.encode_text(piece) if isinstance(piece, str) else piece
        return ids

    def _as_messages(
        self, chat: Conversation, objects: int, pictures: list[Mapping[str, Tensor]]
    ) -> list[tuple[str, list[Piece]]]:
        if isinstance(chat, str):
            chat = [{"role": "user", "content": chat}]
        messages = []
        for message in chat:
            if not isinstance(message, Mapping):
                raise ValueError(f"a message must be a dict with role and content, not {type(message).__name__}")
            role = message.get("role")
            if role not in ROLES:
                raise ValueError(f"a message's role must be one of {', '.join(ROLES)}, not {role!r}")
            messages.append((str(role), self._content_pieces(role, message.get("content"), pictures)))
        if not messages or messages[0][0] == "assistant":
            raise ValueError("a conversation must begin with a user or system turn")
        if objects and not any(piece is None for _, content in messages for piece in content):
            users = [content for role, content in messages if role == "user"]
            if not users:
                raise ValueError("the conversation has no user turn for the 3D object to stand in")
            users[0][:0] = [None] * objects
        return messages

    def _content_pieces(self, role: str, content: Any, pictures: list[Mapping[str, Tensor]]) -> list[Piece]:
        if isinstance(content, str):
            return [content]
        if not isinstance(content, Sequence):
            raise ValueError(f"a message's content must be text or a list of parts, not {type(content).__name__}")
        pieces: list[Piece] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else part
            if kind == "3d":
                pieces.append(None)
            elif kind == "text" and isinstance(part.get("text"), str):
                pieces.append(part["text"])
            elif kind == "image" and role == "user" and part.get("image") is not None:
                pieces.append(self._image_ids(part["image"], pictures))
            elif kind == "text" or (kind == "image" and role == "user"):
                raise ValueError(f"a content part of type {kind!r} must hold its {kind} under the key {kind!r}")
            elif kind == "image":
                raise ValueError(f"images stand in user turns only, not in those of the {role}")
            else:
                raise ValueError(f"a content part must have type '3d', 'text' or 'image', not {kind!r}")
        return pieces or [""]  # a turn's place in the template is found by its content

    def _image_ids(self, image: Any, pictures: list[Mapping[str, Tensor]]) -> list[int]:
        """Process an image into `pictures` and return its tokens."""
        if self.image_processor is None:
            raise ValueError(
                "this processor has no image processor: load it with Processor3D.from_pretrained(..., images=True)"
            )
        vocabulary = self.tokenizer.get_added_vocab()
        if missing := [token for token in IMAGE_TOKENS if token not in vocabulary]:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: its language model reads no images")
        start, pad, end = (vocabulary[token] for token in IMAGE_TOKENS)
        picture = self.image_processor(images=[image], return_tensors="pt")
        pictures.append(picture)
        patches = int(picture["image_grid_thw"].prod())
        return [start, *[pad] * (patches // self.image_processor.merge_size**2), end]


def _make_room(cache: dict[Any, Any]) -> None:
    """Keep a cache bounded."""
    if len(cache) >= _MOST_CACHED:
        cache.clear()


def _as_batch(conversations: Conversation | Sequence[Conversation]) -> list[Conversation]:
    if isinstance(conversations, str):
        return [conversations]
    items: list[Any] = list(conversations)
    if not items:
        raise ValueError("no conversation given")
    if isinstance(items[0], Mapping):
        return [items]
    return items


def _mark(messages: list[tuple[str, list[Piece]]]) -> tuple[list[dict[str, str]], list[Piece]]:
    """Replace content by numbered marks, so that the template never sees it."""
    marked: list[dict[str, str]] = []
    pieces: list[Piece] = []
    for role, content in messages:
        marks = ""
        for piece in content:
            marks += _MARK.format(len(pieces))
            pieces.append(piece)
        marked.append({"role": role, "content": marks})
    return marked, pieces


def _pad(rows: list[list[int]], value: int, side: Literal["left", "right"]) -> Tensor:  # [B, S]
    width = max(len(row) for row in rows)
    padded = [
        row + [value] * (width - len(row)) if side == "right" else [value] * (width - len(row)) + row for row in rows
    ]
    return torch.tensor(padded, dtype=torch.long)
