"""What is shown of objects like one: in words, and in which draws."""

from __future__ import annotations

import functools

import pytest

from vae_qwen3vl.data.look_up import (
    LookUp,
    Neighbor,
    distinct_words,
    read_neighbors,
    told_of,
    with_neighbors,
    write_neighbors,
)
from vae_qwen3vl.data.texts import pick

CHAIR, STOOL = Neighbor(words="chair", likeness=0.934), Neighbor(words="stool", likeness=0.81)
KNOWN = {f"object{n}": (Neighbor(words=f"words {n}", likeness=0.9),) for n in range(5)}


def draws(look_up, name, count=400):
    return [look_up(name, functools.partial(pick, 0, epoch, name)) for epoch in range(count)]


def test_neighbors_stand_in_front_of_the_question():
    assert told_of([CHAIR, STOOL]) == "Similar objects: chair (0.93), stool (0.81)"
    assert with_neighbors("What is it?", (CHAIR,)) == "Similar objects: chair (0.93)\nWhat is it?"
    assert with_neighbors("What is it?", ()) == "What is it?"


def test_each_wording_is_told_once():
    again = Neighbor(words="Chair", likeness=0.7)
    assert distinct_words([CHAIR, again, Neighbor(words=" ", likeness=0.7), STOOL]) == (CHAIR, STOOL)
    assert distinct_words([CHAIR, STOOL], most=1) == (CHAIR,)


def test_some_draws_show_none_some_another_objects_and_the_rest_its_own():
    look_up = LookUp(known=KNOWN, shown_share=0.5, wrong_share=0.2)
    shown = draws(look_up, "object1")
    own, none = shown.count(KNOWN["object1"]), shown.count(())
    assert 160 < none < 240 and 120 < own < 200
    assert {one for one in shown if one} == set(KNOWN.values())  # wrong ones are of any other object
    assert shown == draws(look_up, "object1")  # a run can be repeated
    assert set(draws(look_up.always_right(), "object1")) == {KNOWN["object1"]}


def test_an_object_is_never_shown_as_the_wrong_one():
    look_up = LookUp(known=KNOWN, shown_share=1.0, wrong_share=1.0)
    assert KNOWN["object1"] not in draws(look_up, "object1")
    assert LookUp(known={"alone": (CHAIR,)}).of_another("alone", 3) == ()


def test_the_file_holds_what_was_found_and_says_with_what(tmp_path):
    path = tmp_path / "neighbors.jsonl"
    write_neighbors(path, {"index": "here"}, {"a": (CHAIR, STOOL), "b": ()})
    about, known = read_neighbors(path)
    assert about == {"index": "here"}
    assert known["b"] == () and [one.words for one in known["a"]] == ["chair", "stool"]
    path.write_text('{"format": "another"}\n')
    with pytest.raises(ValueError, match="delete it, and it is made anew"):
        read_neighbors(path)
