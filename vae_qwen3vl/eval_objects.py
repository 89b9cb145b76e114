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

from sdf_vqvae.archives import read_torch_file
from sdf_vqvae.caption_cells import captions_of_row
from sdf_vqvae.field import FieldDescription
from sdf_vqvae.field_folder import ID_COLUMN, FieldFolder
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.progress import follow
from sdf_vqvae.sparse_sdf import SparseSDF, collate_sparse_sdf
from vae_qwen3vl.align_data import held_out
from vae_qwen3vl.balls import ball_batch
from vae_qwen3vl.code_folder import CodeFolder
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
    """int64 `[M]`."""
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
    """The cached codes they come from: other splits of it are known shapes."""

    def batch(self, objects: Sequence[EvalObject]) -> tuple[Tensor, Tensor]:
        """Return codebook vectors `[M, D]` and coordinates int32 `[M, 4]` = (object, x, y, z) of several objects."""
        feats = self.codebook[torch.cat([one.codes for one in objects])]
        coords = [torch.nn.functional.pad(one.coords, (1, 0), value=i) for i, one in enumerate(objects)]
        return feats, torch.cat(coords)


def from_codes(folder: CodeFolder, *, split: str | None, most: int, val_samples: int) -> EvalData:
    """Return objects of a folder of cached codes.

    Args:
        folder: the codes.
        split: objects whose row says so in its column `split`; None takes `test`, else `val`; where the table has no
            such column, the objects that training keeps for validation.
        most: the first so many; 0 for all.
        val_samples: see `AlignmentConfig`.

    Raises:
        ValueError: there is no such object.
    """
    rows = [row for row in folder.table() if row[ID_COLUMN] in folder]
    chosen, rows = _of_split(rows, split, folder.folder, val_samples)
    objects = []
    for row in rows[: most or None]:
        codes, coords = folder[row[ID_COLUMN]]
        words = tuple(captions_of_row(row))
        objects.append(
            EvalObject(name=row[ID_COLUMN], codes=codes.long(), coords=coords.int(), captions=words, row=row)
        )
    return EvalData(
        objects=objects,
        codebook=folder.codebook,
        latent_side=folder.manifest.latent_resolution,
        vae_hash=folder.manifest.vae_hash,
        split=chosen,
        folder=folder,
    )


def from_fields(
    folder: str | os.PathLike[str], vae: SparseSDFVQVAE, *, split: str | None, most: int, val_samples: int
) -> EvalData:
    """Return objects of a dataset of distance fields, encoded now; arguments as for `from_codes`.

    Damaged files are left out with a warning.
    """
    dataset = FieldFolder(folder, vae.config.data_resolution, min_points=1, max_points=None)
    rows = [row for row in dataset.rows if captions_of_row(row)]
    if len(rows) < len(dataset.rows):
        logger.warning("%s: %d objects without captions left out", folder, len(dataset.rows) - len(rows))
    chosen, rows = _of_split(rows, split, Path(folder), val_samples)
    objects = []
    for row in follow(rows[: most or None], "encode"):
        name = row[ID_COLUMN]
        try:
            codes, coords = _encode(vae, collate_sparse_sdf([SparseSDF.load(dataset.path(name))]))
        except (ValueError, OSError) as error:
            logger.warning("%s is left out: %s", name, error)
            continue
        words = tuple(captions_of_row(row))
        objects.append(
            EvalObject(name=name, codes=codes, coords=coords, captions=words, row=row, path=dataset.path(name))
        )
    if not objects:
        raise ValueError(f"{folder}: none of its objects can be encoded")
    return _of_vae(vae, objects, split=chosen)


def from_batch(path: str | os.PathLike[str], vae: SparseSDFVQVAE) -> EvalData:
    """Return the objects of a batch: a `.pt` file with a dictionary `sparse_sdf`, `sparse_index`, `batch_idx`.

    Raises:
        ValueError: the file can't be read, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"data_path: there is no file {path}")
    found = read_torch_file(file, "batch")
    batch = found.get("inputs_3d", found) if isinstance(found, dict) else found
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
    rows: list[dict[str, str]], split: str | None, folder: Path, val_samples: int
) -> tuple[str | None, list[dict[str, str]]]:
    splits = {row["split"] for row in rows if row.get("split")}
    if split is None:
        split = next((name for name in (TEST, VAL) if name in splits), None)
    if split is not None:
        chosen = [row for row in rows if row.get("split") == split]
        if not chosen:
            there = f"it has {', '.join(sorted(splits))}" if splits else "its table has no column split"
            raise ValueError(f"split: {folder} has no object of the split {split!r} ({there})")
        return split, chosen
    # As training does: what it learned from is never evaluated on.
    names = [row[ID_COLUMN] for row in rows]
    apart = held_out(names, val_samples)
    if not apart:
        logger.warning("%s has no splits, and too few objects to keep some apart: all are evaluated", folder)
        return None, rows
    return None, [rows[number] for number in apart]


def _encoded_objects(vae: SparseSDFVQVAE, batch: dict[str, Tensor], name: str) -> list[EvalObject]:
    _, coords, indices = extract_3d_latent_and_indices(batch, vae)
    codes, coords = indices.feats.reshape(-1).long().cpu(), coords.cpu()
    count = int(coords[:, 0].max()) + 1
    found = []
    for number in range(count):
        own = coords[:, 0] == number
        found.append(EvalObject(name=f"{name}_{number}", codes=codes[own], coords=coords[own, 1:]))
    return found


def _encode(vae: SparseSDFVQVAE, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    (one,) = _encoded_objects(vae, batch, "object")
    return one.codes, one.coords


def _of_vae(vae: SparseSDFVQVAE, objects: Sequence[EvalObject], split: str | None = None) -> EvalData:
    return EvalData(
        objects=objects,
        codebook=vae.vq.embeddings.weight.detach().float().cpu(),
        latent_side=vae.config.latent_resolution,
        vae_hash=vae.fingerprint(),
        split=split,
    )
