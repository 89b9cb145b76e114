"""Answers as a tree: every answer's tokens are predicted where its own beginning ends, and shared ones once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_qwen3vl.evaluation.answer_tree import AnswerTree, beginnings, groups_alike

REPLIES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=12)


@given(REPLIES)
def test_each_token_is_predicted_behind_its_own_beginning(replies: list[list[int]]) -> None:
    tree = AnswerTree.of(replies)
    read: list[list[list[int]]] = [[] for _ in replies]
    for which, place, target in zip(tree.replies.tolist(), tree.places.tolist(), tree.targets.tolist(), strict=True):
        seen = [] if place == 0 else tree.tokens[tree.visible[place - 1]].tolist()
        read[which].append([*seen, target])
    assert read == [[reply[: end + 1] for end in range(len(reply))] for reply in replies]


@given(REPLIES)
def test_shared_beginnings_are_read_once_and_parents_come_first(replies: list[list[int]]) -> None:
    tree = AnswerTree.of(replies)
    assert len(tree.tokens) == len({beginning for reply in replies for beginning in beginnings(reply)})
    assert torch.equal(tree.visible, tree.visible.tril())
    assert torch.equal(tree.visible.sum(1), tree.depths)


@given(REPLIES, st.integers(1, 10))
def test_groups_hold_every_answer_once_and_are_small_enough(replies: list[list[int]], most: int) -> None:
    groups = list(groups_alike(replies, most))
    assert sorted(number for group in groups for number in group) == list(range(len(replies)))
    for group in groups:
        assert len(group) == 1 or len(AnswerTree.of([replies[n] for n in group]).tokens) <= most
