"""README is short, and says in Chinese what it says in English; `test_pages.py` runs what it shows."""

from __future__ import annotations

import re

import pytest

from documents import ROOT, blocks

README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"


@pytest.mark.parametrize("page", [README, CHINESE], ids=lambda path: path.name)
def test_readme_stays_short(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 160


def test_both_languages_say_the_same():
    english, chinese = (page.read_text(encoding="utf-8") for page in (README, CHINESE))
    commands = [
        [words for block in blocks() if block.page == page.name for words in block.commands]
        for page in (README, CHINESE)
    ]
    assert commands[0] == commands[1]
    assert len(commands[0]) > 10
    assert re.findall(r"^#+ ", english, re.MULTILINE) == re.findall(r"^#+ ", chinese, re.MULTILINE)
    linked = [
        {link for link in re.findall(r"\]\(([^)]+)\)", text) if "README" not in link} for text in (english, chinese)
    ]
    assert linked[0] == linked[1]
    numbers = [
        set(re.findall(r"\d[\d,.]*\d", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
        for text in (english, chinese)
    ]
    assert numbers[0] == numbers[1]


def test_python_needs_no_more_words_than_it_did():
    short, classes = (block.code for block in blocks() if block.page == "README.md" and block.language == "python")
    assert len(short.splitlines()) <= 8
    assert "forward_with_3d" in classes
