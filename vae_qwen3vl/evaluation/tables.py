"""The numbers of an evaluation as tables of texts, for a terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vae_qwen3vl.evaluation.controls import NEIGHBOR, OWN
from vae_qwen3vl.evaluation.summary import MACRO, SENTENCE_BERT

_CAPTIONS = (
    (SENTENCE_BERT, "Sentence-BERT"),
    ("bleu_1", "BLEU-1"),
    ("rouge_l", "ROUGE-L"),
    ("meteor", "METEOR"),
    ("cider", "CIDEr"),
    ("words", "words"),
    ("distinct_1", "distinct-1"),
    ("distinct_2", "distinct-2"),
)
_CLOSED = (("top_1", "top-1"), ("top_5", "top-5"), (MACRO, "macro top-1"))
_RECALLS = (("recall_1", "R@1"), ("recall_5", "R@5"), ("recall_10", "R@10"))
_PLAIN = ("words", "cider")
Lines = list[list[str]]


def caption_table(captions: Mapping[str, Any]) -> Lines:
    """Return descriptions by row; all but words and CIDEr times 100."""
    shown = [(key, heading) for key, heading in _CAPTIONS if key in captions["rows"][OWN]]
    lines = [["", *(heading for _, heading in shown)]]
    for row, values in captions["rows"].items():
        lines.append([_label(row), *(_cell(key, values[key]) for key, _ in shown)])
    if captions["gaps"]:
        cells = [_gap(key, captions["gaps"].get(key)) for key, _ in shown]
        lines.append(["gap to the best blind control", *cells])
    return lines


def closed_table(closed: Mapping[str, Any]) -> Lines:
    """Return a closed set by row, times 100."""
    if "rows" not in closed:
        return [["", "objects"], ["no object has an answer that occurs in training", "0"]]
    shown = [(key, heading) for key, heading in _CLOSED if key in closed["rows"][OWN]]
    lines = [["", *(heading for _, heading in shown)]]
    lines += [[_label(row), *(_cell(key, own[key]) for key, _ in shown)] for row, own in closed["rows"].items()]
    if closed["gaps"]:
        lines.append(["gap to the best blind control", *(_gap(key, closed["gaps"].get(key)) for key, _ in shown)])
    return lines


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
    found: list[tuple[str, Lines]] = []
    seen = f", {summary['trained_on']:,} of them TRAINED ON" if summary.get("trained_on") else ""
    if summary.get("captions"):
        title = f"Descriptions, {summary['captions']['objects']:,} objects{seen}"
        found.append((title, caption_table(summary["captions"])))
    for kind, closed in summary.get("closed", {}).items():
        title = f"{kind}: {closed['objects']:,} objects{seen}, {closed['candidates']:,} candidates"
        if "macro" in closed:
            title += f"; macro over {closed['macro']['answers']:,} answers of {closed['macro']['objects']:,} objects"
        found.append((title, closed_table(closed)))
    if summary.get("retrieval"):
        found.append(
            (f"Retrieval among {summary['retrieval']['objects']:,}{seen}", retrieval_table(summary["retrieval"]))
        )
    return found


def _label(row: str) -> str:
    return f"{row} (not blind)" if row == NEIGHBOR else row


def _cell(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    if key in _PLAIN:
        return f"{value['mean']:.2f}"
    return f"{100 * value['mean']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def _gap(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in _PLAIN:
        return f"{value['mean']:+.2f}"
    return f"{100 * value['mean']:+.1f} ({100 * value['low']:+.1f} to {100 * value['high']:+.1f})"
