"""Which objects weights learned from, as far as their run's folder says: what an evaluation must leave out.

A run says it in `objects.json`; one of an earlier version by its settings and the rule of its time. A run that
started from another's weights learned from that one's objects too. Knows run folders and tables; no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.data.field_folder import read_field_table
from sdf_vqvae.data.objects import Kind, kind_of
from sdf_vqvae.data.tables import ID_COLUMN
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.splits import TRAIN, VAL, Learned, divided
from vae_qwen3vl.data.texts import texts_of_table
from vae_qwen3vl.trained_parts import ARGUMENTS, shipped_weights
from vae_qwen3vl.training.run_folder import OBJECTS, RunObjects

SHIPPED = "the shipped weights learned from the split train of their own data"


def run_of(part: str | Path | None) -> Path | None:
    """Return the folder of the run that a projector's file or an adapter's folder lies in, None where it is none."""
    if part is None:
        return None
    folder = Path(part).absolute().parent
    return folder if (folder / ARGUMENTS).is_file() or (folder / OBJECTS).is_file() else None


def learned_from(parts: Sequence[str | Path | None], val_samples: int) -> Learned:
    """Return what is known of the objects that trained parts learned from.

    Args:
        parts: projector file and adapter folder; None is the shipped one.
        val_samples: see `AlignmentConfig`; where nothing is known.

    Raises:
        ValueError: a run's folder is damaged, or its data, which it would take to know them, can't be read.
    """
    shipped = {path for path in shipped_weights() if path is not None}
    train: set[str] = set()
    val: set[str] = set()
    sources: list[str] = []
    left, seen = list(parts), set[Path]()
    while left:
        part = left.pop()
        if part is None or Path(part).absolute() in shipped:
            sources.append(SHIPPED)
            continue
        run = run_of(part)
        if run is None:
            return Learned(val_samples=val_samples, train=frozenset(train))
        if run in seen:
            continue
        seen.add(run)
        objects = RunObjects.load(run)
        config = AlignmentConfig.from_file(run / ARGUMENTS) if (run / ARGUMENTS).is_file() else None
        if objects is None:
            assert config is not None
            objects = objects_by_rule(config)
            sources.append(f"{run} has no {OBJECTS}: what its {ARGUMENTS} say it learned from is left out")
        else:
            sources.append(f"{run / OBJECTS} says which ones were learned from")
        train.update(objects.train)
        val.update(objects.val)
        if config is not None:
            named = (config.init_projector, config.init_lora)
            left += [name for name in named if name is not None]
            left += [None] if config.start_from == "shipped" else []
    return Learned(train=frozenset(train), val=frozenset(val - train), source="; ".join(dict.fromkeys(sources)))


def objects_by_rule(config: AlignmentConfig) -> RunObjects:
    """Return the objects of a run of a version that wrote no `objects.json`, by the rule that it went by.

    Cached codes with a split `val` were split by it; of all else the first `max_samples` objects with words were
    taken, and of those some kept apart by a hash of their ids.

    Raises:
        ValueError: its data is not there.
    """
    if config.dummy_data or config.data_dir is None:
        return RunObjects(train=(), val=())
    folder = Path(config.data_dir)
    if not folder.is_dir():
        raise ValueError(
            f"data_dir: the run learned from {folder}, which is not there, and has no {OBJECTS}: which objects that "
            "were can't be known (its relative paths start at the current directory)"
        )
    if kind_of(folder, Kind.CODES):
        codes = CodeFolder(folder)
        rows = [row for row in codes.table() if row[ID_COLUMN] in codes]
        splits = {row.get("split") for row in rows}
    else:
        gathered = read_field_table(folder)
        rows = [] if gathered is None else gathered.rows
        splits = set()
    texts = texts_of_table(rows, folder, None, ID_COLUMN)
    rows = [row for row in rows if texts[row[ID_COLUMN]]]

    def names_of(split: str | None, most: int) -> list[str]:
        names = dict.fromkeys(row[ID_COLUMN] for row in rows if split is None or row.get("split") == split)
        return list(names)[: most or None]

    if VAL in splits:
        val = names_of(VAL, config.val_samples) if config.val_samples else []
        return RunObjects(train=tuple(names_of(TRAIN, config.max_samples)), val=tuple(val))
    names = names_of(None, config.max_samples)
    learned, held = divided(names, config.val_samples)
    return RunObjects(train=tuple(names[i] for i in learned), val=tuple(names[i] for i in held))
