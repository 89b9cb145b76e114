"""An evaluation of the language side as one page: tables, and objects with pictures, words and controls.

A single file without scripts; every text from outside is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sdf_vqvae.evaluation.page import as_html, image_tag, write_page
from sdf_vqvae.evaluation.rebuild import ROWS
from vae_qwen3vl.evaluation.reconstruction import Reconstruction
from vae_qwen3vl.evaluation.tables import row_label, titled_tables

_MOST_OBJECTS = 300
_STYLE = """
.said { display: flex; gap: 8px; align-items: flex-start; margin: .8em 0 1.4em; border-top: 1px solid #dee2e7;
padding-top: .6em } .said img { width: 300px } .said p { margin: .1em 0 .4em } .words { flex: 1; min-width: 0 }
.said dl { margin: 0; display: grid; grid-template-columns: fit-content(18em) 1fr; gap: 2px 10px; font-size: 13px }
.said dt { color: #5b6472 } .said dd { margin: 0; overflow-wrap: anywhere } .own { font-size: 17px }
"""


def write_report(
    path: str | os.PathLike[str],
    summary: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    reconstructions: Mapping[str, Reconstruction],
) -> None:
    """Write the page.

    Args:
        path: the file.
        summary: of the evaluation, as `eval_summary.json` holds it.
        records: of the objects, as `eval_results.jsonl` holds them.
        reconstructions: by object id.
    """
    settings = summary["settings"]
    shown = sorted(records, key=lambda record: not _pictures(reconstructions, record))[:_MOST_OBJECTS]
    parts = [
        f"<p>{len(records):,} objects of <code>{escape(str(settings['data']))}</code>"
        + (f", split {escape(str(settings['split']))}" if settings["split"] else "")
        + f"; language model <code>{escape(settings['vl_model'])}</code>; asked "
        f"<q>{escape(settings['prompt'])}</q>; {_how_taken(settings)}.</p>",
    ]
    if "repeated_answers" in summary:
        parts.append(f"<p><b>{escape(summary['repeated_answers']['warning'])}.</b></p>")
    for title, lines in titled_tables(summary):
        parts += [f"<h2>{escape(title)}</h2>", as_html(lines)]
    if any("captions" in record for record in records):
        parts.append(
            "<p class='note'>Times 100 but for words and CIDEr, with intervals of 95 %. Blind controls don't see the "
            "object; what is not above them says nothing about shapes.</p>"
        )
    parts.append("<h2>Objects</h2>")
    if len(shown) < len(records):
        parts.append(f"<p class='note'>{len(shown):,} of {len(records):,}; all are in eval_results.jsonl.</p>")
    parts += [_object(record, reconstructions.get(str(record["sample_id"]))) for record in shown]
    if summary.get("formulas"):
        parts += ["<h2>Formulas</h2><dl>"]
        parts += [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in summary["formulas"].items()]
        parts.append("</dl>")
    write_page(path, "3D to words", [*parts, ""], style=_STYLE)


def _how_taken(settings: Mapping[str, Any]) -> str:
    """Return how the answers came about."""
    if "candidates" not in settings:
        return "greedy"
    return f"chosen among {settings['candidates']['candidates'] + 1} answers"


def _pictures(reconstructions: Mapping[str, Reconstruction], record: Mapping[str, Any]) -> bool:
    reconstruction = reconstructions.get(str(record["sample_id"]))
    return reconstruction is not None and bool(reconstruction.pictures)


def _object(record: Mapping[str, Any], reconstruction: Reconstruction | None) -> str:
    parts = ["<div class='said'>"]
    pictures = reconstruction.pictures if reconstruction is not None else {}
    for name in ("original", "rebuilt from its codes"):
        if name in pictures:
            parts.append(f"<div>{image_tag(pictures[name], name)}<p class='note'>{escape(name)}</p></div>")
    parts.append(f"<div class='words'><p class='own'>{escape(record['generated']) or '(nothing)'}</p><dl>")
    facts: dict[str, str] = {"authors' words": " / ".join(record.get("captions", ()))}
    for row, text in record.get("controls", {}).items():
        facts[row_label(row)] = str(text)
    for answered in record.get("answers", {}).values():
        mark = "right" if answered["right"] else f"wrong: {answered['expected']}"
        facts[str(answered["question"])] = f"{answered['answer']} ({mark})"
    facts["object"] = f"{record['sample_id']}, {record['codes']:,} codes, {record['tokens_3d']:,} 3D tokens"
    scores = None if reconstruction is None else reconstruction.scores
    if scores is not None:
        facts["rebuilt"] = "; ".join(
            f"{row} F@.005 {scores[row]['fscore@0.005']:.3f} CD-L1 {scores[row]['chamfer_l1']:.4f}" for row in ROWS
        )
    if reconstruction is not None and reconstruction.error:
        facts["no mesh"] = reconstruction.error
    parts += [f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items() if text]
    return "".join([*parts, "</dl></div></div>"])
