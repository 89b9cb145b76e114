"""What an evaluation says about repeated answers, and its page for objects with and without pictures."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sdf_vqvae.evaluation.page import as_html, picture_bytes
from vae_qwen3vl.evaluation.reconstruction import Reconstruction
from vae_qwen3vl.evaluation.repeated_answers import repeated_answers
from vae_qwen3vl.evaluation.report import write_report
from vae_qwen3vl.evaluation.tables import summary_text

THINGS = "chair table lamp sofa spoon plane car boat cup knife liver rib hat tree gear plate bottle door brick wheel"
CAPTIONS = [[f"a {thing}"] for thing in THINGS.split()]


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["red robot"] * 20, 1.0),
        (["Red  robot"] * 9 + [f"a {n}" for n in range(11)], 0.45),
        ([f"The original sentence is {own[0]!r}." for own in CAPTIONS], 1.0),
    ],
)
def test_answers_that_repeat_bring_one_line_with_what_helps(texts, share):
    found = repeated_answers(texts, CAPTIONS)
    assert found["share"] == share
    assert found["captions_share"] == 0.05
    assert found["warning"].startswith(f"{share:.0%} of 20 answers begin like {' '.join(texts[0].split())[:60]!r}")
    for word in ("epochs", "max_samples", "codebook"):
        assert word in found["warning"]
    assert "\n" not in found["warning"]


@pytest.mark.parametrize(
    ("texts", "captions"),
    [
        pytest.param([own[0] for own in CAPTIONS], CAPTIONS, id="answers that differ"),
        pytest.param(["a chair"] * 8 + [own[0] for own in CAPTIONS[8:]], CAPTIONS, id="two in five"),
        pytest.param(["a chair"] * 20, [["a chair"]] * 12 + CAPTIONS[12:], id="objects that are alike"),
        pytest.param(["red robot"] * 7, CAPTIONS[:7], id="few objects"),
        pytest.param([], [], id="none"),
    ],
)
def test_answers_that_differ_as_their_objects_do_bring_none(texts, captions):
    assert repeated_answers(texts, captions) is None


def test_objects_without_captions_are_judged_by_the_answers_alone():
    assert repeated_answers(["red robot"] * 8, [()] * 8)["captions_share"] == 0


SETTINGS = {"data": "codes", "split": "val", "vl_model": "tiny", "prompt": "What?"}
RECORD = {"idx": 0, "sample_id": "one", "generated": "red robot", "codes": 9, "tokens_3d": 3}
PICTURE = picture_bytes(np.full((8, 8, 3), 200, dtype=np.uint8), 10_000)


@pytest.mark.parametrize("names", [(), ("rebuilt from its codes",), ("original", "rebuilt from its codes")])
def test_the_page_has_a_column_for_each_picture_there_is(tmp_path, names):
    made = {"one": Reconstruction(pictures=dict.fromkeys(names, PICTURE))} if names else {}
    write_report(tmp_path / "page.html", {"settings": SETTINGS, "reconstruction": {}}, [RECORD], made)
    (said,) = re.findall(r"<div class='said'>.*</div>", (tmp_path / "page.html").read_text(encoding="utf-8"))
    assert said.count("<img") == len(names)
    assert said.count("<div>") == len(names)
    assert "<div></div>" not in said


def test_a_wide_table_scrolls_within_the_page_and_its_cells_wrap(tmp_path):
    assert as_html([["", "a"], ["b", "1.0 (0.5-1.5)"]]).startswith("<div class='wide'><table>")
    write_report(tmp_path / "page.html", {"settings": SETTINGS, "reconstruction": {}}, [RECORD], {})
    style = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert ".wide { overflow-x: auto }" in style
    assert "white-space: nowrap" not in style


def test_the_warning_is_on_the_page_and_in_the_terminal_and_numbers_there_are_short(tmp_path):
    repeated = repeated_answers(["red robot"] * 20, CAPTIONS)
    means = {"chamfer_l1": 0.0031234567891234, "fscore@0.005": 2 / 3}
    made = {"objects": 1, "without_mesh": 0, "scored": 1, "ceiling": means, "continuous": means, "discrete": means}
    summary = {"settings": SETTINGS, "repeated_answers": repeated, "reconstruction": made}
    write_report(tmp_path / "page.html", summary, [RECORD], {})
    assert "100% of 20 answers begin like" in (tmp_path / "page.html").read_text(encoding="utf-8")
    said = summary_text([RECORD], summary, tmp_path)
    assert "warning: 100% of 20 answers" in said
    assert re.search(r"discrete +0\.003123 +0\.6667", said)
    assert not re.search(r"\d\.\d{7}", said)
