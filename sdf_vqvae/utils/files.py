"""Files: what is one, written whole or not at all, their hashes, and who may write into a folder.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_PIECE = 2**20
_STEM = 150
"""Characters of a file's name that its temporary one keeps; with the rest it stays below the usual 255."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp(\..*)?")


def regular_file(path: str | os.PathLike[str], what: str, shown: str | None = None) -> Path:
    """Return the path of a regular file, or of a link to one.

    Args:
        path: the file.
        what: "mesh file", "field file" and so on, for the message.
        shown: its name in the message, if not the path.

    Raises:
        ValueError: there is none, or it is a folder, a pipe or a device (reading those may never end).
    """
    file = Path(path)
    name = f"the {what} {file if shown is None else shown}"
    try:
        mode = file.stat().st_mode
    except FileNotFoundError as error:
        if file.is_symlink():
            raise ValueError(f"{name} is a link to {os.readlink(file)}, which does not exist") from error
        raise ValueError(f"{name} does not exist") from error
    except (OSError, ValueError) as error:  # a loop of links, no permission, a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{name} cannot be read: {reason}") from error
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} is a folder")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} is a pipe or a device, not a regular file")
    return file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` (same suffix) that replaces `path` only if the block succeeds.

    A program that dies inside the block leaves an earlier file untouched and no half-written one. The temporary file
    is new, under a name that can't be foreseen, so nothing is ever written through a link; a link at `path` itself is
    replaced, and what it points to stays as it is. The file can be read by whom the umask lets, whatever wrote it
    (safetensors makes files that their owner alone can read).

    Raises:
        OSError: the folder can't be made, `path` is a folder, or the disk is full; the message names `path`.
    """
    target = Path(path)
    try:
        if target.parent.exists() and not target.parent.is_dir():
            raise OSError(f"{target.parent} is a file, not a folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OSError("it is a folder")
        temporary = target.with_name(f".{target.stem[:_STEM]}.{secrets.token_hex(8)}.tmp{target.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = temporary.stat().st_mode
        try:
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(stat.S_IMODE(mode))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        named = OSError(f"{target} cannot be written: {error.strerror or error}")
        named.errno = error.errno  # a full disk is known by it
        raise named from error


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that takes the place of `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        old = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all, as UTF-8. Raises an OSError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(
    path: str | os.PathLike[str], value: Any, *, indent: int | None = None, ensure_ascii: bool = True
) -> None:
    """Write a value as a JSON file that ends with its line, whole or not at all.

    Args:
        path: the file.
        value: of what JSON has.
        indent: see `json.dumps`.
        ensure_ascii: see `json.dumps`.

    Raises:
        OSError: see `atomic_path`.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=ensure_ascii) + "\n")


def write_json_lines(path: str | os.PathLike[str], records: Iterable[Any], *, ensure_ascii: bool = True) -> None:
    """Write a JSON value a line, whole or not at all. Raises an OSError as `atomic_path` does."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=ensure_ascii) + "\n" for record in records)


def remove_temporaries(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files that killed programs left in a folder, and return how many there were.

    To be called where no other program writes into the folder.
    """
    left = [file for file in Path(folder).iterdir() if _TEMPORARY.fullmatch(file.name) and file.is_file()]
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)


@contextlib.contextmanager
def only_writer(target: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other programs that ask the same from writing into a folder or a file; the lock ends with the process.

    Args:
        target: a folder that is there, or a file (to come) in one.

    Raises:
        OSError: another program holds it, or it can't be written to.
    """
    path = Path(target)
    kind, lock = ("folder", path / ".lock") if path.is_dir() else ("file", path.with_name(f".{path.name}.lock"))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(lock, wait=False))
        except AlreadyLockedError as error:
            raise OSError(f"another program is writing to {path}: let it end, or choose another {kind}") from error
        yield


class AlreadyLockedError(OSError):
    """Another process holds a lock."""


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], *, wait: bool) -> Iterator[None]:
    """Hold an exclusive lock, as a file that is there only meanwhile.

    The system releases it even if the process dies; a file that was left so is taken over. Whoever holds the lock
    removes the file, so a process that waited for it looks whether the file it got is still the one at `path`.

    Args:
        path: the file; its folder exists.
        wait: until another process releases it.

    Raises:
        AlreadyLockedError: another process holds it, and `wait` is False.
        OSError: the file can't be made.
    """
    lock = Path(path)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(lock.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyLockedError(f"{lock} is held by another process") from error
            except OSError as error:  # file systems without locks
                logger.warning("%s cannot be locked (%s): let no second program use it", lock, error.strerror)
                break
            if _is_at(lock, file.fileno()):
                break
            file.close()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one that a path leads to."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sha256_of(file: Path, offset: int = 0, size: int | None = None) -> str:
    """Return the SHA-256 of a file, or of so many bytes of it from a place on, read piece by piece.

    Raises:
        OSError: it can't be read.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        stream.seek(offset)
        left = math.inf if size is None else size
        while left > 0 and (piece := stream.read(int(min(left, _PIECE)))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()
