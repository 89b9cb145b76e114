"""Names of organs keep their script in file names, and what a user types finds them or is told what there is."""

from __future__ import annotations

import pytest

from sdf_vqvae.preprocessing.ct.masks import LabelNames
from sdf_vqvae.preprocessing.ct.names import captions, check_chosen, chosen_labels, file_stem, in_words, says_nothing


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("肝", "肝"),
        ("左肾", "左肾"),
        ("fi\u0301gado", "fígado"),
        ("лёгкое левое", "лёгкое_левое"),
        ("गुर्दा", "गुर्दा"),
        ("kidney_left", "kidney_left"),
        ("aorta, thoracic (desc.)", "aorta_thoracic_desc"),
        ("../../x", "x"),
        ("a/b\\c", "a_b_c"),
        ("a\0b\u202ec", "a_b_c"),
        ("..", "label"),
        ("", "label"),
        ("肝" * 100, "肝" * 40),
    ],
)
def test_a_name_becomes_part_of_a_path_in_its_own_script(name, stem):
    assert file_stem(name) == stem


KNOWN = {
    1: "肝",
    2: "左肾",
    3: "Liver",
    4: "liver",
    5: "kidney_left",
    6: "aorta, thoracic",
    7: "aorta",
    8: "fígado",
    9: "rib",
    10: "rib",
    (1, 2): "肝 and 左肾",
}


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        (["肝"], [1]),
        (["liver"], [4]),
        (["Liver"], [3]),
        (["LIVER"], [3, 4]),
        (["Kidney Left"], [5]),
        (["left kidney"], [5]),
        (["kidney-left"], [5]),
        (["aorta"], [7]),
        (["aorta", "thoracic"], [6]),
        (["Aorta", "thoracic", "aorta"], [6, 7]),
        (["fi\u0301gado"], [8]),
        (["rib"], [9, 10]),
        (["肝 and 左肾"], [(1, 2)]),
    ],
)
def test_a_name_finds_its_labels_exactly_or_but_for_case_and_spaces(typed, labels):
    assert chosen_labels(typed, KNOWN) == (labels, [])


def test_a_name_that_no_label_has_is_an_error_that_lists_the_nearest_first():
    names = [LabelNames.parse({"1": "fígado", "2": "rim esquerdo", "3": "baço"}), LabelNames.parse({"4": "spleen"})]
    check_chosen(["fígado", "spleen"], names)
    with pytest.raises(ValueError, match="no label is called 'figado'; there are fígado, "):
        check_chosen(["spleen", "figado"], names)
    with pytest.raises(ValueError, match="no names of labels were found"):
        check_chosen(["liver"], [LabelNames.parse({})])
    many = [LabelNames.parse([f"organ {i}" for i in range(30)])]
    with pytest.raises(ValueError, match=r"there are organ 29, .* and 10 more$"):
        check_chosen(["organ 29x"], many)


def test_labels_without_a_name_are_chosen_by_their_number():
    names = [LabelNames.parse({"1": "liver"})]
    check_chosen(["label 255", "label_3"], names)
    with pytest.raises(ValueError, match="no label is called 'label 1'"):
        check_chosen(["label 1"], names)


@pytest.mark.parametrize(
    ("name", "nothing"),
    [
        ("label_7", True),
        ("Segment 1", True),
        ("12", True),
        ("n/a", True),
        ("L1", False),
        ("rib 7", False),
        ("肝", False),
    ],
)
def test_a_name_that_is_only_a_number_says_nothing(name, nothing):
    assert says_nothing(name) == nothing


def test_names_read_like_words():
    assert in_words("kidney_left") == "left kidney"
    assert in_words("rib right 7") == "right rib 7"
    assert in_words("vertebrae_L5") == "vertebra L5"
    assert in_words("left atrium") == "left atrium"
    assert captions("kidney_left", 141.6)[0] == "The left kidney, from a CT scan, 142 ml."
    assert captions("adrenal gland left", 4.482)[0] == "The left adrenal gland, from a CT scan, 4.5 ml."
    assert captions("x", 0.027)[0].endswith("0.027 ml.")
