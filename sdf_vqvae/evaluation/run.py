"""An evaluation of many objects in several processes, and a folder that can go on.

On a GPU the networks run in this process and scores are computed in the others; on a CPU each process works on whole
objects.

The folder holds `settings.json` (what is measured), `objects.jsonl` (a line an object, written as it is done),
`summary.json` and `report.html`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from sdf_vqvae.data.objects import StoredObject
from sdf_vqvae.evaluation.rebuild import ROWS, WARM_UP, Rebuilt, failed_record, new_record, rebuild, score_rebuilt
from sdf_vqvae.evaluation.settings import EvaluationSettings
from sdf_vqvae.evaluation.summary import FORMULAS, summarize
from sdf_vqvae.geometry.metrics import scores as metrics
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.files import atomic_path, only_writer, remove_temporaries, write_json
from sdf_vqvae.utils.jobs import run_jobs
from sdf_vqvae.utils.progress import Progress
from sdf_vqvae.utils.runtime import usable_cores
from sdf_vqvae.utils.strict_files import parse_json

PROTOCOL = 1
"""Version of the measures: scores of different versions don't go into one folder."""
_Item = tuple[StoredObject, Mapping[str, Any] | None]
"""An object, and its record in an evaluation with the same ceiling."""
SETTINGS, OBJECTS, SUMMARY = "settings.json", "objects.jsonl", "summary.json"


def as_recorded(settings: EvaluationSettings, vae: SparseSDFVQVAE) -> dict[str, Any]:
    """Return all that scores depend on, for `settings.json`, as that file gives it back."""
    recorded = {
        "protocol": PROTOCOL,
        "shapes": settings.shapes,
        "split": settings.split,
        "up": settings.up,
        "samples": settings.samples,
        "seed": settings.seed,
        "threshold_factor": settings.threshold_factor,
        "thresholds": list(metrics.THRESHOLDS),
        "tokenizer": vae.fingerprint(),
        "config": vae.config.to_args(),
        "codebook": vae.vq.embeddings.num_embeddings,
    }
    as_read: dict[str, Any] = json.loads(json.dumps(recorded))
    return as_read


def formulas() -> dict[str, str]:
    """Return every measure and how it is computed, in words."""
    return metrics.FORMULAS | FORMULAS


