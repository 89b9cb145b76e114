"""An evaluation as one page for the eye: tables, and pictures of the best, median and worst objects.

The page is a single file without scripts: pictures are in it, and every text from outside is escaped.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sdf_vqvae.data.objects import StoredObject
from sdf_vqvae.evaluation.page import REPORT, as_html, image_tag, picture_bytes, write_page
from sdf_vqvae.evaluation.rebuild import ROWS, Rebuilt, mesh_of, rebuild
from sdf_vqvae.evaluation.run import read_objects
from sdf_vqvae.evaluation.summary import Record
from sdf_vqvae.evaluation.tables import table
from sdf_vqvae.geometry.picture import fit_camera, render_mesh
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.progress import Progress

RANKED_BY = "fscore@0.005"
PANELS = ("truth", *ROWS)
_MOST_BYTES = 1_000_000
"""Of all pictures; base64 adds a third."""
_SIDE = 360


def chosen_for_pictures(records: Sequence[Record], count: int) -> list[tuple[str, str]]:
    """Return (rank, id) of the `count` best, median and worst objects by the discrete row; none twice."""
    ranked = sorted(records, key=lambda r: (-r["discrete"][RANKED_BY], r["discrete"]["chamfer_l1"], r["id"]))
    middle = max(0, (len(ranked) - count) // 2)
    groups = (("best", ranked[:count]), ("worst", ranked[-count:]), ("median", ranked[middle : middle + count]))
    ranks: dict[str, str] = {}
    for rank, members in groups if count else ():
        for record in members:
            ranks.setdefault(record["id"], rank)
    order = {r["id"]: number for number, r in enumerate(ranked)}
    places = {"best": 0, "median": 1, "worst": 2}
    return sorted(((rank, name) for name, rank in ranks.items()), key=lambda f: (places[f[0]], order[f[1]]))


# -- pictures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of one object, encoded, one for each of `PANELS`; None where there is no mesh."""

    id: str
    images: tuple[bytes | None, ...]


