"""The objects that an evaluation of the language side asks about, each as codes with what is known of it.

They come from cached codes, a dataset of distance fields, one batch in a `.pt` file, or a random shape. Knows data
and the tokenizer; nothing of language models.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.pipeline import as_read
from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.fields.balls import ball_batch
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.quantizers.quantizer import first_codes
from sdf_vqvae.utils.archives import read_torch_file
from sdf_vqvae.utils.progress import follow
from vae_qwen3vl.data.splits import UNKNOWN, Learned, held_out
from vae_qwen3vl.vae_latent_extractor import extract_3d_latent_and_indices

logger = logging.getLogger(__name__)

TEST, VAL, TRAIN = "test", "val", "train"
_BATCH = ("sparse_sdf", "sparse_index", "batch_idx")
_BALLS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalObject:
    """One object: its codes on the latent grid, and its captions."""

    name: str
    codes: Tensor
    """int64 `[M]` or `[M, 2]`; see `ShapeCodes`."""
    coords: Tensor
    """int32 `[M, 3]` = (x, y, z)."""
    captions: tuple[str, ...] = ()
    row: Mapping[str, str] = field(default_factory=dict)
    """Its row of the dataset's table."""
    path: Path | None = None
    """Its field file, where there is one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalData:
    """What is evaluated."""

    objects: Sequence[EvalObject]
    codebook: Tensor
    """float32 `[K, D]`."""
    latent_side: int
    """Cells along an axis of the latent grid."""
    vae_hash: str
    """Fingerprint of the tokenizer that made the codes."""
    split: str | None = None
    folder: CodeFolder | None = None
    """The cached codes they come from: those of its objects that were learned from are known shapes."""
    learned: Learned = UNKNOWN
    """What the weights learned from."""

    @property
    def seen(self) -> int:
        """Objects that the weights learned from; the split `train` is taken at its word."""
        return len(self.objects) if self.split == TRAIN else sum(o.name in self.learned.train for o in self.objects)

    def batch(self, objects: Sequence[EvalObject]) -> tuple[Tensor, Tensor]:
        """Return codebook vectors `[M, D]` and coordinates int32 `[M, 4]` = (object, x, y, z) of several objects."""
        feats = self.codebook[torch.cat([first_codes(one.codes) for one in objects])]
        coords = [torch.nn.functional.pad(one.coords, (1, 0), value=i) for i, one in enumerate(objects)]
        return feats, torch.cat(coords)


def from_codes(folder: CodeFolder, *, split: str | None, most: int, learned: Learned = UNKNOWN) -> EvalData:
    """Return objects of a folder of cached codes.

    Args:
        folder: the codes.
        split: objects whose row says so in its column `split`; None takes `test`, else `val`; where the table has no
            such column, all. What the weights learned from is left out, unless the split is `train`, which is
            exactly that, or there is nothing else.
        most: the first so many; 0 for all.
        learned: what the weights learned from.

    Raises:
        ValueError: there is no such object.
    """
    rows = [row for row in folder.table() if row[ID_COLUMN] in folder]
    chosen, rows = _of_split(rows, split, folder.folder, learned)
    return EvalData(
        objects=[_of_row(folder, row) for row in rows[: most or None]],
        codebook=folder.codebook,
        latent_side=folder.manifest.latent_resolution,
        vae_hash=folder.manifest.vae_hash,
        split=chosen,
        folder=folder,
        learned=learned,
    )


def training_objects(folder: CodeFolder, learned: Learned) -> list[EvalObject]:
    """Return the objects of a folder of cached codes that weights learned from.

    Where no ids are known, those of the split `train`.
    """
    rows = [row for row in folder.table() if row[ID_COLUMN] in folder]
    ids = learned.train
    return [_of_row(folder, row) for row in rows if (row[ID_COLUMN] in ids if ids else row.get("split") == TRAIN)]


def _of_row(folder: CodeFolder, row: dict[str, str]) -> EvalObject:
    codes, coords = folder[row[ID_COLUMN]]
    words = tuple(captions_of_row(row))
    return EvalObject(name=row[ID_COLUMN], codes=codes.long(), coords=coords.int(), captions=words, row=row)


def from_fields(
    folder: str | os.PathLike[str], vae: SparseSDFVQVAE, *, split: str | None, most: int, learned: Learned = UNKNOWN
) -> EvalData:
    """Return objects of a dataset of distance fields, encoded now; arguments as for `from_codes`.

    Damaged files are left out with a warning.
    """
    dataset = FieldFolder(folder, vae.config.data_resolution, min_points=1, max_points=None, resampled=True)
    rows = [row for row in dataset.rows if captions_of_row(row)]
    if len(rows) < len(dataset.rows):
        logger.warning("%s: %d objects without captions left out", folder, len(dataset.rows) - len(rows))
    chosen, rows = _of_split(rows, split, Path(folder), learned)
    objects = []
    for row in follow(rows[: most or None], "encode"):
        name = row[ID_COLUMN]
        try:
            codes, coords = _encode(vae, as_read(vae.config, SparseSDF.load(dataset.path(name))).to_batch())
        except (ValueError, OSError) as error:
            logger.warning("%s is left out: %s", name, error)
            continue
        words = tuple(captions_of_row(row))
        objects.append(
            EvalObject(name=name, codes=codes, coords=coords, captions=words, row=row, path=dataset.path(name))
        )
    if not objects:
        raise ValueError(f"{folder}: none of its objects can be encoded")
    return _of_vae(vae, objects, split=chosen, learned=learned)


def from_batch(path: str | os.PathLike[str], vae: SparseSDFVQVAE) -> EvalData:
    """Return the objects of a batch: a `.pt` file with a dictionary `sparse_sdf`, `sparse_index`, `batch_idx`.

    Raises:
        ValueError: the file can't be read, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"data_path: there is no file {path}")
    content = read_torch_file(file, "batch")
    batch = content.get("inputs_3d", content) if isinstance(content, dict) else content
    if not isinstance(batch, dict) or not all(isinstance(batch.get(name), Tensor) for name in _BATCH):
        raise ValueError(f"{path} must hold a dictionary of tensors {', '.join(_BATCH)}")
    return _of_vae(vae, _encoded_objects(vae, {name: batch[name] for name in _BATCH}, file.stem))