def evaluate_shapes(
    vae: SparseSDFVQVAE,
    shapes: Sequence[StoredObject],
    folder: str | os.PathLike[str],
    settings: EvaluationSettings,
    *,
    workers: int = 1,
    ceilings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Evaluate objects and write the folder; objects that it holds already are kept.

    Args:
        vae: the tokenizer.
        shapes: the objects.
        folder: for the results; made if needed.
        settings: what is measured.
        workers: processes that work on objects, or beside a GPU compute scores; one does so in this process.
        ceilings: records of another evaluation whose ceiling row is this one's (see `read_ceilings`), by id.

    Returns:
        What `summary.json` holds: `settings`, `formulas` and the keys of `summarize`.

    Raises:
        ValueError: the folder holds results of another tokenizer, protocol or set of objects, or there is no object.
        OSError: another program writes to the folder, or the disk is full.
    """
    if not shapes:
        raise ValueError("there is no object to evaluate")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with only_writer(target):
        remove_temporaries(target)
        described = as_recorded(settings, vae)
        _check_settings(target, described)
        done = read_objects(target)
        left = [shape for shape in shapes if shape.id not in done]
        here = _device_name(vae, workers)
        with (target / OBJECTS).open("a", encoding="utf-8") as lines:
            for record in _records(vae, left, settings, workers, ceilings or {}, total=len(shapes)):
                record["device"] = here
                done[record["id"]] = record
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
                lines.flush()
        summary = {
            "settings": described,
            "device": "; ".join(dict.fromkeys(done[shape.id].get("device", here) for shape in shapes)),
            "formulas": formulas(),
            **summarize([done[shape.id] for shape in shapes], codebook=described["codebook"]),
        }
        write_json(target / SUMMARY, summary, indent=1, ensure_ascii=False)
    return summary


def read_objects(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read `objects.jsonl` by the objects' ids; a last line that was cut off is removed from the file.

    Raises:
        ValueError: a line is damaged.
    """
    file = Path(folder) / OBJECTS
    if not file.is_file():
        return {}
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with atomic_path(file) as temporary:
            temporary.write_bytes(whole)
    records = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = parse_json(line)
            records[record["id"]] = {**record, **{row: record[row] for row in ROWS}}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{file}, line {number} is damaged; remove it to measure its object again") from error
    return records


def _check_settings(folder: Path, described: dict[str, Any]) -> None:
    """Write `settings.json`, or compare with it."""
    file = folder / SETTINGS
    if not file.is_file():
        if (folder / OBJECTS).exists():
            raise ValueError(f"{folder} holds {OBJECTS} but no {SETTINGS}: choose another folder")
        write_json(file, described, indent=1, ensure_ascii=False)
        return
    try:
        before = parse_json(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is damaged: choose another folder") from error
    for key, value in described.items():
        old = before.get(key) if isinstance(before, dict) else None
        if old != value:
            raise ValueError(
                f"{folder} holds an evaluation with another {key} ({_short(old)}, now {_short(value)}): "
                "choose another folder, or remove this one"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _records(
    vae: SparseSDFVQVAE,
    shapes: Sequence[StoredObject],
    settings: EvaluationSettings,
    workers: int,
    ceilings: Mapping[str, Mapping[str, Any]],
    total: int,
) -> Iterator[dict[str, Any]]:
    """Yield the record of each object as it is done."""
    if not shapes:
        return
    scoring: _Scoring = {
        "samples": settings.samples,
        "seed": settings.seed,
        "side": vae.config.latent_resolution,
        "threads": None if workers == 1 else max(1, usable_cores() // workers),
    }
    about: dict[int, dict[str, Any]] = {}

    def described() -> Iterator[_Item]:
        for number, shape in enumerate(shapes):
            about[number] = new_record(shape)
            yield shape, ceilings.get(shape.id)

    def rebuilt() -> Iterator[Rebuilt]:
        for number, shape in enumerate(shapes):
            made = rebuild(
                vae,
                shape,
                threshold_factor=settings.threshold_factor,
                warm_up=number < WARM_UP,
                measured=ceilings.get(shape.id),
            )
            about[number] = made.record
            yield made

    if networks_in_workers(vae, workers):
        measurer = functools.partial(
            make_measurer, vae=vae, threshold_factor=settings.threshold_factor, scoring=scoring
        )
        done = run_jobs(measurer, described(), workers=workers)
    else:
        done = run_jobs(functools.partial(make_scorer, scoring=scoring), rebuilt(), workers=workers)
    progress = Progress(total, "evaluate", initial=total - len(shapes))
    with progress, contextlib.closing(done) as results:
        for result in results:
            record = about.pop(result.number)
            if result.result is None:
                yield failed_record(record, result.error, samples=settings.samples)
            else:
                yield result.result
            progress.update()


def networks_in_workers(vae: SparseSDFVQVAE, workers: int) -> bool:
    """Return whether each of several processes has a copy of the networks: on a CPU, where cores are what counts."""
    return workers > 1 and vae.device.type == "cpu"


class _Scoring(TypedDict):
    """Of `score_rebuilt`, and how many threads libigl is held to."""

    samples: int
    seed: int
    side: int
    threads: int | None


def make_scorer(device: str, *, scoring: _Scoring) -> Callable[[Rebuilt], dict[str, Any]]:
    """Return what scores an object that was rebuilt, for `run_jobs`."""
    if scoring["threads"] is not None:
        os.environ["IGL_NUM_THREADS"] = str(scoring["threads"])
    return functools.partial(score_rebuilt, samples=scoring["samples"], seed=scoring["seed"], side=scoring["side"])


def make_measurer(
    device: str, *, vae: SparseSDFVQVAE, threshold_factor: float | None, scoring: _Scoring
) -> Callable[[_Item], dict[str, Any]]:
    """Return what rebuilds and scores an object, for `run_jobs`."""
    score, number = make_scorer(device, scoring=scoring), itertools.count()

    def measure(item: _Item) -> dict[str, Any]:
        shape, measured = item
        warm_up = next(number) < WARM_UP
        return score(rebuild(vae, shape, threshold_factor=threshold_factor, warm_up=warm_up, measured=measured))

    return measure


def _device_name(vae: SparseSDFVQVAE, workers: int) -> str:
    import torch

    if vae.device.type == "cuda":
        return torch.cuda.get_device_name(vae.device)
    threads = torch.get_num_threads()
    if networks_in_workers(vae, workers):
        return f"cpu, {workers} processes, each with threads: {max(1, threads // workers)}"
    return f"cpu, {threads} threads"
