"""The page in a real browser: clicks, uploads, keys, widths, themes; and that it asks nobody but its own server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import trimesh

from sdf_vqvae.codes.shape_codes import ShapeCodes

PATIENCE = 180_000
"""Milliseconds; the machine may be busy with other tests."""
DRAWN = "() => [...document.querySelectorAll('model-viewer')].filter(v => v.loaded).length"


class Visitor:
    """One person with a page open."""

    def __init__(self, browser, address: str, *, draws: bool = False, **settings) -> None:
        self.context = browser.new_context(accept_downloads=True, **settings)
        if not draws:  # drawing without a graphics card takes long, and is looked at once
            self.context.route("**/viewer/*.js", lambda route: route.fulfill(body="", content_type="text/javascript"))
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.goto(address)
        self.page.get_by_role("button", name="ball").wait_for()

    def status(self, words: str) -> None:
        """Wait until the status line says this."""
        self.page.locator("#status", has_text=re.compile(words)).wait_for()

    def open_example(self, name: str = "ball") -> None:
        self.page.get_by_role("button", name=name).click()
        self.status(f"{name}: .* rebuilt from them")

    def upload(self, *files: Path) -> None:
        self.page.locator("#upload input[type=file]").set_input_files([str(file) for file in files])

    def wait_drawn(self, count: int = 2) -> None:
        self.page.wait_for_function(f"() => ({DRAWN})() === {count}")


@pytest.fixture(scope="module")
def visitor(browser, address):
    made = Visitor(browser, address, draws=True, viewport={"width": 1200, "height": 900})
    made.open_example()
    yield made
    made.context.close()


def test_an_example_is_encoded_described_rebuilt_and_drawn(visitor):
    page = visitor.page
    visitor.wait_drawn()
    assert re.search(r"Describe this 3D", page.locator("#chat").inner_text())
    assert len(page.locator("#chat .message").all()) >= 2
    assert "Chamfer distance" in page.locator("#scores").inner_text()
    assert "1,280 triangles, closed" in page.locator("#facts").inner_text()
    assert page.locator("[data-legend=rebuilt]").is_visible()
    assert "of the longest side" in page.locator("[data-legend=rebuilt]").inner_text()


def test_like_objects_of_the_index_stand_below_the_nearest_first(visitor):
    hits = visitor.page.locator("#near .hits li")
    hits.nth(1).wait_for()
    assert hits.locator("span").all_inner_texts() == ["ball", "tall block"]
    assert float(hits.first.locator("b").inner_text()) == pytest.approx(1, abs=0.01)
    assert float(hits.last.locator("b").inner_text()) < 0.99


def test_the_views_are_not_blank(visitor):
    visitor.wait_drawn()
    from io import BytesIO

    from PIL import Image

    for place in ("input", "second"):
        shot = visitor.page.locator(f"[data-screen={place}]").screenshot()
        pixels = np.asarray(Image.open(BytesIO(shot)).convert("L"), dtype=float)
        middle, corner = (
            pixels[pixels.shape[0] // 2 - 9 :][:18, pixels.shape[1] // 2 - 9 :][:, :18],
            pixels[12:24, 12:24],
        )
        assert abs(middle.mean() - corner.mean()) > 10, place


def test_both_views_turn_together_by_mouse_and_by_keys(visitor):
    page = visitor.page
    visitor.wait_drawn()
    orbits = "() => [...document.querySelectorAll('model-viewer')].map(v => v.getCameraOrbit().theta)"
    before = page.evaluate(orbits)
    box = page.locator("model-viewer").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y, steps=4)
    page.mouse.up()
    turned = f"() => {{ const [a, b] = ({orbits})(); return Math.abs(a - b) < 1e-3 && Math.abs(a - FROM) > 0.1; }}"
    page.wait_for_function(turned.replace("FROM", str(before[0])))
    after = page.evaluate(orbits)
    page.locator("model-viewer").last.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(turned.replace("FROM", str(after[0])))


def test_the_second_view_shows_codes_where_asked_to(visitor):
    page = visitor.page
    page.get_by_role("radio", name="Codes").check(force=True)
    page.wait_for_function("() => document.querySelectorAll('model-viewer')[1].src.endsWith('codes.glb')")
    assert page.locator("[data-legend=codes]").is_visible()
    assert re.search(r"\d+ codes", page.locator("[data-note=second]").inner_text())
    page.get_by_role("radio", name="Rebuilt").check(force=True)
    page.wait_for_function("() => document.querySelectorAll('model-viewer')[1].src.endsWith('rebuilt.glb')")


def test_questions_are_answered_in_turn(visitor):
    page = visitor.page
    page.get_by_label("Ask about the shape").fill("Is it round?")
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator("#chat", has_text="Is it round?").wait_for()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    assert page.get_by_label("Ask about the shape").input_value() == ""
    page.get_by_role("button", name="What is it used for?").click()
    page.locator("#chat", has_text="What is it used for?").wait_for()
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    assert "Is it round?" in page.locator("#chat").inner_text()


def test_the_slider_rebuilds_on_another_grid(visitor):
    page = visitor.page
    slider = page.locator("#resolution input[type=range]")
    assert slider.get_attribute("aria-label") or page.get_by_label("Resolution of the rebuilt mesh").count()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    slider.dispatch_event("pointerup")
    visitor.status(r"rebuilt from them|grid|surface")
    page.locator("[data-note=second]", has_text="28³").wait_for()


def test_mesh_and_codes_can_be_downloaded(visitor, bench, tmp_path):
    page = visitor.page
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Codes").click()
    waiting.value.save_as(tmp_path / "ball.safetensors")
    assert waiting.value.suggested_filename == "ball.safetensors"
    assert ShapeCodes.load(tmp_path / "ball.safetensors").vae_hash == bench.vae.fingerprint()
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Rebuilt mesh").click()
    waiting.value.save_as(tmp_path / "ball-rebuilt.glb")
    assert len(trimesh.load(tmp_path / "ball-rebuilt.glb", force="mesh").faces)


def test_uploads_are_opened_and_bad_ones_refused_in_words(browser, address, meshes, tmp_path):
    visitor = Visitor(browser, address)
    broken, large = tmp_path / "broken.glb", tmp_path / "large.stl"
    broken.write_bytes(b"no mesh at all")
    visitor.upload(broken)
    visitor.status(r"broken\.glb is not a readable GLB file")
    assert "error" in visitor.page.locator(".status-line").get_attribute("class")
    large.write_bytes(bytes(2**20 + 2**19))
    visitor.upload(large)
    visitor.page.get_by_text(re.compile("exceeds|too large|maximum", re.IGNORECASE)).first.wait_for()
    visitor.page.reload()
    visitor.upload(meshes / "tall block.obj")
    visitor.status("tall block: .* rebuilt from them")
    assert "12 triangles, closed" in visitor.page.locator("#facts").inner_text()
    visitor.page.get_by_role("combobox", name="Which way is up").click()
    visitor.page.get_by_role("option", name="-x is up").click()
    visitor.page.locator("#facts", has_text="-x of the file").wait_for()
    visitor.context.close()


def test_of_a_scan_an_organ_is_chosen(browser, address, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[3:12, 3:12, 3:13] = 1
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / "organs.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver"}))
    visitor = Visitor(browser, address)
    visitor.upload(tmp_path / "organs.nii.gz", tmp_path / "labels.json")
    visitor.status("choose an organ")
    visitor.page.get_by_role("combobox", name="Organ").click()
    visitor.page.get_by_role("option", name="liver").click()
    visitor.status("liver: .* rebuilt from them")
    assert "mm" in visitor.page.locator("#scores").inner_text()
    visitor.context.close()


def test_two_people_do_not_see_each_other(browser, address):
    first, second = Visitor(browser, address), Visitor(browser, address)
    first.page.get_by_role("button", name="ball").click()
    second.open_example("tall block")
    first.status("ball: .* rebuilt from them")
    first.page.locator("#near .hits li").nth(1).wait_for()
    assert first.page.locator("#near .hits span").first.inner_text() == "ball"
    second.page.locator("#near .hits li").nth(1).wait_for()
    assert second.page.locator("#near .hits span").first.inner_text() == "tall block"
    assert "tall block" not in first.page.locator("#stage").inner_text()
    assert "ball" not in second.page.locator("#stage").inner_text()
    first.context.close()
    second.context.close()


@pytest.mark.parametrize("width", [390, 820, 1440])
def test_nothing_is_cut_off_at_any_width(browser, address, width):
    visitor = Visitor(browser, address, viewport={"width": width, "height": 900})
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    columns = [visitor.page.locator(f"[data-screen={place}]").bounding_box() for place in ("input", "second")]
    assert all(box["width"] > 240 for box in columns)
    assert (columns[0]["y"] != columns[1]["y"]) == (width == 390)  # one above the other on a phone
    visitor.context.close()


def luminance(color: str) -> float:
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


COLORS = """selector => {
  const element = document.querySelector(selector);
  let behind = element;
  const clear = /rgba\\(0, 0, 0, 0\\)|transparent/;
  while (behind && clear.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  return [getComputedStyle(element).color, behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)"];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_themes(browser, address, scheme):
    visitor = Visitor(browser, address, color_scheme=scheme)
    dark = luminance(visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert dark == (scheme == "dark")
    for selector in (
        "#heading h1",
        "#heading p",
        ".hint",
        ".status-line",
        ".view-title",
        ".choice span",
        "h2",
        "#send",
        "#resolution .max_value",
    ):
        visitor.page.wait_for_selector(selector, state="attached")
        text, behind = map(luminance, visitor.page.evaluate(COLORS, selector))
        contrast = (max(text, behind) + 0.05) / (min(text, behind) + 0.05)
        assert contrast >= 4.5, (selector, scheme, contrast)  # WCAG 2.2, level AA
    visitor.context.close()


PLACES = ("upload", "examples", "up", "stage", "question", "send", "offered", "resolution", "links")
"""In the order of the Tab key."""
NAMES = """() => [...document.querySelectorAll("button, input, textarea, select, a[href], model-viewer")]
  .filter(e => e.checkVisibility() && !e.disabled)
  .filter(e => ![e.innerText, e.getAttribute("aria-label"), e.title, e.getAttribute("alt"),
                 ...[...(e.labels || [])].map(l => l.innerText)].some(name => name && name.trim()))
  .map(e => e.outerHTML.slice(0, 160))"""


def test_everything_that_can_be_used_has_a_name_and_can_be_reached_by_keys(visitor):
    page = visitor.page
    visitor.wait_drawn()
    assert page.evaluate(NAMES) == []
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("#status [role=status]").count() == 1
    assert page.locator("[role=log]").count() == 1
    assert [page.locator("h1").count(), page.locator("h2").count()] == [1, 3]
    page.evaluate("() => { const h = document.querySelector('h1'); h.tabIndex = -1; h.focus(); }")
    order: list[str] = []
    where = """() => {
      const focused = document.activeElement, box = focused.closest(PLACES);
      const inside = focused.shadowRoot && focused.shadowRoot.activeElement;
      return [box ? box.id : "", (inside || focused).matches(":focus-visible")];
    }""".replace("PLACES", json.dumps(", ".join(f"#{place}" for place in PLACES)))
    for _ in range(60):
        page.keyboard.press("Tab")
        place, shown = page.evaluate(where)
        if place and (not order or order[-1] != place):
            order.append(place)
        assert shown or not place, place
        if place == "links":
            break
    assert order == list(PLACES)


def test_the_page_asks_nobody_but_its_own_server(visitor, address, reached):
    visitor.wait_drawn()
    elsewhere = [url for url in visitor.asked if not url.startswith((address, "data:", "blob:"))]
    assert len(visitor.asked) > 10 and elsewhere == []
    assert visitor.wrong == []
    assert reached == []
    policy = visitor.page.request.get(address).headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy


def test_files_of_others_and_of_the_server_are_not_handed_out(visitor, address):
    get = visitor.page.request.get
    assert get(f"{address}/files/guessed/ball.safetensors").status == 404
    assert get(f"{address}/viewer/..%2Fapp.py").status == 404
    for path in ("/etc/passwd", str(Path(__file__))):
        assert get(f"{address}/gradio_api/file={path}").status in (403, 404)
