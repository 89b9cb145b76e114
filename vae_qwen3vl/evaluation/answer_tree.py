"""Many answers as one tree of tokens: beginnings that answers share are read once, all of them in one pass.

What stands behind a prompt is every token that another one follows; a mask lets it see the prompt and its own
beginning, never another answer (as in tree attention of speculative decoding, Miao et al. 2024). Knows token ids;
nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Reply = Sequence[int]


@dataclass(frozen=True, kw_only=True)
class AnswerTree:
    """The tokens that have to be read to know how likely each of R answers is: N of them, parents first."""

    tokens: Tensor
    """int64 `[N]`."""
    depths: Tensor
    """int64 `[N]`: 1 for an answer's first token."""
    visible: Tensor
    """bool `[N, N]`: which tokens each one sees: its own beginning and itself."""
    replies: Tensor
    """int64 `[E]`: the answer that each predicted token belongs to."""
    places: Tensor
    """int64 `[E]`: where it is predicted: 0 is the prompt's end, n + 1 is token n."""
    targets: Tensor
    """int64 `[E]`: the predicted token."""

    @property
    def answers(self) -> int:
        """R."""
        return int(self.replies[-1]) + 1

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> AnswerTree:
        """Return the tree of answers, none of which is empty."""
        numbers: dict[tuple[int, ...], int] = {(): -1}
        for reply in replies:
            for beginning in beginnings(reply):
                numbers.setdefault(beginning, len(numbers) - 1)
        nodes = list(numbers)[1:]
        visible = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for number, beginning in enumerate(nodes):
            parent = numbers[beginning[:-1]]
            if parent >= 0:
                visible[number] = visible[parent]
            visible[number, number] = True
        edges = [
            (which, numbers[tuple(reply[:end])] + 1, reply[end])
            for which, reply in enumerate(replies)
            for end in range(len(reply))
        ]
        owners, places, targets = torch.tensor(edges).unbind(1)
        return cls(
            tokens=torch.tensor([beginning[-1] for beginning in nodes], dtype=torch.long),
            depths=torch.tensor([len(beginning) for beginning in nodes], dtype=torch.long),
            visible=visible,
            replies=owners,
            places=places,
            targets=targets,
        )


def beginnings(reply: Reply) -> list[tuple[int, ...]]:
    """Return the beginnings of an answer that something follows, shortest first, the empty one left out."""
    return [tuple(reply[:end]) for end in range(1, len(reply))]


def groups_alike(replies: Sequence[Reply], most: int) -> Iterator[list[int]]:
    """Yield the numbers of answers whose tree has at most so many tokens; those that begin alike come together."""
    group: list[int] = []
    read: set[tuple[int, ...]] = set()
    for number in sorted(range(len(replies)), key=lambda i: tuple(replies[i])):
        own = beginnings(replies[number])
        if group and len(read.union(own)) > most:
            yield group
            group, read = [], set()
        group.append(number)
        read.update(own)
    if group:
        yield group
