"""Many objects' scores as one summary: means, medians, bootstrap intervals, subsets, codebook health.

Works on records of `evaluation.score_rebuilt`, plain values as read from JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sdf_vqvae.evaluation.bootstrap import RESAMPLES, draws, mean_interval, six_digits
from sdf_vqvae.evaluation.rebuild import ROWS, read_codes
from sdf_vqvae.quantizers.codebook_usage import codebook_health

Array = npt.NDArray[np.float64]
Record = dict[str, Any]

MEDICAL = ("hubmap", "totalseg", "mmmm")
"""Collections of organs among the sources of a pack."""
CODE_BINS = (512, 1024, 2048, 4096)
"""Edges of the complexity bins, in codes."""
PAIRS = (("ceiling", "discrete"), ("continuous", "discrete"))
_NOT_MEASURES = ("samples", "failed")
STAGES = ("voxelize", "encode", "decode", "surface")
"""Of the networks: what a user of the codes waits for."""

FORMULAS = {
    "rows": "ceiling: mesh -> field -> mesh, no network; continuous: quantizer bypassed; discrete: from codes alone",
    "mean, low, high": f"mean over objects and its bootstrap interval of 95 % ({RESAMPLES:,} resamples of the "
    "objects, fixed seed); gaps are means of paired differences, resampled together",
    "codes": "M, the number of codes (of cells with two, both; second_share = share of second ones); bits = M log2 K "
    "+ octree of the cells' places (zlib); plain places cost 3 log2(side) bits a cell",
    "codebook": "used = share of the K codes that occur; perplexity = exp(entropy of the code frequencies); top 1 % "
    "= share of all tokens that the most frequent 1 % of the codes take; over the codes of all objects",
    "area_cells": "area of the true surface in faces of latent cells",
    "seconds": "of one object at a time, after CUDA is synchronized (score: of one process, all rows); the "
    "first objects of a process (warm-up) left out",
}


def summarize(records: Sequence[Record], *, codebook: int) -> dict[str, Any]:
    """Summarize the records of all objects.

    Args:
        records: of `score_rebuilt`.
        codebook: size K of the codebook.

    Raises:
        ValueError: there are none.
    """
    if not records:
        raise ValueError("there is no object to summarize")
    failures = [
        {"id": r["id"], "rows": [row for row in ROWS if r[row]["failed"]], "errors": r["errors"]}
        for r in records
        if r["errors"] or any(r[row]["failed"] for row in ROWS)
    ]
    return {
        "objects": len(records),
        "truth_is_field": any(r["truth_is_field"] for r in records),
        "failures": failures,
        "subsets": {name: _subset([records[i] for i in rows]) for name, rows in subsets(records).items()},
        "codes": _codes(records),
        "codebook": _codebook(records, codebook),
        "seconds": _seconds(records),
        "peak_bytes": max(int(r["peak_bytes"]) for r in records),
    }


def subsets(records: Sequence[Record]) -> dict[str, list[int]]:
    """Return name -> objects: all, watertight, medical and other, sources, and bins by the number of codes."""
    members: dict[str, list[int]] = {"all": list(range(len(records)))}

    def add(name: str, number: int) -> None:
        members.setdefault(name, []).append(number)

    for number, record in enumerate(records):
        add("watertight" if record["watertight"] else "not watertight", number)
    for number, record in enumerate(records):
        add("medical" if record["source"] in MEDICAL else "other", number)
    for number in sorted(members["all"], key=lambda n: str(records[n]["source"])):
        add(f"source {records[number]['source']}", number)
    for number in sorted(members["all"], key=lambda n: int(records[n]["codes"])):
        add(code_bin(int(records[number]["codes"])), number)
    return members


def code_bin(codes: int) -> str:
    """Return the name of the complexity bin of an object."""
    if codes == 0:
        return "no codes"
    edge = int(np.searchsorted(CODE_BINS, codes))
    if edge == len(CODE_BINS):
        return f"codes over {CODE_BINS[-1]}"
    return f"codes {CODE_BINS[edge - 1] + 1 if edge else 1}-{CODE_BINS[edge]}"


def _subset(records: Sequence[Record]) -> dict[str, Any]:
    """Return the statistics of every measure for each row, and of the gaps between rows."""
    names = [name for name in records[0][ROWS[0]] if name not in _NOT_MEASURES]
    values = {row: _columns(records, row, names) for row in ROWS}
    summary: dict[str, Any] = {"objects": len(records)}
    drawn = draws(len(records))
    for row in ROWS:
        summary[row] = {
            "failed": sum(bool(r[row]["failed"]) for r in records),
            **_statistics(values[row], names, drawn, median=True),
        }
    summary["gaps"] = {f"{a} - {b}": _statistics(values[a] - values[b], names, drawn, median=False) for a, b in PAIRS}
    return summary


def paired(records: Sequence[Record], others: Sequence[Record], row: str) -> dict[str, Any]:
    """Return the statistics of a row's measures of the same objects in two evaluations, and of their differences."""
    names = [name for name in records[0][row] if name not in _NOT_MEASURES]
    drawn = draws(len(records))
    here, there = (_columns(of, row, names) for of in (records, others))
    return {
        "objects": len(records),
        "here": {
            "failed": sum(bool(r[row]["failed"]) for r in records),
            **_statistics(here, names, drawn, median=True),
        },
        "there": {
            "failed": sum(bool(r[row]["failed"]) for r in others),
            **_statistics(there, names, drawn, median=True),
        },
        "here - there": _statistics(here - there, names, drawn, median=False),
    }


