"""Tables and folders of the original system's two formats, read as objects: TRELLIS-500K's, and its own.

Names from tables are checked before they become paths. Which rows are of one object is said in `mesh_sources`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from sdf_vqvae.data.objects import Place, StoredObject
from sdf_vqvae.data.tables import FILE_COLUMNS, ID_COLUMN, METADATA, find_table, read_packed_json, read_table

_OBJECT_PATHS = "object-paths.json"
_OBJAVERSE = Path("raw/hf-objaverse-v1")
_RAW = "raw"
_IDENTIFIER = "file_identifier"
_LOCAL = "local_path"


def trellis_table(folder: Path) -> Path | None:
    """Return the table of a folder (an absolute path) of TRELLIS-500K's layouts, which may lie above it, or None."""
    start = _object_paths(folder)
    folders = dict.fromkeys([*_upwards(start.parent if start else folder), *_upwards(folder)])
    tables = [f / name for f in folders for name in (METADATA, METADATA + ".gz")]
    return next((table for table in tables if table.is_file()), None)


def _upwards(folder: Path) -> list[Path]:
    return [folder, *list(folder.parents)[:2]]


def trellis_objects(folder: Path) -> Iterator[tuple[str, StoredObject]]:
    """Yield objects of TRELLIS-500K's layouts, with the column that says where they lie.

    ObjaverseXL has `object-paths.json`; HSSD and the like have paths as identifiers; what TRELLIS's own tools have
    downloaded is at `local_path`.

    Raises:
        ValueError: there is no table, or it or `object-paths.json` is damaged.
    """
    table = trellis_table(folder)
    if table is None:
        raise ValueError(f"there is no {METADATA} in {folder} or up to two folders above it")
    paths_file = _object_paths(folder)
    paths = None if paths_file is None else _read_object_paths(paths_file)
    bases = [base for root in dict.fromkeys((folder, table.parent)) for base in (root, root / _RAW)]
    for row in read_table(table, (ID_COLUMN, _IDENTIFIER)):
        if row.get(_LOCAL, "").strip():
            item = _located(row, bases, row[_LOCAL], _LOCAL)
            if item.place is not None:
                yield _LOCAL, item
                continue
        identifier = row[_IDENTIFIER]
        if paths is None or paths_file is None:
            yield _IDENTIFIER, _located(row, bases, identifier, _IDENTIFIER)
            continue
        key = identifier.rstrip("/").rpartition("/")[2]  # the last part of a Sketchfab address
        if key in paths:
            yield _IDENTIFIER, _located(row, [paths_file.parent], paths[key], paths_file.name)
        else:
            error = f"{paths_file.name} has no path of {identifier[:200]!r}"
            yield _IDENTIFIER, StoredObject(id=row[ID_COLUMN], row=row, place=None, error=error)


def _object_paths(folder: Path) -> Path | None:
    """Return the `object-paths.json` of a folder, or of the download below it."""
    names = (_OBJECT_PATHS, _OBJECT_PATHS + ".gz")
    return next((f for root in (folder, folder / _OBJAVERSE) for n in names if (f := root / n).is_file()), None)


def _read_object_paths(path: Path) -> dict[str, str]:
    paths = read_packed_json(path, "table of paths")
    if not isinstance(paths, dict) or not all(isinstance(value, str) for value in paths.values()):
        raise ValueError(f"{path} must be a JSON object of id: relative path")
    return paths


def custom_objects(folder: Path) -> Iterator[tuple[str, StoredObject]]:
    """Yield objects of a folder whose table has their files, with the column that does.

    Raises:
        ValueError: there is no table, or it has no such column.
    """
    for row in read_table(find_table(folder) or folder / METADATA):
        column = next((column for column in ("glb_file", *FILE_COLUMNS) if column in row), None)
        if column is None:
            raise ValueError(f"{folder / METADATA} has no column 'glb_file'; it has {list(row)}")
        yield column, _located(row, [folder], row[column], column)


def _located(row: dict[str, str], bases: Sequence[Path], name: str, column: str) -> StoredObject:
    """Return the object of a row whose mesh lies at a path relative to one of some folders."""
    if not name.strip() or "\0" in name:
        return StoredObject(id=row[ID_COLUMN], row=row, place=None, error=f"its {column} is empty or has a null byte")
    error = f"its {column} {name[:200]!r} does not exist"
    for written in dict.fromkeys((name, name.strip().replace("\\", "/"))):  # as Windows writes it
        relative = PurePath(written)
        inside = next((base for base in bases if relative.is_absolute() and relative.is_relative_to(base)), None)
        if inside is not None:
            relative = relative.relative_to(inside)
        if relative.is_absolute() or ".." in relative.parts:
            error = f"its {column} {name[:200]!r} leads out of the dataset's folder"
            continue
        for base in bases:
            if _is_file(base / relative):
                place = Place(path=base / relative, name=str(relative))
                return StoredObject(id=row[ID_COLUMN], row=row, place=place)
    return StoredObject(id=row[ID_COLUMN], row=row, place=None, error=error)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system refuses
        return False
