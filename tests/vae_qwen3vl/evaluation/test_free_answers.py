"""Free answers are read by rule: yes, no, neither; and whether they decline, with hardly a false alarm."""

from __future__ import annotations

import pytest

from vae_qwen3vl.evaluation.free_answers import declines, yes_or_no
from vae_qwen3vl.synthetic.known_object import KnownObject
from vae_qwen3vl.synthetic.mesh_facts import MeshFacts
from vae_qwen3vl.synthetic.unseen_answers import unseen_answer
from vae_qwen3vl.synthetic.wordings import LANGUAGES, PROPERTIES, YES_NO_ANSWERS
from vae_qwen3vl.synthetic.words import THINGS

YES = (
    *("Yes.", "yes", "Yes, it is.", "Yeah it is flat", "It is.", "It does.", "Indeed, it is.", "\u201cYes\u201d"),
    *("是。", "是的。", "有。", "对。", "没错。", "是的，它是家具"),
)
NO = (
    *("No.", "no", "No, it isn't.", "Nope", "It isn't flat.", "It isn\u2019t flat.", "It is not symmetric."),
    *("It has no hole.", "No it is not", "不是。", "没有。", "不对称。", "它不是家具。", "不，它不扁。"),
)
NEITHER = (
    *("A chair.", "No idea.", "Maybe.", "Yes and no.", "I don't know.", "I'm not sure, no", "", "Minifig Hat"),
    *("No legs.", "Left kidney.", "Yes, it isn't.", "The capital of France is Paris.", "Brick 2 x 4 with no stud"),
    *("Right.", "Nothing", "Notebook", "Yesterday", "不知道。", "可能是。", "是一把椅子。", "椅子。"),
)


@pytest.mark.parametrize(("answers", "expected"), [(YES, True), (NO, False), (NEITHER, None)])
def test_yes_and_no_are_read_and_all_else_is_neither(answers, expected):
    assert {answer: yes_or_no(answer) for answer in answers} == dict.fromkeys(answers, expected)


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        ("It is flat.", "is it flat?", True),
        ("It is taller than wide.", "Is it taller than it is wide?", True),
        ("It has a hole.", "Does this have a hole in it?", True),
        ("It is a chair.", "is it furniture?", None),
        ("它是扁平的。", "它是扁平的吗？", True),
        ("对称。", "它对称吗？", True),
        ("它是椅子。", "它是家具吗？", None),
    ],
)
def test_a_sentence_that_repeats_the_question_agrees(answer, question, expected):
    assert yes_or_no(answer, question) is expected


def test_what_questions_by_rule_are_answered_is_read():
    assert all(yes_or_no(text) is bool(n) for pair in YES_NO_ANSWERS.values() for n, text in enumerate(pair))


def test_every_answer_by_rule_that_declines_is_seen_to():
    facts = MeshFacts(sides=(1.0, 0.5, 0.05), pieces=1, mirrored=True)
    record = {"id": "qshow/1", "category": "", "captions": [], "tags": [], "key": "", "extent": 1.0, "components": 1}
    for number, thing in enumerate(THINGS):
        known = KnownObject.from_record(record | {"name": thing}, facts)
        for place, asked in enumerate(PROPERTIES):
            for language in LANGUAGES:
                answer = unseen_answer(known, asked, language, number * 7919 + place)
                assert declines(answer) and yes_or_no(answer) is None, answer


DECLINING = (
    "I can't see its colour: all I have is the shape.",
    "I don't know.",
    "Its colour is unknown.",
    "A shape doesn't tell whether it is made of wood.",
    "I cannot tell if it is red or blue.",
    "Sorry, a 3D shape does not contain colour information.",
    "There is no way to know who made it. It looks like a chair.",
    "I\u2019m afraid the price isn\u2019t visible.",
    "只看形状看不出颜色。",
    "我不知道品牌，我只看得到形状。",
    "无法从形状判断材料。",
)
NOT_DECLINING = (
    *("The chair is brown. I don't know more", "Red.", "It is red.", "Wood.", "A chair.", "Yes.", "No.", ""),
    *("I can't see the colour, but it is probably brown.", "It is made of wood. I can't tell the brand."),
    *(
        "It's unknown who made it, but likely IKEA.",
        "I don't know, maybe red.",
        "It costs $20.",
        "Black, I can't say more.",
    ),
    *("It doesn't have a colour other than white. It is white.", "It is not red, it is blue.", "I don't know more."),
    *("He doesn't know.", "The colour is the same as the shape.", "It is 20 years old but I don't know exactly."),
    *(
        "I do not have a favourite colour.",
        "Not bad.",
        "Minifig Hat with no information panel, red",
        "I don't know, red.",
    ),
    *("它是红色的。", "我不知道，可能是木头的。", "看不出来，但是应该是红色的。", "它是木头做的，我不知道更多。"),
)


@pytest.mark.parametrize(("answers", "expected"), [(DECLINING, True), (NOT_DECLINING, False)])
def test_only_what_declines_and_asserts_nothing_declines(answers, expected):
    assert {answer: declines(answer) for answer in answers} == dict.fromkeys(answers, expected)


def test_names_of_things_never_decline(reference_data):
    # Captions of all objects of the pack: none says that something can't be known.
    import json

    with (reference_data / "shapes/meshes.jsonl").open(encoding="utf-8") as lines:
        captions = {caption for line in lines for caption in json.loads(line)["captions"]}
    assert len(captions) > 10_000 and [text for text in captions if declines(text)] == []
    assert [text for text in captions if yes_or_no(text) is not None] == []
