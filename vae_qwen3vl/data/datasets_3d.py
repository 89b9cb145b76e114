"""Datasets of objects with words for training: distance fields, cached codes, and random dummies.

Items are dictionaries; `collate` joins them to what `Qwen3VLWith3DBranch.forward_with_3d` takes (codes without their
vectors are for the trainer).
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import os
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch.utils.data import Dataset

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.pipeline import as_read
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.data.captions import CAPTION_COLUMNS
from sdf_vqvae.data.field_folder import FieldFolder, log_left_out
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, find_table, nearest_names
from sdf_vqvae.fields.sparse_sdf import collate_sparse_sdf
from sdf_vqvae.quantizers.quantizer import first_codes
from vae_qwen3vl.data.augmentation import CodeAugmentation
from vae_qwen3vl.data.loading import SharedEpoch, SharedTexts
from vae_qwen3vl.data.look_up import LookUp, told_of
from vae_qwen3vl.data.mirror_words import exchange_sides, looks_like_the_other_side, mirrored_text
from vae_qwen3vl.data.texts import CAPTION_SHARE, Text, choose, pick, texts_of_table

logger = logging.getLogger(__name__)

_Own = TypeVar("_Own", bound="_WithTexts")
_LATENT_SIDE = 64
_FEWEST_TOKENS = 100
KINDS_OF_THE_BOX = ("longest_side", "shape", "is_shape", "ratio", "size")
"""Kinds of questions about an object's bounding box."""


class _WithTexts(Dataset[dict[str, Any]]):
    """What datasets with words share: which text of an object is said in which epoch."""

    def __init__(
        self,
        texts: dict[str, list[Text]],
        names: list[str],
        seed: int,
        caption_share: float,
        kind_weights: Mapping[str, int] | None,
    ) -> None:
        self._texts = SharedTexts({name: texts[name] for name in names})
        if kind_weights:
            kinds = {text.kind.partition(" ")[0] for name in names for text in texts[name]} - {""}
            unknown = sorted(set(kind_weights) - kinds)
            if unknown:
                there = f"there are {', '.join(sorted(kinds))}" if kinds else "there are captions alone"
                raise ValueError(f"kind_weights: no text is of the kind {unknown[0]!r} ({there})")
        self._caption_share, self._kind_weights = caption_share, kind_weights
        self._seed = seed
        self._epoch = SharedEpoch()
        self.names = names
        """Ids of the objects, in the order of the items."""

    def __len__(self) -> int:
        return len(self.names)

    def set_epoch(self, epoch: int) -> None:
        """Choose among the texts of each object anew."""
        self._epoch.set(epoch)

    def with_captions(self: _Own) -> _Own:
        """Return the same objects with captions alone, one an epoch, where they have any; its epochs are its own."""
        captioned = copy.copy(self)
        captioned._caption_share, captioned._epoch = 1.0, SharedEpoch()
        return captioned

    def for_validation(self: _Own) -> _Own:
        """Return the same objects with a caption each, the same one in every epoch and for every seed."""
        fixed = self.with_captions()
        fixed._seed = 0
        return fixed

    def _chosen(self, name: str) -> Text:
        """Return the one of an object's texts that is said in this epoch."""
        return choose(
            self._texts[name],
            name,
            seed=self._seed,
            epoch=int(self._epoch),
            caption_share=self._caption_share,
            kind_weights=self._kind_weights,
        )


def _words(name: str, text: Text) -> dict[str, Any]:
    """Return a text of an object as an item has it."""
    words: dict[str, Any] = {"caption": text.answer, "sample_id": name}
    if text.conversation is not None:
        words["conversation"] = [dict(turn) for turn in text.conversation]
    return words


