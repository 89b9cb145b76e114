"""Who is near the objects of a folder of codes, found once and kept beside them, and who is near one shape.

Leave one out: an object is never its own neighbor, nor are those of its `group` (the table's column, which names
objects that are copies of one another) or those whose vector is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, read_table
from sdf_vqvae.utils.files import file_lock
from sdf_vqvae.utils.progress import Progress
from vae_qwen3vl.data.look_up import (
    MOST_NEIGHBORS,
    NEIGHBORS,
    Neighbor,
    Neighbors,
    distinct_words,
    read_neighbors,
    write_neighbors,
)
from vae_qwen3vl.search.shape_index import Hit, ShapeIndex

logger = logging.getLogger(__name__)

SAME = 0.999
"""Cosine from which two shapes are one: vectors are kept in 16 bits."""
_LOOKED_AT = 32
"""Nearest objects that are looked at; those of the same group are passed over."""
_AT_ONCE = 256


def neighbors_of_shape(index: ShapeIndex, codes: ShapeCodes) -> Neighbors:
    """Return what the objects of an index nearest to a shape are called; the shape itself too, if it is among them.

    Raises:
        ValueError: the codes are of another tokenizer than the index's.
    """
    return distinct_words(map(_neighbor, index.by_shape(codes, _LOOKED_AT)))


def neighbors_of_folder(codes: CodeFolder, index: ShapeIndex) -> dict[str, Neighbors]:
    """Return the neighbors of every object of a folder, each without itself and its copies.

    They are kept in `neighbors.jsonl` in the folder, and found anew where that is of another index, or of fewer
    objects. Of processes that ask at once, one looks and the others wait.

    Raises:
        ValueError: the index is of another tokenizer, or the file beside the codes is damaged.
        OSError: the folder can't be written.
    """
    if index.manifest.vae_hash != codes.manifest.vae_hash:
        raise ValueError(
            f"the index {index.folder} is of codes of the VAE {index.manifest.vae_hash[:12]}, those in "
            f"{codes.folder} are of {codes.manifest.vae_hash[:12]}: make one with "
            f"`vae-qwen3vl index {codes.folder} -o INDEX`"
        )
    path = codes.folder / NEIGHBORS
    about = {
        "index": index.folder.name,
        "indexed": len(index),
        "head": index.manifest.head_hash,
        "objects": len(codes),
        "most": MOST_NEIGHBORS,
    }
    with file_lock(codes.folder / f".{NEIGHBORS}.lock", wait=True):
        if path.is_file():
            found_with, known = read_neighbors(path)
            if found_with == about:
                return known
            logger.info("%s was made with another index or of other objects: it is made anew", path)
        known = dict(_found(codes, index))
        write_neighbors(path, about, known)
    return known


def _found(codes: CodeFolder, index: ShapeIndex) -> Iterator[tuple[str, Neighbors]]:
    groups = {**_groups(index.folder / index.manifest.codes), **_groups(codes.folder)}
    names = list(codes)
    with Progress(len(names), "look up") as progress:
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            vectors = index.shapes(*zip(*(codes[name] for name in some), strict=True))
            for name, vector in zip(some, vectors, strict=True):
                yield name, neighbors_but(index, vector, name, groups)
            progress.update(len(some))


def neighbors_but(index: ShapeIndex, vector: Tensor, name: str, groups: dict[str, str]) -> Neighbors:
    """Return the neighbors of a vector `[E]` without the object that it is of and its copies.

    Args:
        index: where to look.
        vector: of length 1.
        name: id of the object.
        groups: object -> group, of those that have one.
    """
    group = groups.get(name)
    others = (
        hit
        for hit in index.nearest(vector, _LOOKED_AT)
        if hit.id != name and hit.score < SAME and (group is None or groups.get(hit.id) != group)
    )
    return distinct_words(map(_neighbor, others))


def _neighbor(hit: Hit) -> Neighbor:
    return Neighbor(words=hit.about.partition(" / ")[0] or hit.name, likeness=hit.score)


def _groups(folder: Path) -> dict[str, str]:
    """Return the groups that a table says objects are of."""
    table = folder / METADATA
    if not table.is_file():
        return {}
    return {row[ID_COLUMN]: row["group"] for row in read_table(table) if row.get(ID_COLUMN) and row.get("group")}
