"""Left and right exchanged in what is said of an object."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_qwen3vl.data.mirror_words import exchange_sides, looks_like_the_other_side, mirrored_text
from vae_qwen3vl.data.texts import Text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Left kidney.", "Right kidney."),
        ("patella (VH M Knee L, male)", "patella (VH M Knee R, male)"),
        ("Vas deferens L", "Vas deferens R"),
        ("rib_left_9", "rib_right_9"),
        ("knee l (whole organ)", "knee r (whole organ)"),
        ("RIGHT ARM", "LEFT ARM"),
        ("Left or right?", "Right or left?"),
        ("左肾，在身体左侧", "右肾，在身体右侧"),
        ("a bright, upright leftover", "a bright, upright leftover"),
        ("Technic Connector at a right angle", "Technic Connector at a right angle"),
        ("Tyre 43 R, Liebherr R 9800", "Tyre 43 R, Liebherr R 9800"),
        ("right triangle, right circular cone, shirt size L", "right triangle, right circular cone, shirt size L"),
        ("左轮手枪，左右对称", "左轮手枪，左右对称"),
    ],
)
def test_sides_are_exchanged_and_nothing_else(words, expected):
    assert exchange_sides(words) == expected
    assert exchange_sides(expected) == words


@given(st.text(alphabet="leftrigh LR左右轮,.()-_", max_size=40))
def test_exchanged_twice_is_what_it_was(words):
    assert exchange_sides(exchange_sides(words)) == words


def test_question_and_answer_are_exchanged_together():
    asked = ({"role": "user", "content": "Is it the left one?"},)
    text = mirrored_text(Text(answer="No, right.", conversation=asked, kind="side en"))
    turns = ({"role": "user", "content": "Is it the right one?"},)
    assert text == Text(answer="No, left.", conversation=turns, kind="side en")
    assert asked[0]["content"] == "Is it the left one?"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["left kidney", "Left."], True),
        (["chair"], True),
        (["heart"], True),
        (["heart left ventricle"], False),
        (["kidney", "right hepatic artery"], False),
        (["branch of circumflex coronary artery", "Left."], False),
        (["左肺"], False),
    ],
)
def test_organs_without_a_pair_have_no_mirror_image_where_a_side_is_named(answers, expected):
    assert looks_like_the_other_side(Text(answer=answer) for answer in answers) is expected
