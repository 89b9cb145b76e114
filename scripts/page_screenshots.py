"""Pictures of the page for the documents: an example opened at three widths, in light and dark.

    vae-qwen3vl index examples -o examples_index
    vae-qwen3vl app --port 7860 --index examples_index &
    python scripts/page_screenshots.py http://127.0.0.1:7860 -o docs

Needs playwright and a Chromium of the system's. Writes `page-{width}-{scheme}.png`, of few colours, so that they stay
small.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
from pathlib import Path

SHOTS = ((390, "light"), (390, "dark"), (820, "light"), (820, "dark"), (1440, "light"), (1440, "dark"))
"""Width of the window (a phone, a tablet, a desk) and theme."""
_COMMON = 128
"""Of a picture's 256 colours, those that many of its pixels have."""
_PATIENCE = 600_000
_DRAWN = "() => [...document.querySelectorAll('model-viewer')].filter(v => v.loaded).length === 2"


def main() -> None:
    """Take them."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description="Take pictures of the page for the documents.")
    parser.add_argument("address", help="of a running page")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--example", default="chair", help="the example to open (chair)")
    parser.add_argument("--question", default="Which category does it belong to?", help="one of the page's own")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no Chromium on this machine (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        page = browser.new_page(viewport={"width": SHOTS[-1][0], "height": 900})
        page.set_default_timeout(_PATIENCE)
        page.goto(options.address)
        page.get_by_role("button", name=options.example).click()
        page.locator("#status", has_text=re.compile("rebuilt from them")).wait_for()
        page.get_by_role("button", name="Ask", exact=True).wait_for()
        page.get_by_role("button", name=options.question).click()
        page.locator("#chat", has_text=options.question).wait_for()
        page.get_by_role("button", name="Ask", exact=True).wait_for()
        for width, scheme in SHOTS:
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(_DRAWN)
            page.wait_for_timeout(8000)  # until what was drawn is on the screen
            page.mouse.move(0, 0)
            path = options.output / f"page-{width}-{scheme}.png"
            path.write_bytes(small(page.screenshot(full_page=True, timeout=_PATIENCE)))
            print(f"{path}: {path.stat().st_size:,} bytes")
        browser.close()


def small(picture: bytes) -> bytes:
    """Return a PNG of 256 colours: those of the large quiet planes, and rare ones, so that a scale keeps its own."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")
    common = image.quantize(_COMMON, Image.Quantize.MEDIANCUT).getpalette()
    rare = image.quantize(256 - _COMMON, Image.Quantize.MAXCOVERAGE).getpalette()
    assert common is not None and rare is not None
    palette = Image.new("P", (1, 1))
    palette.putpalette(common[: 3 * _COMMON] + rare[: 3 * (256 - _COMMON)])
    file = io.BytesIO()
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    main()
