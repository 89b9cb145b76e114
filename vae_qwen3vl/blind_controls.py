"""Controls that don't see the object they are asked about: what a score must exceed to say that shapes are read.

Knows objects as codes and numbers of rows; knows nothing of language models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from vae_qwen3vl.eval_objects import EvalObject
from vae_qwen3vl.sequence_3d import coords_of_cells

OWN = "own shape"
NO_SHAPE = "no 3D"
OTHER_SHAPE = "another object's 3D"
SCATTERED = "shuffled coordinates"
MOST_FREQUENT = "most frequent answer"
NEIGHBOR = "nearest neighbor by codes"
BLIND = (NO_SHAPE, OTHER_SHAPE, SCATTERED, MOST_FREQUENT)
"""Rows that a gap is measured to. `SCATTERED` keeps the object's codes at random places: it knows which codes there
are, but not how they lie; it is the hardest of the four."""
NOT_BLIND = (NEIGHBOR,)
"""Rows that see the object, for comparison only."""


def other_objects(count: int, seed: int = 0) -> list[int]:
    """Return for each object the number of another one, every object once: a random cycle.

    Raises:
        ValueError: there is only one object.
    """
    if count < 2:
        raise ValueError("another object's shape needs at least two objects")
    order = np.random.default_rng(seed).permutation(count)
    found = np.empty(count, dtype=np.int64)
    found[order] = np.roll(order, 1)
    return [int(number) for number in found]


def scattered(objects: Sequence[EvalObject], side: int, seed: int = 0) -> list[EvalObject]:
    """Return the objects with their codes at random cells of the latent grid, none twice."""
    made = []
    for number, one in enumerate(objects):
        random = torch.Generator().manual_seed(seed * 1_000_003 + number)
        cells = torch.randperm(side**3, generator=random)[: len(one.codes)]
        made.append(replace(one, coords=coords_of_cells(cells, side).int()))
    return made


def most_frequent(answers: Sequence[str]) -> str:
    """Return the answer that occurs most often; of several, the one that comes first in the alphabet."""
    names, counts = np.unique(np.array(answers, dtype=object).astype(str), return_counts=True)
    return str(names[counts.argmax()])


def nearest_by_codes(objects: Sequence[EvalObject], known: Sequence[EvalObject], codebook: int) -> list[int]:
    """Return for each object the number of the known one whose histogram of codes is most like its own.

    Likeness is the cosine of the square roots of the code frequencies (the Bhattacharyya coefficient).
    """
    from scipy.sparse import csr_matrix

    def rows(items: Sequence[EvalObject]) -> csr_matrix:
        counts = [torch.bincount(one.codes, minlength=codebook).float() for one in items]
        return csr_matrix(np.stack([(c / c.sum()).sqrt().numpy() for c in counts]))

    table = rows(known)
    found: list[int] = []
    for start in range(0, len(objects), 64):
        likeness = (rows(objects[start : start + 64]) @ table.T).toarray()
        found += [int(number) for number in likeness.argmax(axis=1)]
    return found