class SDF3DCaptionDataset(_WithTexts):
    """Distance fields with captions: a folder with `metadata.csv` and `{sha256}_r{R}.npz`.

    Used are the rows with `sdf_computed`, at least `min_points` voxels, captions and a file, in the table's order.
    Items have `inputs_3d` (the batch dict of the object alone), `caption`, `sample_id`, and for records with a
    question or a chat `conversation`, the turns before the answer.

    Args:
        sdf_dir: the dataset.
        resolution: grid side R in the files' names.
        min_points: fewest voxels.
        max_points: most voxels; None leaves nothing out. Larger objects are left out whole: thinning them, as the
            original does, makes holes.
        max_samples: the first so many; None or 0 for all.
        split: only objects whose table row says so in its column `split`.
        records: JSONL with more texts (see `texts.read_records`); `conversations.jsonl` in the folder if None.
        seed: of the choice among an object's texts, which `set_epoch` makes anew.
        caption_share: how often a caption of the table is taken where there are records too.
        kind_weights: how often a kind of record is drawn, beside 1 for kinds that are not named.
        reads: configuration of the VAE, of the grid R: objects without a file of R count with one of half or twice R,
            and every field is resampled to what the VAE reads (see `as_read`). None leaves fields as they are.

    Raises:
        ValueError: the folder has no usable object with words.
    """

    def __init__(
        self,
        sdf_dir: str | os.PathLike[str],
        resolution: int = 512,
        min_points: int = 100,
        max_points: int | None = None,
        max_samples: int | None = None,
        *,
        split: str | None = None,
        records: str | os.PathLike[str] | None = None,
        seed: int = 0,
        caption_share: float = CAPTION_SHARE,
        kind_weights: Mapping[str, int] | None = None,
        reads: VAEConfig | None = None,
    ) -> None:
        self._reads = reads
        self.fields = FieldFolder(
            sdf_dir, resolution, min_points=min_points, max_points=max_points, resampled=reads is not None
        )
        ids = {row[ID_COLUMN] for row in self.fields.table()}
        texts = texts_of_table(self.fields.rows, self.fields.folder, records, ID_COLUMN, known=ids)
        self.left_out = dict(self.fields.left_out)
        """Id -> why it is not among the items."""
        mute = {name: "it has no captions" for name, of_object in texts.items() if not of_object}
        self.left_out |= mute
        chosen = (i for i, row in enumerate(self.fields.rows) if split is None or row.get("split") == split)
        self._rows = [i for i in chosen if texts[self.fields.rows[i][ID_COLUMN]]][: max_samples or None]
        if not self._rows:
            raise ValueError(f"{sdf_dir}: none of {len(texts)} objects with a field {self._why_none(texts, split)}")
        log_left_out(mute, len(texts), self.fields.folder)
        names = [self.fields.rows[i][ID_COLUMN] for i in self._rows]
        counts = [f"r{self.fields.side(name)}_num_points" for name in names]
        self.sizes = [float(self.fields.rows[i].get(count) or 0) for i, count in zip(self._rows, counts, strict=True)]
        """Voxels of each object's file, 0 where the table does not say."""
        super().__init__(texts, names, seed, caption_share, kind_weights)

    def _why_none(self, texts: Mapping[str, list[Text]], split: str | None) -> str:
        """Return what no object has or is, for a message."""
        if split is not None and any(texts.values()):
            there = sorted({row.get("split", "") for row in self.fields.rows} - {""})
            named = f"these are {', '.join(map(repr, there[:5]))}" if there else "no row names a split"
            return f"and captions is of the split {split!r}: {named}"
        columns = list(self.fields.rows[0])
        table = find_table(self.fields.folder)
        has = f"there is no {METADATA}" if table is None else f"{table.name} has the columns {columns}"
        return (
            f"has captions: {has}; captions are read from {', '.join(CAPTION_COLUMNS)}, or from records of a JSONL"
            f"{nearest_names(columns, CAPTION_COLUMNS)}"
        )

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Read one object. Raises a ValueError if its file is damaged."""
        field = self.fields[self._rows[number]]
        if self._reads is not None:
            field = as_read(self._reads, field)
        name = self.names[number]
        return {"inputs_3d": collate_sparse_sdf([field]), **_words(name, self._chosen(name))}


class CachedCodesDataset(_WithTexts):
    """Objects of a folder of cached codes that have captions (see `sdf_vqvae.codes.folder`).

    Items have `codes` int64 `[M]`, `coords` int32 `[M, 3]`, `feats_3d` float32 `[M, D]` (the codes' vectors in the
    codebook), `caption`, `sample_id`, `conversation` as in `SDF3DCaptionDataset`, and `title`, the shortest caption.

    Args:
        folder: the codes, or their folder.
        split: only objects whose table row says so in its column `split`.
        max_samples: the first so many; None or 0 for all.
        records: JSONL with more texts; `conversations.jsonl` in the folder if None.
        seed: of the choice among an object's texts, and of the augmentation.
        caption_share: how often a caption of the table is taken where there are records too.
        kind_weights: how often a kind of record is drawn, beside 1 for kinds that are not named.
        augmentation: what each epoch does anew to an object's codes; those of which something is said that turning
            makes untrue (`KINDS_OF_THE_BOX`) are not turned.
        look_up: which neighbors' words are shown with an object, under `similar`; None shows none.
        mirrored: folder of codes of the objects' mirror images (`encode --mirror`). Each epoch half of the objects
            that have one are their mirror image, and left and right are exchanged in their words.
        vectors: False leaves `feats_3d` out, for a loop that looks codes up in `codes.codebook` on its device: a
            sixteenth of the bytes.

    Raises:
        ValueError: the folder is no folder of codes, or none of its objects has words; or `mirrored` is of another
            tokenizer, not of mirror images, or of none of these objects.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | CodeFolder,
        *,
        split: str | None = None,
        max_samples: int | None = None,
        records: str | os.PathLike[str] | None = None,
        seed: int = 0,
        caption_share: float = CAPTION_SHARE,
        kind_weights: Mapping[str, int] | None = None,
        augmentation: CodeAugmentation | None = None,
        look_up: LookUp | None = None,
        mirrored: str | os.PathLike[str] | None = None,
        vectors: bool = True,
    ) -> None:
        self.augmentation, self.vectors, self.look_up = augmentation or CodeAugmentation(), vectors, look_up
        self.codes = folder if isinstance(folder, CodeFolder) else CodeFolder(folder)
        self.mirrored = None if mirrored is None else CodeFolder(mirrored, mirrored=True)
        if self.mirrored is not None and self.mirrored.manifest.vae_hash != self.codes.manifest.vae_hash:
            raise ValueError(f"{self.mirrored.folder} and {self.codes.folder} are of different tokenizers")
        table = list(self.codes.table())
        rows = [row for row in table if split is None or row.get("split") == split]
        ids = {row[ID_COLUMN] for row in table}
        texts = texts_of_table(rows, self.codes.folder, records, ID_COLUMN, known=ids)
        names = [row[ID_COLUMN] for row in rows if row[ID_COLUMN] in self.codes and texts[row[ID_COLUMN]]]
        names = list(dict.fromkeys(names))[: max_samples or None]
        if not names:
            of_split = "" if split is None else f" of the split {split!r}"
            raise ValueError(f"{self.codes.folder}: none of {len(self.codes)} encoded objects{of_split} has captions")
        left_out = {name: "it has no codes" for name in texts if name not in self.codes}
        left_out |= {
            name: "it has no captions" for name, of_object in texts.items() if not of_object and name not in left_out
        }
        log_left_out(left_out, len(texts), self.codes.folder)
        self._with_mirror_image: set[str] = set()
        if self.mirrored is not None:
            there = self.mirrored
            self._with_mirror_image = {n for n in names if n in there and looks_like_the_other_side(texts[n])}
            if not self._with_mirror_image:
                raise ValueError(f"{there.folder} has a mirror image of none of the {len(names)} objects")
            logger.info("%d of %d objects have a mirror image", len(self._with_mirror_image), len(names))
        super().__init__(texts, names, seed, caption_share, kind_weights)

    def captions(self) -> dict[str, list[str]]:
        """Return all captions that an object may be told with, by its id, those of its mirror image among them."""
        told = {}
        for name in self.names:
            own = [text for text in self._texts[name] if not text.kind]
            mirrored = [mirrored_text(text) for text in own] if name in self._with_mirror_image else []
            told[name] = list(dict.fromkeys(text.answer for text in own + mirrored))
        return told

    def for_validation(self) -> CachedCodesDataset:
        """Return the same objects as they are and where they are, with a caption each (see `_WithTexts`)."""
        fixed = super().for_validation()
        fixed.augmentation, fixed.mirrored, fixed._with_mirror_image = CodeAugmentation(), None, set()
        fixed.look_up = None if self.look_up is None else self.look_up.always_right()
        return fixed

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return one object."""
        name = self.names[number]
        draw = functools.partial(pick, self._seed, int(self._epoch), name)
        mirrored = name in self._with_mirror_image and bool(draw("mirror") % 2)
        folder = self.mirrored if mirrored and self.mirrored is not None else self.codes
        chosen, titles = self._chosen(name), [text for text in self._texts[name] if not text.kind]
        if mirrored:
            chosen, titles = mirrored_text(chosen), [mirrored_text(text) for text in titles]
        of_the_box = chosen.kind.partition(" ")[0] in KINDS_OF_THE_BOX
        side = folder.manifest.latent_resolution
        codes, coords = folder[name]
        codes, coords = self.augmentation(first_codes(codes), coords, side, draw, turn=not of_the_box)
        words = _words(name, chosen)
        if titles:
            words["title"] = min((text.answer for text in titles), key=len)
        if self.look_up is not None and (near := self.look_up(name, draw)):
            words["similar"] = exchange_sides(told_of(near)) if mirrored else told_of(near)
        shape = {"codes": codes.long(), "coords": coords.int()}
        if self.vectors:
            shape["feats_3d"] = self.codes.codebook[shape["codes"]]
        return {**shape, **words}


class Dummy3DTextDataset(Dataset[dict[str, torch.Tensor]]):
    """Random objects and texts, the same for the same number: for trying out training without data.

    An object is a thin shell, a ball's surface somewhere in the grid, with random vectors in its cells: as compact as
    real objects are, so that as many codes make as few 3D tokens. Items are as way A of a dataset of your own has
    them: `feats_3d [N, D]`, `coords_3d [N, 4]`, `input_ids`, `attention_mask`, `labels [S]`, of which only the last
    label counts.

    Args:
        num_samples: how many.
        max_3d_tokens: most codes of an object; the fewest are 100, or this if it is less.
        seq_len: text length S.
        vocab_size: ids are drawn below it.
        latent_dim: code width D.
    """

    def __init__(
        self,
        num_samples: int = 100,
        max_3d_tokens: int = 512,
        seq_len: int = 64,
        vocab_size: int = 152_064,
        latent_dim: int = 16,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("max_3d_tokens", max_3d_tokens), ("seq_len", seq_len)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_samples = num_samples
        self.max_3d_tokens = max_3d_tokens
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self.latent_dim = latent_dim

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return one item."""
        if not 0 <= number < self.num_samples:
            raise IndexError(number)
        random = torch.Generator().manual_seed(number)
        fewest = min(_FEWEST_TOKENS, self.max_3d_tokens)
        count = int(torch.randint(fewest, self.max_3d_tokens + 1, (1,), generator=random))
        xyz = _shell(count, random)
        ids = torch.randint(0, self.vocab_size, (self.seq_len,), generator=random)
        labels = torch.full_like(ids, -100)
        labels[-1] = ids[-1]
        return {
            "feats_3d": torch.randn(count, self.latent_dim, generator=random),
            "coords_3d": torch.cat([torch.zeros_like(xyz[:, :1]), xyz], dim=1).int(),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels,
        }


def _shell(count: int, random: torch.Generator) -> torch.Tensor:
    """Return the cells of a ball's surface somewhere in the grid. `[count, 3]`"""
    radius = (count / (4 * math.pi)) ** 0.5
    reach = min(radius + 1, (_LATENT_SIDE - 1) / 2)
    middle = reach + torch.rand(3, generator=random) * (_LATENT_SIDE - 1 - 2 * reach)
    low, high = (middle - radius - 2).clamp(min=0).int(), (middle + radius + 3).clamp(max=_LATENT_SIDE).int()
    xyz = torch.cartesian_prod(*(torch.arange(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True)))
    from_surface = ((xyz - middle).norm(dim=1) - radius).abs()
    return xyz[from_surface.topk(count, largest=False).indices.sort().values]