def _columns(records: Sequence[Record], row: str, names: Sequence[str]) -> Array:
    """Return the values of a row `[objects, measures]`, NaN where a measure doesn't apply."""
    return np.array([[np.nan if r[row][n] is None else float(r[row][n]) for n in names] for r in records])


def _statistics(values: Array, names: Sequence[str], drawn: Array, *, median: bool) -> dict[str, dict[str, float]]:
    """Return mean and interval of each column; columns without any value are left out."""
    statistics: dict[str, dict[str, float]] = {}
    for name, column in zip(names, values.T, strict=True):
        interval = mean_interval(column, drawn=drawn)
        if interval is None:
            continue
        statistics[name] = interval.rounded()
        if median:
            statistics[name] |= {
                "median": six_digits(float(np.median(column[np.isfinite(column)]))),
                "objects": interval.objects,
            }
    return statistics


def _codes(records: Sequence[Record]) -> dict[str, float]:
    """Return how many codes and bits the objects took; objects that were not encoded are left out."""
    encoded = [r for r in records if r["codes"]]
    if not encoded:
        return {}
    counts = np.array([r["codes"] for r in encoded], dtype=float)
    summary = {
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "largest": float(counts.max()),
        "share_over_2048": float((counts > 2048).mean()),
    }
    if "second_codes" in encoded[0]:
        summary["second_median"] = float(np.median([r["second_codes"] for r in encoded]))
        summary["second_share"] = sum(r["second_codes"] for r in encoded) / float(counts.sum())
    for part in encoded[0]["bits"]:
        summary[f"bits_{part}_median"] = float(np.median([r["bits"][part] for r in encoded]))
    areas = [r["area_cells"] for r in encoded if "area_cells" in r]
    return summary | ({"area_cells_median": float(np.median(areas))} if areas else {})


def _codebook(records: Sequence[Record], size: int) -> dict[str, float]:
    """Return the codebook's health over the codes of all objects."""
    counts = np.zeros(size, dtype=np.int64)
    for record in records:
        counts += np.bincount(read_codes(record), minlength=size)
    health = asdict(codebook_health(torch.from_numpy(counts)))
    return {"size": size, "tokens": int(counts.sum()), **health, "perplexity_share": health["perplexity"] / size}


def _seconds(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return median and 95th percentile of the times; of warm-up objects only if there are no others."""
    timed = [r["seconds"] for r in records if not r["warm_up"]] or [r["seconds"] for r in records]
    summary = {}
    for stage in (*STAGES, "score"):
        values = [s[stage] for s in timed if stage in s]
        if values:
            summary[stage] = {"median": float(np.median(values)), "95 %": float(np.percentile(values, 95))}
    whole = [sum(s[stage] for stage in STAGES[1:]) for s in timed if all(stage in s for stage in STAGES[1:])]
    if whole:
        summary["encode + decode + surface"] = {
            "median": float(np.median(whole)),
            "95 %": float(np.percentile(whole, 95)),
        }
    return summary
