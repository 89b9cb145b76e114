"""What a training run writes beside its results: its folder, its arguments, and text logs by time and process."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vae_qwen3vl.config import AlignmentConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

ARGUMENTS = "train_args.json"
RESULT = "result.json"
_DEBUG = "[DEBUG"
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_run_folder(config: AlignmentConfig, accelerator: Accelerator) -> Path:
    """Return the folder of a run, the same for all processes, with its arguments in it.

    With `resume`, that is the latest folder of a run of the same settings that has not ended; otherwise a new one.
    """
    from accelerate.utils import broadcast_object_list

    found: list[str | None] = [None]
    if accelerator.is_main_process:
        earlier = _unfinished(config) if config.resume else None
        folder = earlier or config.make_run_folder()
        config.save(folder / ARGUMENTS)
        found = [str(folder)]
    broadcast_object_list(found)
    return Path(str(found[0]))


def _unfinished(config: AlignmentConfig) -> Path | None:
    """Return the latest folder of a run with these settings and without a result."""
    parent, name = Path(config.output_dir), config.run_name()
    candidates = [parent / name, *parent.glob(f"{name}_*")] if parent.is_dir() else []
    same = []
    for folder in candidates:
        arguments = folder / ARGUMENTS
        if arguments.is_file() and not (folder / RESULT).is_file():
            before = AlignmentConfig.from_file(arguments).to_dict() | {"resume": True}
            if before == config.to_dict():
                same.append(folder)
    return max(same, key=lambda folder: (folder / ARGUMENTS).stat().st_mtime, default=None)


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
