"""The shapes that an evaluation rebuilds: the objects at a path in the order of their ids, or some of them drawn."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from sdf_vqvae.data.objects import StoredObject, objects_at


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
    listed = objects_at(path, split=split, resolution=resolution)
    shapes = sorted((shape for shape in listed if shape.place is not None), key=lambda shape: shape.id)
    if not shapes:
        among = f" in split {split!r}" if split is not None else ""
        raise ValueError(f"{path} holds no object to evaluate{among}")
    if max_samples is not None and max_samples < len(shapes):
        drawn = np.random.default_rng(seed).permutation(len(shapes))[:max_samples]
        shapes = [shapes[number] for number in sorted(drawn.tolist())]
    return [_standing(shape, up) for shape in shapes]


def _standing(shape: StoredObject, asked: str | None) -> StoredObject:
    """Return a shape as it is measured: tables are not asked, and packs stand as they are without a word."""
    return replace(shape, place=replace(shape.there, up=None).standing(asked))
