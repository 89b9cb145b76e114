"""What a training run writes beside its results: its folder, its arguments, the ids of its objects, and text logs.

Also which of the runs of a folder is meant: the one to go on with.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.training.checkpoints import checkpoint_steps
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.strict_files import parse_json
from vae_qwen3vl.config import AUTO, AlignmentConfig
from vae_qwen3vl.trained_parts import ARGUMENTS, PROJECTOR_FINAL

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

OBJECTS = "objects.json"
PRETRAINED = "projector_pretrained.pt"
RESULT = "result.json"
_DEBUG = "[DEBUG"
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@dataclass(frozen=True, kw_only=True)
class RunObjects:
    """The ids of a run's objects (`objects.json` in its folder): whoever evaluates it asks about none of `train`."""

    train: tuple[str, ...]
    """Trained on, all epochs together."""
    val: tuple[str, ...]
    """Kept apart to validate on."""

    def save(self, folder: Path) -> None:
        """Write the file."""
        write_json(folder / OBJECTS, {"train": self.train, "val": self.val}, indent=0, ensure_ascii=False)

    @classmethod
    def load(cls, folder: Path) -> RunObjects | None:
        """Read the file of a run folder; None where there is none, as in folders of earlier versions.

        Raises:
            ValueError: it holds something else.
        """
        path = folder / OBJECTS
        if not path.is_file():
            return None
        content = parse_json(path.read_bytes())
        lists = [content.get(key) if isinstance(content, dict) else None for key in ("train", "val")]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            raise ValueError(f"{path} must hold the lists of ids train and val")
        train, val = lists
        return cls(train=tuple(train or ()), val=tuple(val or ()))


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run folder as it was left."""

    folder: Path
    settings: AlignmentConfig
    ended: bool
    step: int | None
    """Of its latest checkpoint; 0 where the projector's lesson alone is done."""

    @property
    def started(self) -> float:
        return (self.folder / ARGUMENTS).stat().st_mtime


def runs_in(output_dir: str | os.PathLike[str]) -> list[_Run]:
    """Return the runs of a folder, the latest first; one whose settings can't be read is left out with a warning."""
    parent, runs = Path(output_dir), []
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        if not (folder / ARGUMENTS).is_file():
            continue
        try:
            settings = AlignmentConfig.from_file(folder / ARGUMENTS)
        except ValueError as error:
            logger.warning("%s is left out: %s", folder, error)
            continue
        lesson = [0] if (folder / PRETRAINED).is_file() else []
        step = max([*lesson, *checkpoint_steps(folder)], default=None)
        runs.append(_Run(folder=folder, settings=settings, ended=(folder / RESULT).is_file(), step=step))
    return sorted(runs, key=lambda run: run.started, reverse=True)


def run_to_resume(config: AlignmentConfig) -> Path | None:
    """Return the folder that a run with `resume` goes on in, None without `resume`.

    That is the latest one in `output_dir` that has these settings (but those that are `config.FREE`), a checkpoint
    and no result.

    Raises:
        ValueError: there is none; the message says what there is instead.
    """
    if not config.resume:
        return None
    runs = runs_in(config.output_dir)
    stopped = [run for run in runs if not run.ended]
    same = [run for run in stopped if not run.settings.changes(config)]
    for run in same:
        if run.step is not None:
            return run.folder
    begin = "leave --resume out to begin a new run"
    if same:
        raise ValueError(f"resume: {same[0].folder} was stopped before its first checkpoint; {begin}")
    with_other_settings = [run for run in stopped if run.step is not None]
    if with_other_settings:
        nearest = min(with_other_settings, key=lambda run: len(run.settings.changes(config)))
        changes = nearest.settings.changes(config).items()
        pairs = ", ".join(f"{key} {_said(old)} -> {_said(new)}" for key, (old, new) in changes)
        raise ValueError(
            f"resume: {nearest.folder}, stopped after step {nearest.step}, has other settings ({pairs}); give its "
            f"own to go on with it, or {begin}"
        )
    ended = [run for run in runs if run.ended]
    if any(not run.settings.changes(config) for run in ended):
        raise ValueError(
            f"resume: {next(r.folder for r in ended if not r.settings.changes(config))} has ended; {begin}, from its "
            f"weights with --init_projector and --init_lora"
        )
    there = f"there are {', '.join(run.folder.name for run in runs)}, of which none was stopped with a checkpoint"
    raise ValueError(
        f"resume: there is no run to go on with in {Path(config.output_dir).absolute()} "
        f"({there if runs else 'no run at all'}); {begin}"
    )


