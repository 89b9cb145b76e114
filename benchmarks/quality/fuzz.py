"""What can a damaged file do, or a request? Coverage-guided fuzzing (atheris) of every reader, from small valid ones.

    PYTHONPATH=tests/support python benchmarks/quality/fuzz.py --minutes 60 --work fuzz_work

Each format is fuzzed in a process of its own; bodies of the server's requests are one of them. A reader may return or
raise a ValueError or an OSError (the server may raise nothing); another exception, a crash of the process, more than
20 s or more than 4 GB is a finding. The folder `--work` keeps corpus, findings and counts: a second run goes on from
there, and in the end every finding is tried again. Needs `pip install atheris`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

INSTRUMENTED = ["sdf_vqvae", "vae_qwen3vl", "trimesh", "zipfile"]
SECONDS = 20
"""Longest time that one input may take."""
MEGABYTES = 4096
"""Most memory of the whole process."""
TURN = 120.0
"""CPU seconds of one target before the next one's turn."""
LONGEST = 8192
"""Bytes of the largest input."""
ALLOWED = (ValueError, OSError)


def cpu_seconds() -> float:
    """Return the CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def where(error: BaseException) -> str:
    """Return the type of an exception, the innermost function that raised it and the beginning of its message."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(re.findall(r"[A-Za-z_]+", str(error))[:4])
    return f"{type(error).__name__} in {Path(frame.filename).name}, {frame.name}: {message}"


