"""Questions to the system: what the driver, the control groups, the disk and the network allow.

Knows nothing of this package. Nothing is changed; a temporary file tells whether a folder can be written.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import urlsplit

_WAIT_SECONDS = 2.0


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA release that the NVIDIA driver runs, None where the driver can't be asked."""
    try:
        library, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
            return None
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> tuple[float | None, int | None]:
    """Return the cores and the bytes of memory that the process's control groups allow, None without a limit."""
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None, None
    cpus: list[float] = []
    memory: list[int] = []
    for _, controllers, path in (line for line in lines if len(line) == 3):
        base = root / controllers  # version 2 names none
        group = base / path.strip("/")
        for place in (group, *group.parents):
            quota = _words(place / "cpu.max") or _words(place / "cpu.cfs_quota_us") + _words(
                place / "cpu.cfs_period_us"
            )
            if len(quota) == 2 and all(word.isdigit() for word in quota):
                cpus.append(int(quota[0]) / int(quota[1]))
            limit = _words(place / "memory.max") or _words(place / "memory.limit_in_bytes")
            memory += [int(word) for word in limit if word.isdigit()]
            if place == base:
                break
    return min(cpus, default=None), min(memory, default=None)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def memory_available() -> int | None:
    """Return the bytes of memory that the system could give now, None if it doesn't say."""
    words = _words(Path("/proc/meminfo"))
    return int(words[words.index("MemAvailable:") + 1]) * 1024 if "MemAvailable:" in words else None


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def free_bytes(path: Path) -> int:
    """Return the bytes of disk that are free for a file or folder, which need not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def write_fault(path: Path) -> str | None:
    """Return why nothing can be written into a folder, or into the one that it would be made in."""
    place = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"{place}: {error.strerror}"


def ask_pip() -> tuple[str | None, bool]:
    """Return why pip's index can't be reached (None if it can), and whether pip has other places to look."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return "pip is not installed in this environment (python -m ensurepip)", False
    pairs = [line.partition("=")[::2] for line in done.stdout.splitlines()]
    settings = {name.rpartition(".")[2]: value.strip("'\"") for name, value in pairs}
    elsewhere = not settings.keys().isdisjoint({"find-links", "extra-index-url", "no-index"})
    index = settings.get("index-url", "https://pypi.org/simple")
    proxy = settings.get("proxy") or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    target = urlsplit(proxy if proxy and "//" in proxy else f"//{proxy}" if proxy else index)
    if not target.hostname:  # a folder
        return None, elsewhere
    port = target.port or (80 if target.scheme == "http" else 443)
    if reaches(target.hostname, port, _WAIT_SECONDS):
        return None, elsewhere
    return f"{target.hostname}:{port} can't be reached", elsewhere


def reaches(host: str, port: int, seconds: float) -> bool:
    """Return whether a connection is made in time; the time includes looking the name up."""
    answered: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            answered.append(True)
        except OSError:
            answered.append(False)

    attempt = threading.Thread(target=connect, daemon=True)  # the system's look-up can't be given a limit
    attempt.start()
    attempt.join(seconds)
    return answered == [True]
