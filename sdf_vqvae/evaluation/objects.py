"""The shapes that an evaluation rebuilds: the objects at a path in the order of their ids, or some of them drawn."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.objects import Kind, Place, StoredObject, field_objects, kind_of, mesh_objects, pack_objects
from sdf_vqvae.geometry.mesh import READABLE


def list_shapes(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    resolution: int = 256,
    up: str | None = None,
) -> list[StoredObject]:
    """List the objects of a mesh file, a folder of meshes, a pack, or a dataset of fields, in the order of their ids.

    Args:
        path: the file or folder; a folder that is neither pack nor dataset counts with its mesh files.
        split: only objects of this split, for packs and tables with such a column.
        max_samples: so many of them, drawn at random; a larger number keeps those that a smaller one draws.
        seed: of the draw.
        resolution: grid side R of a dataset of fields.
        up: the axis of all sources that points up, or `auto`; None takes what `up_of` says of a mesh file, packs and
            fields as they are.

    Raises:
        ValueError: there is nothing to be read, or a split is asked of what has none.
    """
    shapes = sorted(_listed(Path(path), split, resolution), key=lambda shape: shape.id)
    if not shapes:
        among = f" in split {split!r}" if split is not None else ""
        raise ValueError(f"{path} holds no object to evaluate{among}")
    if max_samples is not None and max_samples < len(shapes):
        drawn = np.random.default_rng(seed).permutation(len(shapes))[:max_samples]
        shapes = [shapes[number] for number in sorted(drawn.tolist())]
    return [_standing(shape, up) for shape in shapes]


def _listed(path: Path, split: str | None, resolution: int) -> Iterable[StoredObject]:
    kind = kind_of(path, Kind.PACK, Kind.FIELDS, Kind.FOLDER, Kind.FILE)
    if kind is Kind.PACK:
        return _of_pack(MeshPack(path), split)
    if kind is Kind.FIELDS:
        return _of_fields(FieldFolder(path, resolution), split)
    if split is not None:
        raise ValueError(f"--split {split}: {path} is no pack and no dataset, so its objects have no split")
    if kind is None:
        raise ValueError(f"{path} does not exist: give a folder of meshes, a pack, a dataset, or a mesh file")
    if kind is Kind.FILE:
        place = Place(path=path, name=path.name)
        return [StoredObject(id=path.name, source=path.parent.name or "files", place=place)]
    meshes = list(mesh_objects(path))
    if not meshes:
        raise ValueError(f"{path} holds no mesh ({', '.join(READABLE)}), no pack and no field files")
    return meshes


def _of_pack(pack: MeshPack, split: str | None) -> list[StoredObject]:
    shapes = [shape for shape in pack_objects(pack) if split is None or shape.split == split]
    if split is not None and not shapes:
        splits = ", ".join(sorted({entry.split for entry in pack.entries}))
        raise ValueError(f"--split {split}: {pack.folder} has no such split; it has {splits}")
    twice = len(shapes) - len({shape.id for shape in shapes})
    if twice:
        raise ValueError(
            f"{pack.folder}: {twice} ids of meshes.jsonl occur twice; an evaluation needs one line an object"
        )
    return shapes


def _of_fields(fields: FieldFolder, split: str | None) -> list[StoredObject]:
    if split is not None and not any("split" in row for row in fields.rows):
        raise ValueError(f"--split {split}: the table of {fields.folder} has no column 'split'")
    shapes = (shape for shape in field_objects(fields) if shape.place is not None)
    return [shape for shape in shapes if split is None or shape.split == split]


def _standing(shape: StoredObject, asked: str | None) -> StoredObject:
    """Return a shape as it is measured: tables are not asked, and packs stand as they are without a word."""
    return replace(shape, place=replace(shape.there, up=None).standing(asked))
