"""What the documents show works as it stands there, and they build as a site that needs nothing from outside.

Before each block of commands or Python stands `<!-- run -->`, or why no test runs it. What is run is run in this
process, page by page, in a folder with small meshes under the names that the pages use. The parsers read all of it.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import trimesh

from documents import PAGES, ROOT, Block, as_subcommand, blocks
from vae_qwen3vl.commands.main import COMMANDS, main, make_parser

BLOCKS = list(blocks())
RUN: dict[str, list[Block]] = {}
for one in BLOCKS:
    if one.mark == "run" and one.page != "README.zh-CN.md":  # its commands are README's (`test_readme.py`)
        RUN.setdefault(one.page, []).append(one)
_INLINE = re.compile(r"`python ((?:benchmarks|scripts|examples)/\S+\.py)")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_whether_it_is_run(block):
    assert block.is_told, f"put `<!-- run -->` or `<!-- not run: why -->` before the block:\n{block.code}"


@pytest.fixture(scope="module")
def parser():
    return make_parser()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=str)
def test_every_command_line_is_understood(block, parser):
    for words in block.commands:
        asked = as_subcommand(words)
        if asked is not None and "..." not in asked:
            parser.parse_args(asked)
        elif words[0] == "make":
            target = next(word for word in words[1:] if "=" not in word)
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), target
        elif words[0] in ("python", "bash") and words[1] != "-m":
            program = ROOT / words[1]
            assert program.is_file(), words
            source = program.read_text(encoding="utf-8")
            for flag in [word for word in words[2:] if word.startswith("--") and asked is None]:
                assert f'"{flag}"' in source or words[1].startswith("scripts/run_3d"), f"{program} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_programs_and_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    for program in _INLINE.findall(text):
        assert (ROOT / program).is_file(), program
    for target in re.findall(r"\]\(([^)#\s]+)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert target.startswith("https://") or (page.parent / target).exists(), target


# -- running them ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder as the pages' reader has one: the repository's programs, small meshes, a table of captions."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("configs", "dataset_toolkits", "scripts", "vae_qwen3vl", "sdf_vqvae"):
        (folder / name).symlink_to(ROOT / name)
    examples = folder / "examples"
    examples.mkdir()
    rod, post = trimesh.creation.box((1.0, 0.03, 0.03)), trimesh.creation.cylinder(0.02, 1.0, sections=8)
    for name, mesh in (("chair", rod), ("mug", post)):
        mesh.export(examples / f"{name}.glb")
    (examples / "metadata.csv").write_text(
        "file,captions\nchair.glb,a wooden chair\nmug.glb,a mug\n", encoding="utf-8"
    )
    shutil.copytree(examples, folder / "meshes")
    for name, mesh in (("chair.glb", rod), ("mine.ply", rod), ("theirs.ply", post)):
        mesh.export(folder / name)
    return folder


@pytest.fixture(scope="module")
def loaded_once():
    """The shipped describer is loaded once for all pages: it is the same each time."""
    from vae_qwen3vl import demo, describer
    from vae_qwen3vl.descriptions import run

    once = functools.lru_cache(describer.load_describer)

    def load(vae, *parts, vae_hash=None, **how):
        model = once(None, *parts, vae_hash=vae_hash or vae.fingerprint(), **how)
        model.vae_model = vae
        return model

    with pytest.MonkeyPatch.context() as patch:
        for module in (demo, describer, run):
            patch.setattr(module, "load_describer", load)
        yield


@pytest.mark.slow
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs vae-qwen3vl[language]")
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_shows_runs(page, place, default_lm, loaded_once, monkeypatch, capsys, record_command):
    monkeypatch.chdir(place)
    for block in RUN[page]:
        if block.language == "python":
            exec(compile(block.code, str(block), "exec"), {})
        for words in block.commands:
            asked = as_subcommand(words)
            assert asked is not None, f"{words[0]} is no program of ours: say why the block is not run"
            code = main(asked)
            record_command(f"{page}: {' '.join(words)}", code)
            assert code == 0, capsys.readouterr().err


# -- the site ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does; a warning is an error."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    asked = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_needs_nothing_from_outside(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        found = re.findall(
            r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=[\"']?(?:https?:)?//[^\s\"'>]+", page.read_text()
        )
        assert not found, page


def test_the_site_has_every_command_with_its_help(site):
    said = (site / "cli.html").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert re.search(f'<h3 id="{name}(_1)?">', said), name  # `train` is a group of commands too
        assert f"usage: vae-qwen3vl {name}" in re.sub(r"<[^>]+>", "", said)


def test_the_site_has_what_lies_beside_the_code(site):
    assert "best_by" in (site / "training.html").read_text(encoding="utf-8")
    cards = (site / "model-card.html").read_text(encoding="utf-8")
    assert "The shipped tokenizer" in cards
    assert "The shipped projector and adapter" in cards
    assert "load_describer" in (site / "api.html").read_text(encoding="utf-8")
