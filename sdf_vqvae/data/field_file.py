"""One field file of a dataset: what it is called, and what its headers say.

The field itself is read by `SparseSDF.load`.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.utils.archives import npz_shapes, read_npz

SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
"""Names from tables and folders that may become part of a path."""
FIELD_SUFFIX = ".npz"
_FILE = re.compile(r"(?P<id>.+)_r(?P<resolution>\d{1,4})\.npz")


def field_file_name(name: str, resolution: int) -> str:
    """Return `{name}_r{resolution}.npz`."""
    return f"{name}_r{resolution}{FIELD_SUFFIX}"


def id_in_file_name(file_name: str) -> str:
    """Return the id of the object whose field file is called so, or the name itself where it is none."""
    match = _FILE.fullmatch(file_name)
    return match["id"] if match else file_name


def fields_in(folder: Path) -> bool:
    """Return whether a folder holds field files."""
    return any(_FILE.fullmatch(name) for name in os.listdir(folder))


def grid_sides(folder: Path) -> dict[str, set[int]]:
    """Return the grid sides of the field files that are there, by the objects' ids, in the order of these."""
    sides: dict[str, set[int]] = {}
    for name in sorted(os.listdir(folder)):
        if match := _FILE.fullmatch(name):
            sides.setdefault(match["id"], set()).add(int(match["resolution"]))
    return sides


@dataclass(frozen=True, kw_only=True)
class StoredField:
    """What the headers of a field file say."""

    voxels: int
    sign_method: str
    watertight: bool
    up: Up
    """How the source stands; known from nothing in files of earlier versions."""
    size: int
    """Bytes of the file."""


def stored_field(path: Path, field: FieldDescription, up: Up | None = None) -> StoredField | None:
    """Return what is in a field file, by its headers; None where there is no whole file.

    Args:
        path: the file.
        field: what is wanted.
        up: how its source is wanted to stand; None takes it as it does.

    Raises:
        ValueError: the file is whole, and a field of another description, or its source stands otherwise.
    """
    if not path.is_file():
        return None
    try:
        voxels = npz_shapes(path, ("sparse_index",))["sparse_index"][0]
        keys = tuple(field.to_dict())
        values = {
            key: value.item()
            for key, value in read_npz(path, (*keys, "sign_method", "watertight", "up", "up_from"), {}).items()
        }
        band = None if math.isnan(values["band"]) else values["band"]
        description = FieldDescription(**{key: values[key] for key in keys} | {"band": band})
        stored = StoredField(
            voxels=voxels,
            sign_method=str(values["sign_method"]),
            watertight=bool(values["watertight"]),
            up=Up(axis=str(values.get("up", "y")), known_from=str(values.get("up_from", ""))),
            size=path.stat().st_size,
        )
    except (ValueError, LookupError, TypeError):
        return None
    if description != field:
        raise ValueError(f"{path} is there already, but it is {description.in_words()}, not {field.in_words()}")
    if up is not None and not stored.up.is_made_by(up):
        raise ValueError(f"{path} is there already, but it was made {stored.up.apart_from(up)}")
    return stored