def random_shape(vae: SparseSDFVQVAE, *, seed: int = 0) -> EvalData:
    """Return one random shape, a few balls melted together: for trying the path without data."""
    return _of_vae(vae, _encoded_objects(vae, random_batch(vae.config.field, seed=seed), "random"))


def random_batch(description: FieldDescription, *, seed: int = 0) -> dict[str, Tensor]:
    """Return the batch dictionary of a few random balls melted together, in the units that `description` names."""
    side, random = description.resolution, torch.Generator().manual_seed(seed)
    radius = (0.05 + 0.05 * torch.rand(_BALLS, generator=random)) * side
    middle = (0.5 + 0.15 * (torch.rand(_BALLS, 3, generator=random) - 0.5)) * side
    return ball_batch(description, middle, radius)


def _of_split(
    rows: list[dict[str, str]], split: str | None, folder: Path, learned: Learned
) -> tuple[str | None, list[dict[str, str]]]:
    """Return the split that is taken and its rows: what was learned from only as `train`, or where all was."""
    splits = {row["split"] for row in rows if row.get("split")}
    if split is None:
        split = next((name for name in (TEST, VAL) if name in splits), None)
    ids = {row[ID_COLUMN] for row in rows}
    if split == TRAIN and ids & learned.train:
        logger.warning("evaluated are objects that the weights learned from (%s)", learned.source)
        return split, [row for row in rows if row[ID_COLUMN] in learned.train]
    if split == VAL and split not in splits and ids & learned.val:
        return split, [row for row in rows if row[ID_COLUMN] in learned.val]
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        there = f"it has {', '.join(sorted(splits))}" if splits else "its table has no column split"
        raise ValueError(f"split: {folder} has no object of the split {split!r} ({there})")
    if split == TRAIN:
        logger.warning("evaluated are objects of the split train, which weights usually learned from")
        return split, chosen
    new = [row for row in chosen if row[ID_COLUMN] not in learned.train]
    if not new:
        logger.warning(
            "the weights learned from every one of the %d objects in %s (%s): what they say of them says little of "
            "other objects",
            len(chosen),
            folder,
            learned.source,
        )
        return split, chosen
    if split is None:
        new = _apart(new, folder, learned)
    if len(new) < len(chosen):
        logger.info("%d of %d objects are evaluated: %s", len(new), len(chosen), learned.source)
    return split, new


def _apart(rows: list[dict[str, str]], folder: Path, learned: Learned) -> list[dict[str, str]]:
    """Return of a table without splits the objects to evaluate: those with captions, where any have some.

    Where nothing is known of what was learned from, those that training keeps apart where it is told nothing else.
    """
    rows = [row for row in rows if captions_of_row(row)] or rows
    if learned.source is not None:
        return rows
    apart = held_out([row[ID_COLUMN] for row in rows], learned.val_samples)
    few = "too few for training to keep some apart, so all are evaluated"
    some = "those that training keeps apart where it takes all of them are evaluated"
    logger.warning(
        "%s has no splits, and nothing says which of its objects the weights learned from: %s",
        folder,
        some if apart else few,
    )
    return [rows[number] for number in apart] or rows


def _encoded_objects(vae: SparseSDFVQVAE, batch: dict[str, Tensor], name: str) -> list[EvalObject]:
    _, coords, indices = extract_3d_latent_and_indices(batch, vae)
    codes, coords = indices.feats.long().cpu().squeeze(-1), coords.cpu()
    count = int(coords[:, 0].max()) + 1
    objects = []
    for number in range(count):
        mine = coords[:, 0] == number
        objects.append(EvalObject(name=f"{name}_{number}", codes=codes[mine], coords=coords[mine, 1:]))
    return objects


def _encode(vae: SparseSDFVQVAE, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    (one,) = _encoded_objects(vae, batch, "object")
    return one.codes, one.coords


def _of_vae(
    vae: SparseSDFVQVAE, objects: Sequence[EvalObject], split: str | None = None, learned: Learned = UNKNOWN
) -> EvalData:
    return EvalData(
        objects=objects,
        codebook=vae.vq.embeddings.weight.detach().float().cpu(),
        latent_side=vae.config.latent_resolution,
        vae_hash=vae.fingerprint(),
        split=split,
        learned=learned,
    )
