"""One reader of captions: what every notation of a cell says, and which column of a row is asked."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sdf_vqvae.data.captions import captions_cell, captions_in, captions_of, captions_of_row

CELLS = [
    # plain text stays whole
    ("a box, red", ["a box, red"]),
    ("  a chair\t", ["a chair"]),
    ("one; two | three", ["one; two | three"]),
    ("line one\nline two", ["line one\nline two"]),
    ("42", ["42"]),
    ("椅子 🪑 é e\u0301", ["椅子 🪑 é e\u0301"]),
    ('He said "hi"; it\'s <b>bold</b> &amp; so on', ['He said "hi"; it\'s <b>bold</b> &amp; so on']),
    ("\ufeffa chair", ["a chair"]),
    ("none of these", ["none of these"]),
    ("array of lamps", ["array of lamps"]),
    # nothing
    *((cell, []) for cell in ("", " ", "nan", "NaN", "None", "null", "NULL", "N/A", "n/a", "<NA>", "-", "—", "?")),
    *((cell, []) for cell in ("#NAME?", "#VALUE!", "#REF!", '["#N/A"]')),
    *((cell, []) for cell in ("[]", "{}", "()", '""', "''", '[""]', "[None]", "[nan]", "[[], []]", "['nan', 'N/A']")),
    # JSON
    ('["a", " b ", ""]', ["a", "b"]),
    ('\ufeff["a"]', ["a"]),
    ('"a chair"', ["a chair"]),
    ('[["a", "b"], ["c"]]', ["a", "b", "c"]),
    ('[1, null, [], ["x"], true]', ["x"]),
    ('[["a chair", 0.93], ["a seat", 0.71]]', ["a chair", "a seat"]),
    ("[['a chair' '0.93']\n ['a seat' '7e-1.'] ['7' '1.5e-05']]", ["a chair", "a seat", "7e-1.", "7"]),
    ('["a", NaN]', ["a"]),
    ('["\\ud83e\\ude91"]', ["🪑"]),
    ('["half \\ud83e"]', ["half \ufffd"]),
    ('{"legs": "of wood", "seat": ["leather"]}', ["of wood", "leather"]),
    ('{"id": "x1", "caption": "a chair", "source": "somebody"}', ["a chair"]),
    ('[{"caption": "a chair", "id": 3}, {"caption": "a seat", "id": 4}]', ["a chair", "a seat"]),
    ('[{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "a chair"}]', ["a chair"]),
    ("[{'from': 'human', 'value': 'What is it?'}, {'from': 'gpt', 'value': 'a chair'}]", ["a chair"]),
    ('{"from": "oak", "seat": "leather"}', ["oak", "leather"]),
    ('{"from": ["oak"], "seat": {"role": "to sit on"}}', ["oak", "to sit on"]),
    (json.dumps(json.dumps(["a", "b"])), ["a", "b"]),
    (json.dumps([str(["a", "b"])]), ["a", "b"]),
    ('["\\"Hello\\" it says"]', ['"Hello" it says']),
    ('["\\"Hello\\""]', ['"Hello"']),
    ('["two\nlines"]', ["two\nlines"]),
    # Python
    ("['a', 'b']", ["a", "b"]),
    ("""['A box.', "It's a cuboid."]""", ["A box.", "It's a cuboid."]),
    ("('a', 'b',)", ["a", "b"]),
    ("{'a', }", ["a"]),
    ("'a chair'", ["a chair"]),
    ("{'legs': 'of wood', 'seat': ('leather', None)}", ["of wood", "leather"]),
    ("['a', nan, None]", ["a"]),
    ("['a', <NA>]", ["a"]),
    (r"['caf\xe9', 'tab\there', 'a\\b', '\U0001fa91']", ["café", "tab\there", "a\\b", "🪑"]),
    ("[b'caf\\xc3\\xa9']", ["café"]),
    (str(["it's", 'a "quote"', "both ' and \""]), ["it's", 'a "quote"', "both ' and \""]),
    # NumPy, as pandas writes it
    ("['a' 'b']", ["a", "b"]),
    (str(np.array(["a chair", "a seat"])), ["a chair", "a seat"]),
    (str(np.array(["a", float("nan"), None], dtype=object)), ["a"]),
    (repr(np.array(["a", "b"])), ["a", "b"]),
    (repr(np.array(["a", "b"], dtype=object)), ["a", "b"]),
    (repr([np.str_("a"), np.str_("b")]), ["a", "b"]),
    (str(np.array(["long words " * 9] * 3)), [("long words " * 9).strip()] * 3),
    ("[list(['a', 'b']) list(['c'])]", ["a", "b", "c"]),
    # what only begins like a notation is text
    ("[broken] chair", ["[broken] chair"]),
    ("[a chair]", ["[a chair]"]),
    ("(red) chair", ["(red) chair"]),
    ("(not Python", ["(not Python"]),
    ("{curly}", ["{curly}"]),
    ('"Big Ben" clock', ['"Big Ben" clock']),
    ("'tis a chair", ["'tis a chair"]),
    ("'rock 'n' roll'", ["'rock 'n' roll'"]),
    ("['a', 'b'] and more", ["['a', 'b'] and more"]),
    ("[" * 50_000, ["[" * 50_000]),
    ("[" * 40 + '"a"' + "]" * 40, ["[" * 40 + '"a"' + "]" * 40]),
    ("[__import__('os')]", ["[__import__('os')]"]),
    ("[print('a')]", ["[print('a')]"]),
]


@pytest.mark.parametrize(("cell", "captions"), CELLS, ids=[repr(cell)[:40] for cell, _ in CELLS])
def test_a_cell_holds_the_captions_that_its_writer_meant(cell, captions):
    assert captions_in(cell) == captions


@pytest.mark.parametrize(("cell", "captions"), CELLS, ids=[repr(cell)[:40] for cell, _ in CELLS])
def test_what_is_written_is_read_again(cell, captions):
    assert captions_in(captions_cell(captions)) == list(dict.fromkeys(captions))


def test_a_long_list_is_a_list_however_long():
    many = [f"a chair with {number} legs" for number in range(50_000)]
    assert captions_in(str(many)) == many


def test_values_that_json_held_are_read_as_cells_are():
    assert captions_of(["a", None, 3, ["n/a", "b"]]) == ["a", "b"]
    assert captions_of(None) == captions_of(float("nan")) == captions_of("null") == []
    assert captions_of("['a', 'b']") == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"captions": "[]", "caption": "N/A", "text": "a chair", "overall_label": "x"}, ["a chair"]),
        ({"Caption": "a chair"}, ["a chair"]),
        ({" captions ": "a chair"}, ["a chair"]),
        ({"description": "a chair", "prompt": "a seat"}, ["a chair"]),
        ({"caption": "a", "caption_2": "b", "caption3": "c", "caption_of": "d"}, ["a", "b", "c"]),
        ({"caption": "a", "caption.1": "b", "caption.x": "d"}, ["a", "b"]),
        ({"caption\xa0": "a"}, ["a"]),
        ({"caption": '["a", "a", "b"]'}, ["a", "b"]),
        (
            {"overall_label": "red robot", "materials_captions": "['of steel', 'red robot']"},
            ["red robot", "of steel"],
        ),
        ({"name": "chair"}, []),
    ],
)
def test_captions_come_from_the_first_column_that_has_any(row, captions):
    assert captions_of_row(row) == captions