def run_to_evaluate(config: AlignmentConfig) -> Path:
    """Return the run that `output_run` names, or for `auto` and nothing the latest ended one of these settings.

    Where no run has these settings, the latest that has ended in `output_dir` is taken, and what it was trained with
    instead is logged.

    Raises:
        ValueError: there is no such run, or it has not ended.
    """
    if config.output_run not in (None, AUTO):
        folder = config.run_folder()
        if not (folder / PROJECTOR_FINAL).is_file():
            raise ValueError(
                f"output_run: {folder} holds no {PROJECTOR_FINAL}: that training has not ended (--resume)"
            )
        return folder
    runs = runs_in(config.output_dir)
    ended = [run for run in runs if run.ended and (run.folder / PROJECTOR_FINAL).is_file()]
    if not ended:
        there = f"{', '.join(run.folder.name for run in runs)} have not ended (--resume)" if runs else "there is none"
        raise ValueError(
            f"output_run: there is no ended run in {config.output_dir} ({there}); train first, or give "
            "--projector_ckpt, or leave --config out for the shipped weights"
        )
    chosen = next((run for run in ended if not run.settings.changes(config)), ended[0])
    changes = chosen.settings.changes(config)
    if changes:
        pairs = ", ".join(f"{key} {_said(old)} (not {_said(new)})" for key, (old, new) in changes.items())
        logger.warning("no run has these settings; evaluated is the latest, %s: %s", chosen.folder, pairs)
    else:
        logger.info("evaluated is the latest run of these settings: %s", chosen.folder)
    return chosen.folder


def _said(value: Any) -> str:
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def open_run_folder(
    config: AlignmentConfig, accelerator: Accelerator, objects: RunObjects, earlier: Path | None = None
) -> Path:
    """Return the folder of a run, the same for all processes, with its arguments and its objects' ids in it.

    Args:
        config: the settings.
        accelerator: the processes.
        objects: the ids.
        earlier: the run to go on with, of `run_to_resume`; otherwise a new folder is made.

    Raises:
        ValueError: the earlier run had other objects.
    """
    from accelerate.utils import broadcast_object_list

    if earlier is not None:
        before = RunObjects.load(earlier)
        if before is not None and before != objects:
            old, new = {*before.train, *before.val}, {*objects.train, *objects.val}
            raise ValueError(
                f"resume: the data of {earlier} has changed since: {len(old - new)} of its {len(old)} objects are "
                f"gone or no longer used, {len(new - old)} are new; leave --resume out to begin a new run"
            )
        return earlier
    told: list[str | None] = [None]
    if accelerator.is_main_process:
        folder = config.make_run_folder()
        objects.save(folder)
        config.save(folder / ARGUMENTS)  # last: what has no arguments is no run
        told = [str(folder)]
    broadcast_object_list(told)
    return Path(str(told[0]))


def log_to_files(folder: Path, accelerator: Accelerator, *, verbose: bool = False) -> Path:
    """Send everything that is logged to `train_{time}_rank{r}.log` in a folder, and return that file.

    The console shows the first process alone, without lines of `[DEBUG` unless `verbose`.
    """
    from accelerate.utils import broadcast_object_list

    stamp = [time.strftime("%Y%m%d_%H%M%S")]
    broadcast_object_list(stamp)  # one time for all processes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train_{stamp[0]}_rank{accelerator.process_index}.log"
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter(_LINE))
    to_file.setLevel(logging.DEBUG)
    root = logging.getLogger()
    for handler in root.handlers:
        handler.addFilter(_ConsoleFilter(accelerator.is_main_process, verbose))
    root.addHandler(to_file)
    logging.getLogger(__name__).info("command: %s", " ".join(sys.argv))
    return path


class _ConsoleFilter(logging.Filter):
    """What the console shows."""

    def __init__(self, main: bool, verbose: bool) -> None:
        super().__init__()
        self.main = main
        self.verbose = verbose

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown: errors of every process, the rest of the first one."""
        if not self.main:
            return record.levelno >= logging.ERROR
        return self.verbose or not (record.levelno <= logging.DEBUG or record.getMessage().startswith(_DEBUG))
