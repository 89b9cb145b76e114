"""The numbers of an evaluation as tables of texts, for a terminal and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from sdf_vqvae.evaluation.page import as_text
from sdf_vqvae.evaluation.rebuild import ROWS

COLUMNS = (
    ("chamfer_l1", "CD-L1", "{:.5f}"),
    ("chamfer_l2", "CD-L2", "{:.2e}"),
    ("fscore@0.001", "F@.001", "{:.3f}"),
    ("fscore@0.002", "F@.002", "{:.3f}"),
    ("fscore@0.005", "F@.005", "{:.3f}"),
    ("fscore@0.01", "F@.01", "{:.3f}"),
    ("normal_consistency", "NC", "{:.3f}"),
    ("volume_iou", "V-IoU", "{:.3f}"),
    ("surface_iou", "S-IoU", "{:.3f}"),
    ("voxel_iou", "64³ IoU", "{:.3f}"),
    ("hausdorff_95", "HD-95", "{:.4f}"),
)
"""Measure, its heading, and how it is printed."""


def table(rows: Sequence[tuple[str, dict[str, Any]]], value: str = "mean") -> list[list[str]]:
    """Return a table of texts: headings, then a line a row with the chosen statistic of its measures."""
    lines = [["", *(heading for _, heading, _ in COLUMNS), "failed"]]
    for name, statistics in rows:
        cells = [form.format(statistics[key][value]) if key in statistics else "-" for key, _, form in COLUMNS]
        lines.append([name, *cells, str(statistics.get("failed", ""))])
    return lines


def protocol_text(formulas: dict[str, str]) -> str:
    """Return measures and formulas, wrapped."""
    width = max(len(name) for name in formulas)
    return "\n".join(
        textwrap.fill(words, 116, initial_indent=f"{name:<{width}}  ", subsequent_indent=" " * (width + 2))
        for name, words in formulas.items()
    )


def summary_text(summary: dict[str, Any]) -> str:
    """Return a summary for a terminal: tables, codes, times and failures."""
    parts = []
    for name in ("all", "watertight"):
        subset = summary["subsets"].get(name)
        if subset is not None:
            parts += [
                f"{name}: {subset['objects']:,} objects, means",
                as_text(table([(r, subset[r]) for r in ROWS])),
                "",
            ]
    rows = [(f"{name} ({subset['objects']:,})", subset["discrete"]) for name, subset in summary["subsets"].items()]
    parts += ["discrete row by subset, means", as_text(table(rows)), ""]
    main = summary["subsets"]["all"]
    for gap, values in main["gaps"].items():
        shown = (values[key] for key in ("fscore@0.005", "fscore@0.01"))
        words = (f"{v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}]" for v in shown)
        parts.append(f"{gap}: F@.005 {next(words)}, F@.01 {next(words)}")
    codes, book = summary["codes"], summary["codebook"]
    if codes:
        second = f" ({100 * codes['second_share']:.1f} % second codes of a cell)" if "second_share" in codes else ""
        parts.append(
            f"codes an object: median {codes['median']:,.0f}, mean {codes['mean']:,.0f}, largest "
            f"{codes['largest']:,.0f}{second}; bits: median {codes['bits_total_median']:,.0f}"
        )
    parts.append(
        f"codebook of {book['size']:,}: {100 * book['used']:.1f} % used, perplexity {book['perplexity']:,.0f} "
        f"({100 * book['perplexity_share']:.1f} %), {book['dead']:,} dead, top 1 % take "
        f"{100 * book['top_percent_mass']:.1f} % of {book['tokens']:,} tokens"
    )
    times = (f"{stage} {values['median']:.3f}" for stage, values in summary["seconds"].items())
    parts.append(f"seconds an object, median ({summary['device']}): {', '.join(times)}")
    for failure in summary["failures"][:10]:
        reasons = textwrap.shorten("; ".join(failure["errors"].values()), 160)
        parts.append(f"failed: {failure['id']} ({', '.join(failure['rows'])}): {reasons}")
    if len(summary["failures"]) > 10:
        parts.append(f"and {len(summary['failures']) - 10:,} more failures, in summary.json")
    return "\n".join(parts)
