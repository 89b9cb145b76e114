"""The numbers of an evaluation as tables of texts, for a terminal and for the page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdf_vqvae.evaluation.page import as_text
from sdf_vqvae.evaluation.rebuild import ROWS
from vae_qwen3vl.evaluation.caption_metrics import CAPTION_METRICS
from vae_qwen3vl.evaluation.controls import NOT_BLIND, OWN
from vae_qwen3vl.evaluation.summary import BALANCED, BY_LIKELIHOOD, BY_WORDS, DECLINED, MACRO, RISK_COVERAGE

_CLOSED = (("top_1", "top-1"), ("top_5", "top-5"), (MACRO, "macro top-1"))
_RECALLS = (("recall_1", "R@1"), ("recall_5", "R@5"), ("recall_10", "R@10"))
_SHOWN = 20
"""Objects whose descriptions a terminal shows."""
Lines = list[list[str]]


def row_label(row: str) -> str:
    """Return what a row is called: one that sees the object says so."""
    return f"{row} (not blind)" if row in NOT_BLIND else row


def caption_table(captions: Mapping[str, Any]) -> Lines:
    """Return descriptions by row; all but words and CIDEr times 100."""
    shown = [(key, metric.heading) for key, metric in CAPTION_METRICS.items() if key in captions["rows"][OWN]]
    lines = [["", *(heading for _, heading in shown)]]
    for row, values in captions["rows"].items():
        lines.append([row_label(row), *(_cell(key, values[key]) for key, _ in shown)])
    if captions["gaps"]:
        cells = [_gap(key, captions["gaps"].get(key)) for key, _ in shown]
        lines.append(["gap to the best blind control", *cells])
    return lines


def risk_coverage_table(rows: Sequence[Mapping[str, Any]]) -> Lines:
    """Return Sentence-BERT of the surest descriptions by their share, times 100."""
    lines = [["the surest", *(f"{100 * row['coverage']:.0f} %" for row in rows)]]
    for key, label in (("score", "Sentence-BERT"), ("best", "in the best order")):
        lines.append([label, *(f"{100 * row[key]:.1f}" for row in rows)])
    return lines


def closed_table(closed: Mapping[str, Any]) -> Lines:
    """Return a closed set by row, times 100."""
    if "rows" not in closed:
        return [["", "objects"], ["no object has an answer that occurs in training", "0"]]
    shown = [(key, heading) for key, heading in _CLOSED if key in closed["rows"][OWN]]
    lines = [["", *(heading for _, heading in shown)]]
    lines += [[row_label(row), *(_cell(key, own[key]) for key, _ in shown)] for row, own in closed["rows"].items()]
    if closed["gaps"]:
        lines.append(["gap to the best blind control", *(_gap(key, closed["gaps"].get(key)) for key, _ in shown)])
    return lines


def users_table(balanced: Mapping[str, Any]) -> Lines:
    """Return yes/no questions in users' words by kind and language, times 100; the best blind row in brackets."""
    lines = [["", "objects", "by likelihood", "by the answer's words", "answers that say yes or no"]]
    for name, own in balanced.items():
        cells = [_beside_best(own[way], BALANCED) for way in (BY_LIKELIHOOD, BY_WORDS)]
        lines.append([name, str(own["objects"]), *cells, f"{100 * own['read']:.1f}"])
    means = [
        np.mean([own[way]["rows"][OWN]["mean"] for own in balanced.values()]) for way in (BY_LIKELIHOOD, BY_WORDS)
    ]
    return [*lines, ["mean", "", *(f"{100 * mean:.1f}" for mean in means), ""]]


def declined_table(declined: Mapping[str, Any]) -> Lines:
    """Return the share of declined questions that no shape answers, times 100; the best blind row in brackets."""
    lines = [["", "objects", "declined"]]
    return lines + [[name, str(own["objects"]), _beside_best(own, DECLINED)] for name, own in declined.items()]


