"""What is printed about bad input? Runs every case of `tests/support/bad_inputs.py` through the program.

    PYTHONPATH=tests/support python benchmarks/bad_input.py

Writes `results/bad_input.json`, and the table in `docs/bad-input.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import write_result

import bad_inputs
from sdf_vqvae.utils.files import write_text
from vae_qwen3vl.commands.main import main as program

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "bad-input.md"
GOOD = ("-o out.safetensors", "-o out.glb", "--vae_ckpt vae/model.safetensors", "--vae_config vae/config.json")
"""What is right in the commands, and left out of the table."""
BEGIN, END = "<!-- table: benchmarks/bad_input.py -->", "<!-- end of table -->"


def run(case: Any, good: Path) -> dict[str, Any]:
    """Run one case in a copy of the good files and return what came of it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "here"
        shutil.copytree(good, folder)
        os.chdir(folder)
        case.write(folder / case.file)
        before = {p.name for p in folder.rglob("*")}
        said, started = io.StringIO(), time.perf_counter()
        with contextlib.redirect_stderr(said):
            code = program(list(case.command))
        seconds = time.perf_counter() - started
        left = sorted({p.name for p in folder.rglob("*")} - before)
        os.chdir(ROOT)
    return {
        "input": case.name,
        "command": " ".join(["vae-qwen3vl", *case.command]),
        "exit_code": code,
        "line": said.getvalue().strip("\n"),
        "left_behind": left,
        "seconds": round(seconds, 2),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown."""
    lines = ["| bad input | command | line |", "|---|---|---|"]
    for row in rows:
        line = row["line"].split("error: ", 1)[-1].replace("|", "\\|")
        command = row["command"].removeprefix("vae-qwen3vl ")
        for good in GOOD:
            command = command.replace(f" {good}", "")
        lines.append(f"| {row['input']} | `{command}` | {line} |")
    return "\n".join(lines)


def main() -> None:
    """Run all cases and write the table down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the result (default: benchmarks/results)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as good:
        bad_inputs.write_good(Path(good))
        rows = [run(case, Path(good)) for case in bad_inputs.bad_inputs()]
    wrong = [row for row in rows if row["exit_code"] != 2 or "\n" in row["line"] or row["left_behind"]]
    for row in wrong:
        print(f"not as promised: {row}", file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    numbers = {"cases": len(rows), "not_as_promised": len(wrong), "peak_megabytes": peak, "rows": rows}
    print(write_result("bad_input", numbers, options.out))
    page = PAGE.read_text(encoding="utf-8")
    start, stop = page.index(BEGIN) + len(BEGIN), page.index(END)
    write_text(PAGE, f"{page[:start]}\n{table(rows)}\n{page[stop:]}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