class Target:
    """One reader in its own process: tries inputs, counts outcomes and keeps the inputs that break the promise."""

    def __init__(self, name: str, work: Path, seconds: float) -> None:
        import file_edits  # here, where what they import is instrumented
        import valid_files

        self.edits, self.files = file_edits, valid_files
        self.suffix, self.seeds, self.read = valid_files.targets()[name]
        self.work = work / name
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.until = cpu_seconds() + seconds
        self.began = self.reported = cpu_seconds()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self.seen: set[str] = set()

    def prepare(self) -> Path:
        """Write the seeds and return the corpus."""
        corpus = self.work / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(self.seeds):
            (corpus / f"seed{number}").write_bytes(seed)
        return corpus

    def try_one(self, data: bytes) -> None:
        """Read one input; called by atheris."""
        started = time.perf_counter()
        path = self.files.write_input(self.folder, self.suffix, data)
        try:
            self.read(path)
            self.outcomes["read"] += 1
        except ALLOWED:
            self.outcomes["refused"] += 1
        except BaseException as error:
            self.outcomes["broken"] += 1
            self.keep(where(error), data)
        self.slowest = max(self.slowest, time.perf_counter() - started)
        now = cpu_seconds()
        if now - self.reported > 2 or now > self.until:
            self.report(now)
        if now > self.until:
            path.unlink()
            self.folder.rmdir()
            os._exit(0)

    def mutate(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Return the next input; called by atheris. Half of them keep the syntax of the format."""
        import atheris

        chance = random.Random(seed)
        if chance.random() < 0.5:
            edited: bytes = self.edits.edit(self.suffix, data, chance)
            if edited != data and len(edited) <= max_size:
                return edited
        mutated: bytes = atheris.Mutate(data, len(data) + (64 if len(data) + 64 <= max_size else 0))
        return mutated

    def keep(self, reason: str, data: bytes) -> None:
        """Write an input that broke the promise, once for each reason."""
        if reason in self.seen:
            return
        self.seen.add(reason)
        folder = self.work / "findings"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"exception-{time.time_ns()}"
        (folder / name).write_bytes(data)
        (folder / f"{name}.txt").write_text(reason)

    def report(self, now: float) -> None:
        """Write the counts so far."""
        self.reported = now
        counts = {
            "inputs": sum(self.outcomes.values()),
            **self.outcomes,
            "cpu_seconds": now - self.began,
            "slowest_seconds": self.slowest,
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        partial = self.work / "turn.json"
        partial.write_text(json.dumps(counts))


def fuzz_target(name: str, work: Path, seconds: float) -> None:
    """Fuzz one target; ends the process."""
    import atheris
    import torch  # noqa: F401 (before: it takes minutes to instrument)

    with atheris.instrument_imports(include=INSTRUMENTED):
        target = Target(name, work, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (4 * MEGABYTES * 2**20, resource.RLIM_INFINITY))
    findings = work / name / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    flags = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", f"-max_len={LONGEST}", "-print_final_stats=0"]
    flags += ["-verbosity=0", f"-artifact_prefix={findings}/", str(target.prepare())]
    atheris.Setup([sys.argv[0], *flags], target.try_one, custom_mutator=target.mutate)
    atheris.Fuzz()


def replay(name: str, file: Path) -> str:
    """Read one kept input in a fresh process and say what came of it."""
    command = [sys.executable, __file__, "--target", name, "--replay", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"more than {3 * SECONDS} s"
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else f"exit code {done.returncode}"


def replay_here(name: str, file: Path) -> None:
    """Read one kept input in this process and print what came of it."""
    import valid_files

    suffix, _, read = valid_files.targets()[name]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = valid_files.write_input(Path(folder), suffix, file.read_bytes())
        try:
            read(path)
            said = "read"
        except ALLOWED:
            said = "refused"
    seconds = time.perf_counter() - started
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if seconds > SECONDS or megabytes > MEGABYTES:
        said = f"{said} after {seconds:.0f} s and {megabytes:.0f} MB"
    print(said)


def add_turn(total: dict[str, Any], turn: dict[str, Any]) -> None:
    """Add the counts of one turn."""
    for key, value in turn.items():
        largest = key in ("slowest_seconds", "peak_megabytes")
        total[key] = round(max(total.get(key, 0), value) if largest else total.get(key, 0) + value, 2)


def run(work: Path, seconds: float, names: list[str]) -> dict[str, dict[str, Any]]:
    """Give the targets turns until the time is spent; return the counts of all runs in this folder."""
    counts_file = work / "counts.json"
    counts: dict[str, dict[str, Any]] = json.loads(counts_file.read_text()) if counts_file.is_file() else {}
    for partial in work.glob("*/turn.json"):  # of a run that was stopped
        add_turn(counts.setdefault(partial.parent.name, {}), json.loads(partial.read_text()))
        partial.unlink()
    left = seconds
    turn = min(TURN, max(seconds / len(names), 1))
    while left > 0:
        name = min(names, key=lambda n: counts.get(n, {}).get("cpu_seconds", 0))
        partial = work / name / "turn.json"
        command = [sys.executable, __file__, "--target", name, "--work", str(work), "--seconds", str(min(turn, left))]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if not partial.is_file():
            raise SystemExit(f"{name} did not run: {done.stderr.decode(errors='replace')[-2000:]}")
        spent = json.loads(partial.read_text())
        add_turn(counts.setdefault(name, {}), spent)
        partial.unlink()
        left -= max(spent["cpu_seconds"], 1)
        counts_file.write_text(json.dumps(counts, indent=1))
        print(f"{name:<18} {spent['inputs']:>8} inputs, exit code {done.returncode}, {left:.0f} s left", flush=True)
    return counts


def findings_of(work: Path, names: list[str]) -> list[dict[str, str]]:
    """Return every finding with its reason and with what comes of the same input now."""
    findings = []
    for name in names:
        for file in sorted((work / name / "findings").glob("*")):
            if file.suffix == ".txt" or file.name.startswith("slow-unit"):
                continue
            note = file.with_name(file.name + ".txt")
            kinds = {"timeout": f"more than {SECONDS} s", "oom": f"more than {MEGABYTES} MB", "crash": "crash"}
            reason = note.read_text() if note.is_file() else kinds.get(file.name.split("-")[0], file.name)
            findings.append({"target": name, "reason": reason, "now": replay(name, file)})
    return findings


def one_target() -> None:
    """Do what a process of one target is asked for; nothing of ours is imported before it is instrumented."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--replay", type=Path)
    options = parser.parse_args()
    if options.replay is not None:
        replay_here(options.target, options.replay)
    else:
        fuzz_target(options.target, options.work, options.seconds)


def main() -> None:
    """Fuzz, and write the result."""
    from sdf_vqvae.utils.measurements import measuring_parser, write_run

    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--minutes", type=float, default=60, help="CPU time over all targets (60)")
    parser.add_argument("--work", type=Path, default=Path("fuzz_work"), help="corpus, findings, counts (fuzz_work)")
    parser.add_argument("--targets", nargs="+", help="some of them (default: all)")
    options = parser.parse_args()
    import valid_files

    options.work.mkdir(parents=True, exist_ok=True)
    names = options.targets or list(valid_files.targets())
    counts = run(options.work, options.minutes * 60, names)
    findings = findings_of(options.work, sorted(counts))
    numbers = {
        "rule": f"a reader returns or raises ValueError or OSError, within {SECONDS} s and {MEGABYTES} MB",
        "inputs": sum(c["inputs"] for c in counts.values()),
        "cpu_seconds": round(sum(c["cpu_seconds"] for c in counts.values()), 1),
        "targets": counts,
        "findings": findings,
    }
    print(write_run(options, numbers))


if __name__ == "__main__":
    one_target() if "--target" in sys.argv else main()