def _beside_best(own: Mapping[str, Any], measure: str) -> str:
    """Return the own shapes' mean with its interval, and the blind row that comes closest."""
    best = own["gaps"][measure]["control"]
    return f"{_cell(measure, own['rows'][OWN])} [{100 * own['rows'][best]['mean']:.1f} {best}]"


def retrieval_table(retrieval: Mapping[str, Any]) -> Lines:
    """Return recalls by row and direction, times 100."""
    lines = [["", *(heading for _, heading in _RECALLS)]]
    for row, directions in retrieval["rows"].items():
        for direction, own in directions.items():
            lines.append([f"{row}, {direction}", *(_cell(key, own[key]) for key, _ in _RECALLS)])
    lines.append(["chance", *(f"{100 * retrieval['chance'][key]:.1f}" for key, _ in _RECALLS)])
    return lines


def titled_tables(summary: Mapping[str, Any]) -> list[tuple[str, Lines]]:
    """Return all tables of a summary with their titles."""
    tables: list[tuple[str, Lines]] = []
    seen = f", {summary['trained_on']:,} of them TRAINED ON" if summary.get("trained_on") else ""
    if summary.get("captions"):
        title = f"Descriptions, {summary['captions']['objects']:,} objects{seen}"
        tables.append((title, caption_table(summary["captions"])))
        if RISK_COVERAGE in summary["captions"]:
            title = "Descriptions of which the model is surest (mean probability of their tokens)"
            tables.append((title, risk_coverage_table(summary["captions"][RISK_COVERAGE])))
    for kind, closed in summary.get("closed", {}).items():
        title = f"{kind}: {closed['objects']:,} objects{seen}, {closed['candidates']:,} candidates"
        if "macro" in closed:
            title += f"; macro over {closed['macro']['answers']:,} answers of {closed['macro']['objects']:,} objects"
        tables.append((title, closed_table(closed)))
    users = summary.get("users_questions", {})
    if users.get(BALANCED):
        tables.append((f"Yes or no in users' words{seen}; mean over the two answers", users_table(users[BALANCED])))
    if users.get(DECLINED):
        tables.append((f"What a shape can't show{seen}", declined_table(users[DECLINED])))
    if summary.get("retrieval"):
        tables.append(
            (f"Retrieval among {summary['retrieval']['objects']:,}{seen}", retrieval_table(summary["retrieval"]))
        )
    return tables


def summary_text(
    records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], output: str | os.PathLike[str]
) -> str:
    """Return what the terminal shows: the first descriptions, the tables, and where the rest is."""
    lines = []
    for record in records[:_SHOWN]:
        lines.append(f"{record['idx']}: {' '.join(str(record['generated']).split())}")
        if "gt_caption" in record:
            lines.append(f"   authors: {record['gt_caption']}")
    for title, table in titled_tables(summary):
        lines += ["", title, as_text(table)]
    if summary["reconstruction"]:
        lines += ["", *_reconstruction_lines(summary["reconstruction"])]
    if "repeated_answers" in summary:
        lines += ["", f"warning: {summary['repeated_answers']['warning']}"]
    return "\n".join([*lines, "", os.fspath(output)])


def _reconstruction_lines(means: Mapping[str, Any]) -> list[str]:
    """Return how many meshes were made, and a table of the scores where there are any."""
    lines = [f"meshes: {means['objects']} objects, {means['without_mesh']} without one, {means['scored']} scored"]
    rows = [row for row in ROWS if row in means]
    if rows:
        names = list(means[rows[0]])
        table = [["", *names], *([row, *(f"{means[row][name]:.4g}" for name in names)] for row in rows)]
        lines.append(as_text(table))
    return lines


def _cell(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    if not _percent(key):
        return f"{value['mean']:.2f}"
    return f"{100 * value['mean']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def _gap(key: str, value: Any) -> str:
    if value is None:
        return ""
    if not _percent(key):
        return f"{value['mean']:+.2f}"
    return f"{100 * value['mean']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"


def _percent(key: str) -> bool:
    return key not in CAPTION_METRICS or CAPTION_METRICS[key].percent
