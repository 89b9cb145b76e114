"""Command lines of Python scripts in turn, in one process, which imports the libraries once for all of them.

python in_turn.py FOLDER < COMMANDS      a JSON list of words a line, without `python`; ends at the first that fails

Each runs as `python SCRIPT ...` would run it. What FOLDER holds after the first is copied to FOLDER_0, and so on.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path


def main(folder: str) -> None:
    for number, line in enumerate(sys.stdin.read().splitlines()):
        sys.argv = json.loads(line)
        sys.path[0] = str(Path(sys.argv[0]).parent)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise
        shutil.copytree(folder, f"{folder}_{number}")


if __name__ == "__main__":
    main(sys.argv[1])