def draw_objects(
    vae: SparseSDFVQVAE,
    shapes: Sequence[StoredObject],
    *,
    threshold_factor: float | None = None,
    workers: int = 1,
) -> dict[str, Pictures]:
    """Rebuild objects and draw truth, ceiling, continuous and discrete of each. Returns pictures by id."""
    if not shapes:
        return {}

    def rebuilt() -> Iterator[Rebuilt]:
        for shape in shapes:
            yield rebuild(vae, shape, threshold_factor=threshold_factor)

    maker = functools.partial(make_painter, side=_SIDE, most_bytes=_MOST_BYTES // (len(PANELS) * len(shapes)))
    progress = Progress(len(shapes), "pictures")
    drawn: dict[str, Pictures] = {}
    with progress, contextlib.closing(run_jobs(maker, rebuilt(), workers=workers)) as results:
        for result in results:
            if result.result is not None:
                drawn[result.result.id] = result.result
            progress.update()
    return drawn


def make_painter(device: str, *, side: int, most_bytes: int) -> Callable[[Rebuilt], Pictures]:
    """Return what draws an object, for `run_jobs`."""
    return functools.partial(_draw, side=side, most_bytes=most_bytes)


def _draw(rebuilt: Rebuilt, *, side: int, most_bytes: int) -> Pictures:
    if rebuilt.truth is None:
        return Pictures(id=rebuilt.record["id"], images=(None,) * len(PANELS))
    camera = fit_camera(mesh_of(rebuilt.truth))
    images = []
    for triangles in (rebuilt.truth, *(rebuilt.meshes.get(row) for row in ROWS)):
        picture = None if triangles is None else render_mesh(mesh_of(triangles), side, camera=camera)
        images.append(None if picture is None else picture_bytes(picture, most_bytes))
    return Pictures(id=rebuilt.record["id"], images=tuple(images))


# -- the page ----------------------------------------------------------------------------------------------------


def draw_report(
    vae: SparseSDFVQVAE,
    shapes: Sequence[StoredObject],
    folder: str | os.PathLike[str],
    summary: dict[str, Any],
    *,
    pictures: int = 3,
    workers: int = 1,
) -> None:
    """Draw the best, median and worst objects of an evaluation, and write its page into its folder.

    Args:
        vae: the tokenizer.
        shapes: the objects that were evaluated.
        folder: of the evaluation.
        summary: of `evaluate_shapes`.
        pictures: so many objects of each rank.
        workers: processes that draw; one does so in this process.
    """
    records = read_objects(folder)
    chosen = chosen_for_pictures([records[shape.id] for shape in shapes], pictures)
    wanted = {name for _, name in chosen}
    drawn = draw_objects(
        vae,
        [shape for shape in shapes if shape.id in wanted],
        threshold_factor=summary["settings"]["threshold_factor"],
        workers=min(workers, max(1, len(chosen))),
    )
    write_report(Path(folder) / REPORT, summary, records, chosen, drawn)


def write_report(
    path: str | os.PathLike[str],
    summary: dict[str, Any],
    records: dict[str, Record],
    chosen: Sequence[tuple[str, str]],
    pictures: dict[str, Pictures],
) -> None:
    """Write the page.

    Args:
        path: the file.
        summary: of `evaluate_shapes`.
        records: of all objects, by id.
        chosen: of `chosen_for_pictures`.
        pictures: of `draw_objects`.
    """
    parts = [
        *_about(summary),
        *_tables(summary),
        *_failures(summary),
        *_objects(records, chosen, pictures),
        "<h2>Formulas</h2><table>",
        *(
            f"<tr><td>{escape(name)}</td><td style='text-align:left;white-space:normal'>{escape(words)}</td></tr>"
            for name, words in summary["formulas"].items()
        ),
        "</table>",
    ]
    write_page(path, "Reconstruction", parts)


def _about(summary: dict[str, Any]) -> list[str]:
    settings = summary["settings"]
    split = f", split {settings['split']}" if settings["split"] else ""
    lines = [
        f"<p>{summary['objects']:,} objects of <code>{escape(settings['shapes'])}</code>{escape(split)}; tokenizer "
        f"<code>{escape(settings['tokenizer'][:12])}</code>; {settings['samples']:,} samples a surface, seed "
        f"{settings['seed']}; {escape(summary['device'])}.</p>"
    ]
    if summary["truth_is_field"]:
        lines.append(
            "<p><b>The objects are fields, not meshes:</b> the ground truth is the surface of the field itself, so "
            "the ceiling row is the reference compared with itself.</p>"
        )
    return lines


def _tables(summary: dict[str, Any]) -> list[str]:
    parts = []
    for name in ("all", "watertight"):
        if name in summary["subsets"]:
            subset = summary["subsets"][name]
            rows = [(row, subset[row]) for row in ROWS]
            parts += [f"<h2>{escape(name)}, {subset['objects']:,} objects</h2>", "<p class='note'>Means.</p>"]
            parts += [as_html(table(rows))]
            parts += ["<p class='note'>Medians.</p>", as_html(table(rows, value="median"))]
            gaps = [(gap, values) for gap, values in subset["gaps"].items()]
            parts += ["<p class='note'>Means of paired differences.</p>", as_html(table(gaps))]
    rows = [(f"{name} ({subset['objects']:,})", subset["discrete"]) for name, subset in summary["subsets"].items()]
    parts += ["<h2>Subsets, discrete row</h2>", "<p class='note'>Means.</p>", as_html(table(rows))]
    for title, values in (("Codes an object", summary["codes"]), ("Codebook", summary["codebook"])):
        lines = [[name.replace("_", " "), f"{value:,.4g}"] for name, value in values.items()]
        parts += [f"<h2>{title}</h2>", as_html([["", ""], *lines])]
    lines = [
        [stage, *(f"{times[key]:.3f}" for key in ("median", "95 %"))] for stage, times in summary["seconds"].items()
    ]
    parts += ["<h2>Seconds an object</h2>", as_html([["", "median", "95 %"], *lines])]
    return parts


def _failures(summary: dict[str, Any]) -> list[str]:
    failures = summary["failures"]
    if not failures:
        return ["<h2>Failures</h2><p>None.</p>"]
    lines = [["object", "rows", "reason"]]
    lines += [[f["id"], ", ".join(f["rows"]), "; ".join(f["errors"].values())[:160]] for f in failures[:50]]
    more = f"<p class='note'>and {len(failures) - 50:,} more, in summary.json</p>" if len(failures) > 50 else ""
    return [f"<h2>Failures: {len(failures):,}, scored as the worst case</h2>", as_html(lines), more]


def _objects(
    records: dict[str, Record], chosen: Sequence[tuple[str, str]], pictures: dict[str, Pictures]
) -> list[str]:
    parts: list[str] = []
    last = ""
    for rank, name in chosen:
        record = records[name]
        if rank != last:
            parts.append(
                f"<h2>{rank.capitalize()} objects</h2><p class='note'>By {RANKED_BY} of the discrete row.</p>"
            )
            last = rank
        closed = "watertight" if record["watertight"] else "open"
        parts.append(
            f"<p><b>{escape(name)}</b> <span class='note'>{escape(str(record['source']))}, {record['faces']:,} "
            f"faces, {closed}, {record['codes']:,} codes</span></p><div class='object'>"
        )
        images = pictures[name].images if name in pictures else (None,) * len(PANELS)
        for panel, image in zip(PANELS, images, strict=True):
            parts.append(f"<div>{image_tag(image, panel)}<p>{_words(panel, record)}</p></div>")
        parts.append("</div>")
    return parts


def _words(panel: str, record: Record) -> str:
    if panel == "truth":
        return "truth"
    score = record[panel]
    words = f"{panel}: F@.005 {score['fscore@0.005']:.3f}, F@.01 {score['fscore@0.01']:.3f}, "
    words += f"CD-L1 {score['chamfer_l1']:.4f}"
    if score["volume_iou"] is not None:
        words += f", V-IoU {score['volume_iou']:.3f}"
    return escape(words)
