"""The folder of an index: a file of vectors, a table of the objects that they belong to, and what made them.

    index.json                 format, width, the tokenizer's fingerprint, hashes of the two files below
    projector.safetensors      what turns the codes of a query into a vector: an index needs nothing else
    search_head.safetensors
    codebook.safetensors
    objects.sqlite             a row an object: number of its vector, id, name, words, where it lies
    vectors.f16                float16 `[rows, E]`, row after row, mapped into memory by who searches
    codes/                     codes of the objects, where the index was made of meshes or fields

Rows count as soon as the table says so, which is after their vectors are on disk: a program that is killed leaves
vectors that nothing refers to, and the next one writes over them. Knows numbers and texts; nothing of shapes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdf_vqvae.utils.files import regular_file, write_json
from sdf_vqvae.utils.strict_files import read_manifest

MANIFEST = "index.json"
OBJECTS, VECTORS, CODES = "objects.sqlite", "vectors.f16", "codes"
PROJECTOR, HEAD, CODEBOOK = "projector.safetensors", "search_head.safetensors", "codebook.safetensors"
_FORMAT = "vae-qwen3vl-index/1"
_TABLES = """
CREATE TABLE IF NOT EXISTS objects (
    place INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, shard TEXT NOT NULL,
    name TEXT NOT NULL DEFAULT '', source TEXT NOT NULL DEFAULT '', about TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY);
"""
_LISTED = "CREATE TEMP TABLE listed (id TEXT PRIMARY KEY, name TEXT, source TEXT, about TEXT)"
_MERGE = """
INSERT INTO listed VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET about = CASE
    WHEN instr(about, excluded.about) THEN about ELSE about || ' / ' || excluded.about END
"""

Rows = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class IndexManifest:
    """What made an index."""

    width: int
    """Of a vector, E."""
    vae_hash: str
    """Fingerprint of the tokenizer of its codes."""
    projector_hash: str
    head_hash: str
    """SHA-256 of the files."""
    source: str
    """The folder whose objects these are."""
    codes: str
    """The folder of their codes, relative to the index or absolute."""

    def makes_the_same(self, other: IndexManifest) -> bool:
        """Return whether both make the same vectors of the same objects."""
        return replace(self, source=other.source, codes=other.codes) == other

    def save(self, folder: Path) -> None:
        """Write `index.json`."""
        write_json(folder / MANIFEST, {"format": _FORMAT, **asdict(self)}, indent=1)

    @classmethod
    def load(cls, folder: Path) -> IndexManifest:
        """Read `index.json`.

        Raises:
            ValueError: the folder has none, or it is damaged.
        """
        path, made_by = folder / MANIFEST, "vae-qwen3vl index FOLDER -o"
        return read_manifest(path, _FORMAT, cls._of_values, what="index", made_by=made_by)

    @classmethod
    def _of_values(cls, about: dict[str, Any]) -> IndexManifest:
        width = about.pop("width")
        if type(width) is not int or width < 1:
            raise ValueError(f"its width is {width!r}")
        return cls(width=width, **{str(key): str(value) for key, value in about.items()})


@contextlib.contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Turn what SQLite says of a table that is damaged, locked or too large for the disk into an OSError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise OSError(f"{folder / OBJECTS}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a table says of an object."""

    id: str
    name: str
    source: str
    about: str


