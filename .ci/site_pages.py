"""What the site's pages have beyond their Markdown, as a hook of MkDocs: the commands' help, and other files.

The help of every command comes from its parser, so the page can't say another thing than the program. Links that lead
out of `docs/` are right in the repository and would lead nowhere on the site: there, they are the file's name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.programs import parser_of
from vae_qwen3vl.commands.main import COMMANDS, GROUPS, PROGRAM, command_of

ROOT = Path(__file__).resolve().parents[1]
COMMANDS_HERE = "<!-- the commands -->"
_INCLUDE = re.compile(r"<!-- include: (\S+) -->")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)")
_WIDTH = "100"
DOCS = "docs"
INCLUDED = {
    name: page.name
    for page in sorted((ROOT / DOCS).glob("*.md"))
    for name in _INCLUDE.findall(page.read_text(encoding="utf-8"))
}
"""Files that are part of a page of the site."""


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill a page in."""
    if COMMANDS_HERE in markdown:
        markdown = markdown.replace(COMMANDS_HERE, commands())
    markdown = with_links(markdown, (ROOT / DOCS / page.file.src_uri).parent)
    return _INCLUDE.sub(
        lambda name: with_links((ROOT / name[1]).read_text("utf-8"), (ROOT / name[1]).parent), markdown
    )


def with_links(markdown: str, folder: Path) -> str:
    """Return the text of a file of a folder with links as they are on the site."""
    return _LINK.sub(lambda link: _link(link, folder), markdown)


def commands() -> str:
    """Return a section for each command: what it does, and its help."""
    os.environ["COLUMNS"] = _WIDTH  # of argparse
    parts = []
    for title, group in GROUPS.items():
        parts.append(f"## {title.capitalize()}\n")
        for name, (_, about) in group.items():
            said = parser_of(command_of(name), f"{PROGRAM} {name}").format_help()
            parts.append(f"### {name}\n\n{about}\n\n```text\n{said.rstrip()}\n```\n")
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)
    return "\n".join(parts)


def _link(link: re.Match[str], folder: Path) -> str:
    """Return a link to a page as it is there, and of another file its name.

    Raises:
        ValueError: there is no such file.
    """
    words, target, anchor = link[1], link[2], link[3] or ""
    path = (folder / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        raise ValueError(f"{link[0]}: there is no such file")
    if path.is_relative_to(ROOT / DOCS):
        return f"[{words}]({path.relative_to(ROOT / DOCS).as_posix()}{anchor})"
    name = path.relative_to(ROOT).as_posix()
    if page := INCLUDED.get(name):
        return f"[{words}]({page}{anchor})"
    return f"`{name}`" if words.strip("`") in (name, path.name) else f"{words} (`{name}`)"
