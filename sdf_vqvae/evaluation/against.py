"""Two evaluations of the same objects side by side: what one tokenizer rebuilds better than another.

What doesn't depend on the tokenizer's weights, the ceiling row, can be taken over.
Complexity bins are those of the other one's codes, so that a bin holds the same objects for both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdf_vqvae.evaluation.page import as_text
from sdf_vqvae.evaluation.run import OBJECTS, SETTINGS, read_objects
from sdf_vqvae.evaluation.summary import Record, paired, subsets
from sdf_vqvae.evaluation.tables import table
from sdf_vqvae.utils.strict_files import parse_json

AGAINST = "against.json"
"""Name of the comparison in an evaluation's folder."""
_SAME = ("protocol", "samples", "seed", "thresholds")
_SAME_CEILING = ("shapes", "up", "threshold_factor")
_OF_THE_FIELD = ("field", "input_band")
"""What of a tokenizer's config the ceiling depends on."""


def read_other(folder: str | os.PathLike[str], described: Mapping[str, Any]) -> dict[str, Record]:
    """Return the objects of another evaluation, by id, that was measured alike.

    Args:
        folder: of the other evaluation.
        described: of `as_recorded`, of this one.

    Raises:
        ValueError: there is no evaluation, or it was measured otherwise.
    """
    return _read(Path(folder), described)[1]


def read_ceilings(folder: str | os.PathLike[str], described: Mapping[str, Any]) -> dict[str, Record]:
    """Return the objects of an evaluation of another tokenizer's, by id, whose ceiling row is this one's.

    Objects whose ceiling failed there are left out.

    Args:
        folder: of the other evaluation.
        described: of `as_recorded`, of this one.

    Raises:
        ValueError: there is no evaluation, it was measured otherwise, of other shapes, or its tokenizer reads other
            fields.
    """
    path = Path(folder)
    other, records = _read(path, described)
    for key in _SAME_CEILING:
        if other.get(key) != described[key]:
            raise ValueError(f"{path} has another ceiling: {key} {other.get(key)!r}, here {described[key]!r}")
    for key in _OF_THE_FIELD:
        there, here = other["config"].get(key), described["config"].get(key)
        if there != here:
            raise ValueError(f"{path} has another ceiling: its tokenizer reads {key} {there!r}, this one {here!r}")
    return {name: record for name, record in records.items() if not record["ceiling"]["failed"]}


def _read(path: Path, described: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Record]]:
    if not (path / SETTINGS).is_file() or not (path / OBJECTS).is_file():
        raise ValueError(f"{path} holds no evaluation ({SETTINGS}, {OBJECTS})")
    other = parse_json((path / SETTINGS).read_bytes())
    for key in _SAME:
        if other.get(key) != described[key]:
            raise ValueError(f"{path} was measured with another {key} ({other.get(key)}, here {described[key]})")
    return other, read_objects(path)


def compare(records: Sequence[Record], others: Mapping[str, Record]) -> dict[str, Any]:
    """Compare the objects that two evaluations share, by subsets.

    Returns:
        Subset -> `objects`, and `here`, `there` and `here - there`: the statistics of the discrete row's measures and
        of its paired differences.

    Raises:
        ValueError: they share no object.
    """
    shared = [record for record in records if record["id"] in others]
    if not shared:
        raise ValueError("the two evaluations share no object")
    there = [others[record["id"]] for record in shared]
    return {
        name: paired([shared[i] for i in rows], [there[i] for i in rows], "discrete")
        for name, rows in subsets(there).items()
    }


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """Return a comparison for a terminal."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for name, subset in comparison.items():
        rows += [(f"{name} ({subset['objects']:,})", subset["here"]), ("  there", subset["there"])]
        rows += [("  here - there", subset["here - there"])]
    return as_text(table(rows))