class IndexWriter:
    """Fill the table and the vectors of an index; a context that closes them.

    Args:
        folder: there is one.
        width: of a vector.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self._width = width
        self._table = sqlite3.connect(folder / OBJECTS)
        self._table.executescript(_TABLES + _LISTED)
        self._file = os.open(folder / VECTORS, os.O_RDWR | os.O_CREAT, 0o666)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()
        os.close(self._file)

    def __len__(self) -> int:
        return int(self._table.execute("SELECT coalesce(max(place) + 1, 0) FROM objects").fetchone()[0])

    def forget(self) -> None:
        """Take everything out."""
        with self._table:
            self._table.execute("DELETE FROM objects")
            self._table.execute("DELETE FROM shards")

    def expect(self, items: Iterable[Listed]) -> int:
        """Say which objects there are, and return how many; rows of one object become one."""
        with self._table:
            self._table.executemany(_MERGE, ((item.id, item.name, item.source, item.about) for item in items))
        return int(self._table.execute("SELECT count(*) FROM listed").fetchone()[0])

    def knows_shard(self, name: str) -> bool:
        """Return whether all listed objects of a shard are in the index."""
        return self._table.execute("SELECT 1 FROM shards WHERE name = ?", (name,)).fetchone() is not None

    def missing(self, ids: Sequence[str], shard: str) -> list[int]:
        """Return which of a shard's objects are listed, and not in the index or from another shard."""
        ask = "SELECT (SELECT shard FROM objects WHERE id = listed.id) FROM listed WHERE id = ?"
        rows = [self._table.execute(ask, (name,)).fetchone() for name in ids]
        return [number for number, row in enumerate(rows) if row is not None and row[0] != shard]

    def put(self, ids: Sequence[str], shard: str, vectors: Rows) -> None:
        """Add objects of a shard, or put new vectors in place of their old ones. `vectors [n, E]`"""
        find = "SELECT place FROM objects WHERE id = ?"
        there = [self._table.execute(find, (name,)).fetchone() for name in ids]
        new = iter(range(len(self), len(self) + len(ids)))
        places = [next(new) if row is None else int(row[0]) for row in there]
        for place, vector in zip(places, vectors, strict=True):
            self._write(place, vector.tobytes())
        os.fsync(self._file)
        with self._table:
            self._table.executemany(
                "INSERT INTO objects (place, id, shard) VALUES (?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET shard = excluded.shard",
                zip(places, ids, [shard] * len(ids), strict=True),
            )

    def finish_shard(self, name: str) -> None:
        """Note that all listed objects of a shard are in the index."""
        with self._table:
            self._table.execute("INSERT OR IGNORE INTO shards VALUES (?)", (name,))

    def settle(self) -> int:
        """Take over what is known of the listed objects, drop those that are not, and return how many those were."""
        with self._table:
            self._table.execute(
                "UPDATE objects SET name = listed.name, source = listed.source, about = listed.about "
                "FROM listed WHERE listed.id = objects.id"
            )
        gone = [
            int(row[0])
            for row in self._table.execute("SELECT place FROM objects WHERE id NOT IN (SELECT id FROM listed)")
        ]
        last = len(self) - 1
        holes = set(gone)
        with self._table:  # the last rows move into the holes, so that rows are numbered without gaps
            for hole in sorted(gone):
                while last in holes:
                    holes.discard(last)
                    self._table.execute("DELETE FROM objects WHERE place = ?", (last,))
                    last -= 1
                if hole > last:
                    break
                self._write(hole, os.pread(self._file, 2 * self._width, 2 * self._width * last))
                self._table.execute("DELETE FROM objects WHERE place = ?", (hole,))
                self._table.execute("UPDATE objects SET place = ? WHERE place = ?", (hole, last))
                holes.discard(hole)
                last -= 1
            os.fsync(self._file)
        if gone:
            with self._table:
                self._table.execute("DELETE FROM shards")  # an object that comes back is looked for again
        os.truncate(self._file, 2 * self._width * (last + 1))
        return len(gone)

    def _write(self, place: int, row: bytes) -> None:
        os.pwrite(self._file, row, len(row) * place)


def read_vectors(folder: Path, width: int, rows: int) -> Rows:
    """Return the vectors of an index, mapped into memory. `[rows, width]`

    Raises:
        ValueError: there are fewer.
    """
    path = regular_file(folder / VECTORS, "file of vectors")
    if path.stat().st_size < 2 * width * rows:
        raise ValueError(f"{path} holds fewer than the {rows:,} vectors of the table: run `vae-qwen3vl index` again")
    return np.memmap(path, np.float16, "r", shape=(rows, width)) if rows else np.zeros((0, width), np.float16)


def read_objects(folder: Path) -> sqlite3.Connection:
    """Open the table of an index to read it; from any thread, one at a time.

    Raises:
        ValueError: there is none.
    """
    path = regular_file(folder / OBJECTS, "table of an index").absolute()
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
