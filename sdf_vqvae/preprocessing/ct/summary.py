"""What a run made of scans, in the words that its program prints."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import shipped_config
from sdf_vqvae.preprocessing.ct.dataset import Outcome
from sdf_vqvae.preprocessing.ct.names import chosen_labels
from sdf_vqvae.preprocessing.ct.processing import ORGANS
from sdf_vqvae.preprocessing.ct.settings import Settings

logger = logging.getLogger(__name__)

_FEW = 10


def in_words(outcome: Outcome) -> list[str]:
    """Return lines on what there is now: cases, windows, organs and what a training run can use of them."""
    records, settings = outcome.records, outcome.settings
    organs = [organ for record in records for organ in record["organs"]]
    failed = {case: reason for case, reason in outcome.failed.items() if case not in outcome.unpaired}
    unpaired = f", {len(outcome.unpaired)} unpaired" if outcome.unpaired else ""
    lines = [f"cases: {len(records)} done, {len(failed)} failed{unpaired}"]
    lines += _some([f"{case}: {reason}" for case, reason in failed.items()])
    lines += _some(
        [
            f"{case}: {reason}" + (f"; {outcome.failed[case]}" if case in outcome.failed else "")
            for case, reason in outcome.unpaired.items()
        ]
    )
    lines += _notes(records)
    refused = [record["row"] for record in records if record["row"]["windows_error"]]
    if refused:
        first = f"{refused[0]['case_id']}: {refused[0]['windows_error']}"
        lines.append(f"without windows: {len(refused)} (for instance {first})")
    lines.append(f"organs: {len(organs)} in {sum(bool(record['organs']) for record in records)} cases")
    lines += [f"  no case has a voxel of {name}" for name in _without_organ(settings.organ_names, organs)]
    if settings.compute_sdf:
        lines += _samples(organs, settings)
    return [*lines, f"tables: {settings.output / 'metadata.csv'}"]


def _some(lines: Sequence[str]) -> list[str]:
    more = [f"  and {len(lines) - _FEW} more"] if len(lines) > _FEW else []
    return [*(f"  {line}" for line in lines[:_FEW]), *more]


def _notes(records: Sequence[dict[str, Any]]) -> list[str]:
    """Return, and log, what is to be known of how cases were read, each note once with the cases that it is about."""
    notes: dict[str, list[str]] = {}
    for record in records:
        for note in json.loads(record["row"]["notes"]):
            notes.setdefault(note, []).append(record["row"]["case_id"])
    lines = []
    for note, cases in notes.items():
        more = f" and {len(cases) - 3} more" if len(cases) > 3 else ""
        lines.append(f"{', '.join(cases[:3])}{more}: {note}")
        logger.warning("%s", lines[-1])
    return ["to know:", *_some(lines)] if lines else []


def _without_organ(wanted: Sequence[str], organs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the wanted names that no organ has."""
    present = dict(enumerate(dict.fromkeys(organ["name"] for organ in organs)))
    return chosen_labels(wanted, present)[1]  # type: ignore[arg-type]


def _samples(organs: Sequence[dict[str, Any]], settings: Settings) -> Iterator[str]:
    """Yield what training can use."""
    with_field = [organ for organ in organs if not organ["error"]]
    folder, up, field = settings.output / ORGANS, settings.organ.up, settings.organ.field
    nameless = len([organ for organ in with_field if not organ["named"]])
    yield f"up: {up.axis} ({up.known_from}): fields stand along +y, meshes lie as scanned"
    without = f" ({nameless} more have no name, and so no caption: --organ_labels gives names)" if nameless else ""
    yield f"trainable samples: {len(with_field) - nameless} in {folder}{without}"
    errors = Counter(f"{organ['name']}: {organ['error']}" for organ in organs if organ["error"])
    for reason, count in errors.most_common(_FEW):
        yield f"  no field of {reason}" + (f" ({count} times)" if count > 1 else "")
    read = VAEConfig.from_json(shipped_config()).field
    if with_field and field != read and not field.is_read_as(read):
        yield (
            f"  the shipped tokenizer reads fields of {read.resolution}^3 and band {read.band:g}, these have "
            f"{field.resolution}^3 and {field.band:g}: make them with --sdf_resolution {read.resolution} "
            f"--sdf_threshold_factor {read.band:g}, or `vae-qwen3vl convert {folder} -o {folder}_r{read.resolution}`"
        )
