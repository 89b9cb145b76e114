"""The blocks of code in the documents: what stands before them, and the command lines in them."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "README.zh-CN.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "vae_qwen3vl").glob("*.md"),
    ]
)
PROGRAMS = {
    "vae_qwen3vl/train_finetune": "train",
    "vae_qwen3vl/eval_3d_vl": "eval",
    "vae_qwen3vl/run_smoke_test": "smoke-test",
    "dataset_toolkits/sdf_voxelize": "voxelize",
    "dataset_toolkits/process_m3d_seg_format": "ct",
    "scripts/train_tokenizer": "train-tokenizer",
}
"""Documented scripts, and the subcommands that are the same programs."""
HAVE_TESTS = {
    "docs/transformers.md": "tests/vae_qwen3vl/pretrained",
    "docs/export.md": "tests/vae_qwen3vl/export",
    "docs/server.md": "tests/vae_qwen3vl/serving",
    "docs/search.md": "tests/vae_qwen3vl/search",
    "docs/page.md": "tests/vae_qwen3vl/page",
}
"""Pages whose blocks are run where what they tell of is tested; their command lines are read here too."""
_BLOCK = re.compile(r"^(?:<!-- (run|not run: [^\n]+?) -->\n)?```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"\w+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    number: int
    mark: str
    """`run`, or `not run: ` with the reason; empty where nothing is said."""
    language: str
    code: str

    @property
    def is_told(self) -> bool:
        """Whether it says what becomes of it, or its page has tests of its own."""
        return bool(self.mark) or (self.page in HAVE_TESTS and (ROOT / HAVE_TESTS[self.page]).is_dir())

    def __str__(self) -> str:
        return f"{self.page} {self.number}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, without variables before it and pipes and comments behind."""
        lines = self.code.replace("\\\n", " ").splitlines() if self.language == "bash" else []
        split = [shlex.split(line, comments=True) for line in _whole(lines)]
        return [words for line in split if (words := _command(line))]


def _whole(lines: list[str]) -> Iterator[str]:
    """Yield command lines, those with a quotation over several lines as one."""
    begun = ""
    for line in lines:
        begun += line
        if any(begun.split("#")[0].count(quote) % 2 for quote in "'\""):
            begun += "\n"
            continue
        yield begun
        begun = ""


def _command(words: list[str]) -> list[str]:
    words = list(itertools.takewhile(lambda word: word not in (">", "|", "&", "&&"), words))
    return list(itertools.dropwhile(_VARIABLE.match, words))


def blocks() -> Iterator[Block]:
    """Yield the blocks of all pages."""
    for page in PAGES:
        for number, found in enumerate(_BLOCK.findall(page.read_text(encoding="utf-8")), 1):
            yield Block(page.relative_to(ROOT).as_posix(), number, *found)


def as_subcommand(words: list[str]) -> list[str] | None:
    """Return the arguments of `vae-qwen3vl` that a command line comes to; None for another program.

    What starts several processes is taken for what each of them runs.
    """
    if words[0] == "vae-qwen3vl":
        return words[1:]
    if words[:3] == ["python", "-m", "vae_qwen3vl"]:
        return words[3:]
    if words[:2] == ["python", "-m"]:
        words = ["python", words[2].replace(".", "/") + ".py", *words[3:]]
    if words[0] not in ("python", "accelerate", "torchrun"):
        return None
    for place, word in enumerate(words):
        if word.removesuffix(".py") in PROGRAMS:
            return [PROGRAMS[word.removesuffix(".py")], *words[place + 1 :]]
    return None
