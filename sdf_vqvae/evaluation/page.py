"""What the pages of evaluations are made of: style, tables, pictures in the file itself. All text is escaped."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from html import escape

import numpy as np

from sdf_vqvae.utils.files import write_text

REPORT = "report.html"
"""Name of the page in an evaluation's folder."""
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #262c36; max-width: 1120px; margin: 2em auto; padding: 0 1em }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .6em 0 1.4em }
th, td { padding: .22em .5em; text-align: right; border-bottom: 1px solid #dee2e7; vertical-align: bottom }
th:first-child, td:first-child { text-align: left }
.object { display: grid; grid-template-columns: repeat(4, 1fr); gap: 4px; margin: .3em 0 1.6em }
.object img { width: 100% } .object p { margin: 0; font-size: 13px }
.note { color: #5b6472; font-size: 13px } code { overflow-wrap: anywhere }
"""


def write_page(path: str | os.PathLike[str], title: str, parts: Sequence[str], *, style: str = "") -> None:
    """Write a page whole: a single file without scripts.

    Args:
        path: the file.
        title: its title and first heading.
        parts: HTML, a line each.
        style: more CSS than `STYLE`.
    """
    lines = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{title}</title>",
        f"<style>{STYLE}{style}</style><h1>{title}</h1>",
        *parts,
    ]
    write_text(path, "\n".join(lines) + "</html>\n")


def as_text(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, headings first, with aligned columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line))
        for line in lines
    )


def as_html(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, headings first, as HTML: cells wrap, and what is still too wide scrolls."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines[1:])
    return f"<div class='wide'><table><tr>{head}</tr>\n{body}</table></div>"


def picture_bytes(picture: np.ndarray, most_bytes: int) -> bytes:
    """Return a picture uint8 `[H, W, 3]` as WebP, or PNG where Pillow lacks that, no larger than asked."""
    from PIL import Image, features

    image = Image.fromarray(picture)
    while True:
        file = io.BytesIO()
        if features.check("webp"):
            image.save(file, "WEBP", quality=82, method=6)
        else:
            image.quantize(48).save(file, "PNG", optimize=True)
        if file.tell() <= most_bytes or image.width <= 32:
            return file.getvalue()
        side = max(32, int(image.width * min(0.9, math.sqrt(most_bytes / file.tell()))))
        image = image.resize((side, side), Image.Resampling.LANCZOS)


def image_tag(image: bytes | None, name: str) -> str:
    """Return a picture as HTML with its bytes in it; a note where there is none."""
    if image is None:
        return "<p class='note'>no surface</p>"
    kind = "webp" if image[:4] == b"RIFF" else "png"
    return f"<img alt='{escape(name)}' src='data:image/{kind};base64,{base64.b64encode(image).decode()}'>"
