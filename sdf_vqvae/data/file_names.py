"""Mesh files below a folder, and which of them a name in a table means.

Knows paths alone; nothing is opened.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sdf_vqvae.geometry.mesh import READABLE


def mesh_files(folder: Path) -> Iterator[Path]:
    """Yield mesh files in the order of their paths; links to folders are not followed, hidden names left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(READABLE) and not name.startswith("."):
                yield Path(parent, name)


class FileNames:
    """Find the files that paths and ids of a table mean, whoever wrote them.

    Capitals, backslashes, composed accents and a missing ending make no difference, and neither do folders that only
    one of the two names: `chair.glb`, `Chair` and `data/objects/chair.glb` all are `objects/chair.glb`, as long as no
    other file fits as well.

    Args:
        names: of the files, relative to their folder, with slashes.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._exact = set(self.names)
        self._whole: dict[str, list[str]] = {}
        self._tails: dict[str, list[str]] = {}
        self._folders: dict[str, list[str]] = {}
        for name in self.names:
            parts = _parts(name)
            for ending in {parts[-1], _without_ending(parts[-1])}:
                path = [*parts[:-1], ending]
                self._whole.setdefault("/".join(path), []).append(name)
                for start in range(1, len(path)):
                    self._tails.setdefault("/".join(path[start:]), []).append(name)
            for folder in set(parts[:-1]):
                self._folders.setdefault(folder, []).append(name)

    def find(self, given: str, *, folders: bool = True) -> Sequence[str]:
        """Return the files that a path or an id may mean: one where it is clear, none where nothing fits.

        With `folders`, a name that no file has may be that of a folder; then all files in it are meant.
        """
        given = given.strip()
        if given in self._exact:
            return [given]
        parts = _parts(given)
        if not parts or ".." in parts:
            return []
        if "://" in given:  # addresses end with an id
            parts = parts[-1:]
        path = "/".join(parts)
        names = self._whole.get(path) or self._tails.get(path)
        starts = iter(range(1, len(parts)))
        while not names and (start := next(starts, None)) is not None:
            names = self._whole.get("/".join(parts[start:]))
        if not names and folders and len(parts) == 1:
            names = self._folders.get(parts[0])
        return names or []


def same_path(one: str, other: str) -> bool:
    """Return whether two paths may be of the same file: one ends as the other does."""
    a, b = _parts(one), _parts(other)
    if not a or not b:
        return False
    if a[-1] != b[-1] and _without_ending(a[-1]) != b[-1] and a[-1] != _without_ending(b[-1]):
        return False
    shorter = min(len(a), len(b)) - 1
    return shorter == 0 or a[-1 - shorter : -1] == b[-1 - shorter : -1]


def _parts(path: str) -> list[str]:
    plain = unicodedata.normalize("NFC", path.strip().replace("\\", "/")).casefold()
    return [part for part in plain.split("/") if part not in ("", ".")]


def _without_ending(name: str) -> str:
    ending = next((ending for ending in READABLE if name.endswith(ending)), "")
    return name.removesuffix(ending)
