"""What an alignment run learns from: random objects, distance fields, or cached codes, split and ready for batches.

Knows the settings and the datasets; nothing of the loop.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.data.field_folder import read_field_table
from sdf_vqvae.data.objects import Kind, kind_of
from sdf_vqvae.data.tables import ID_COLUMN
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.augmentation import CodeAugmentation
from vae_qwen3vl.data.collate import collate_3d_text, collate_codes_caption, collate_sdf_caption
from vae_qwen3vl.data.datasets_3d import CachedCodesDataset, Dummy3DTextDataset, SDF3DCaptionDataset
from vae_qwen3vl.data.loading import Tolerant, items_of_an_epoch
from vae_qwen3vl.data.look_up import LookUp
from vae_qwen3vl.data.plain_text import WithPlainText
from vae_qwen3vl.data.splits import TRAIN, VAL, divided
from vae_qwen3vl.data.texts import read_plain_texts
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.sequence_3d import pool_to_budget, sequence_keys

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
_DUMMY_CODES, _DUMMY_TEXT = 512, 24
"""Codes and text tokens of random objects: small, for they are there to try things out."""
_FOR_CODES = ("mirrored_dir", "contrastive_weight", "shift_cells", "drop_cells", "turn_degrees", "look_up")
"""Settings that do nothing to distance fields and random objects."""


@dataclass(frozen=True, kw_only=True)
class AlignmentData:
    """What a run learns from and is validated on."""

    train: Dataset[Any]
    lengths: Sequence[float]
    """Length of every training item, for batches with little padding."""
    val: Dataset[Any] | None
    collate: Callable[[list[Any]], Batch]
    """Joins items to what the model's `forward` takes, or with a `codebook`, to what becomes it."""
    plain: bool = False
    """Whether texts without an object stand among the training items."""
    limited: Sequence[tuple[Sequence[int], int]] = ()
    """Groups of items of which an epoch takes at most so many each."""
    captioned: Dataset[Any] | None = None
    """The objects of `train` with captions alone, where the codes are cached: what the projector's first lesson is
    about."""
    names: Sequence[str] = ()
    """Ids of the objects of `train`, for whoever evaluates the run; of your own data, if they have any."""
    val_names: Sequence[str] = ()
    """Ids of the objects of `val`."""
    codebook: Tensor | None = None
    """`[K, D]`, where batches have `codes_3d` instead of their vectors."""


def check_data(config: AlignmentConfig) -> None:
    """Raise a ValueError if no data is named, or there is none; the message has the command that makes some."""
    if config.dummy_data:
        if config.plain_text is not None:
            raise ValueError("plain_text goes with data_dir: random objects have no words for it to stand among")
        return
    if config.data_dir is None:
        raise ValueError("no data: give --data_dir, or --dummy_data for a quick test on random objects")
    if not Path(config.data_dir).is_dir():
        raise ValueError(
            f"data_dir: there is no folder {config.data_dir}; make one with: python dataset_toolkits/sdf_voxelize.py "
            f"--format folder --input_dir MESHES --output_dir {config.data_dir} --resolutions 256 (then, faster to "
            f"train on: vae-qwen3vl encode {config.data_dir} -o codes and --data_dir codes)"
        )
    if kind_of(config.data_dir, Kind.CODES, Kind.FIELDS) is None:  # before a language model is fetched for them
        raise ValueError(
            f"data_dir: {config.data_dir} holds neither fields nor codes: make some with `vae-qwen3vl voxelize` "
            "(meshes) or `vae-qwen3vl ct` (scans), or give other data"
        )


def cached_codes(config: AlignmentConfig) -> CodeFolder | None:
    """Return the cached codes that the settings name, read once, or None where the data is something else."""
    if config.dummy_data or config.data_dir is None or not kind_of(config.data_dir, Kind.CODES):
        return None
    return CodeFolder(config.data_dir)


def alignment_data(
    config: AlignmentConfig, processor: Processor3D, codes: CodeFolder | None, *, latent_dim: int
) -> AlignmentData:
    """Open what the settings name; `codes` are what `cached_codes` found.

    `data_dir` is a folder of cached codes or of distance fields. Where its table has splits, `train` alone is trained
    on. Validated on are the objects of the split `val`; where there is none, at most `val_samples` objects and a
    tenth of those to train on, chosen by a hash of their ids, so that another run keeps the same apart. Texts without
    an object stand among those that are trained on alone.

    Raises:
        ValueError: no data is named, or none of it can be used, or its table has splits but none is `train`.
    """
    check_data(config)
    for name in _FOR_CODES if codes is None else ():
        if getattr(config, name):
            raise ValueError(f"{name} goes with a data_dir of cached codes (vae-qwen3vl encode DATASET -o codes)")
    if config.mirrored_dir is not None and not kind_of(config.mirrored_dir, Kind.CODES):
        raise ValueError(
            f"mirrored_dir: there are no codes in {config.mirrored_dir}; make them with: "
            f"vae-qwen3vl encode DATASET -o {config.mirrored_dir} --mirror"
        )
    if config.dummy_data:
        return _dummies(config, processor, latent_dim)
    texts = [] if config.plain_text is None else read_plain_texts(config.plain_text)
    if codes is not None:
        data = dataclasses.replace(_from_codes(config, processor, codes), codebook=codes.codebook)
    else:
        data = _from_fields(config, processor, Path(str(config.data_dir)))
    if not texts:
        return data
    objects = items_of_an_epoch(len(data.lengths), data.limited)
    train = WithPlainText(data.train, data.lengths, texts, config.plain_text_share, seed=config.seed, beside=objects)
    limited = data.limited if train.count else ()
    logger.info("%d of %d training items are plain text", train.places, len(train))
    return dataclasses.replace(data, train=train, lengths=train.lengths, limited=limited, plain=True)


def _from_codes(config: AlignmentConfig, processor: Processor3D, codes: CodeFolder) -> AlignmentData:
    changes = CodeAugmentation(
        drop_cells=config.drop_cells, turn_degrees=config.turn_degrees, shift_cells=config.shift_cells
    )
    collate = functools.partial(
        collate_codes_caption,
        tokenizer=processor,
        prompt=config.prompt,
        max_length=None,
        titles=config.contrastive_weight > 0,
    )
    rows = list(codes.table())
    splits = _splits_of(rows, codes.folder)
    look_up = _look_up(config, codes)
    held_look_up = None if look_up is None else look_up.always_right()
    read = functools.partial(CachedCodesDataset, codes, vectors=False, look_up=held_look_up)
    data = read(
        split=TRAIN if splits else None,
        **_words(config),
        augmentation=changes,
        look_up=look_up,
        mirrored=config.mirrored_dir,
    )
    lengths = _tokens_of(data, config)
    return _apart(config, data, lengths, collate, rows, splits, read, captioned=data.with_captions())


def _look_up(config: AlignmentConfig, codes: CodeFolder) -> LookUp | None:
    """Return the neighbors of each object among those of the index, where the settings name one."""
    if config.look_up is None:
        return None
    from vae_qwen3vl.search import ShapeIndex
    from vae_qwen3vl.search.neighbors import neighbors_of_folder

    known = neighbors_of_folder(codes, ShapeIndex.open(config.look_up))
    return LookUp(known=known, shown_share=config.look_up_share, wrong_share=config.look_up_wrong)


def _words(config: AlignmentConfig) -> dict[str, Any]:
    """Return which objects are trained on, and what is said of them, as datasets of objects take it."""
    return {
        "max_samples": config.max_samples,
        "seed": config.seed,
        "caption_share": config.caption_share,
        "kind_weights": config.numbers("kind_weights"),
    }


def _apart(
    config: AlignmentConfig,
    data: CachedCodesDataset | SDF3DCaptionDataset,
    lengths: Sequence[float],
    collate: Callable[[list[Any]], Batch],
    rows: Iterable[Mapping[str, str]],
    splits: Collection[str],
    read: Callable[..., CachedCodesDataset | SDF3DCaptionDataset],
    *,
    captioned: Dataset[Any] | None = None,
) -> AlignmentData:
    """Keep objects for validation: those of the split for it, or where there is none, some of those to train on.

    Args:
        config: how many.
        data: the objects to train on.
        lengths: of its items.
        collate: joins items.
        rows: the table.
        splits: values of its column `split`.
        read: opens the objects of one of them.
        captioned: the same objects as `data` with captions alone.
    """
    sources = {row[ID_COLUMN]: row.get("source", "") for row in rows}
    if VAL not in splits:
        return _split(
            config, data, data.for_validation(), data.names, lengths, collate, sources=sources, captioned=captioned
        )
    most = config.val_samples
    held = read(split=VAL, max_samples=most, caption_share=1.0) if most else None
    return AlignmentData(
        train=Tolerant(data),
        lengths=lengths,
        val=None if held is None else Tolerant(held),
        collate=collate,
        limited=_limited(config, data.names, sources),
        captioned=None if captioned is None else Tolerant(captioned),
        names=data.names,
        val_names=() if held is None else held.names,
    )


def _splits_of(rows: Iterable[Mapping[str, str]], folder: Path) -> set[str]:
    """Return the values of a table's column `split`. Raises a ValueError where there are some, but no `train`."""
    splits = {row["split"] for row in rows if row.get("split")}
    if splits and TRAIN not in splits:
        raise ValueError(
            f"data_dir: the table of {folder} has a column split with {', '.join(sorted(splits))}, but no object of "
            f"the split {TRAIN}; name it so, or leave the column out"
        )
    return splits


def _tokens_of(data: CachedCodesDataset, config: AlignmentConfig) -> list[float]:
    """Return how many 3D tokens each item makes where it is, with all its codes."""
    most = max(0, config.max_3d_tokens - config.shape_tokens) if config.max_3d_tokens > 0 else 0
    counts = []
    for name in data.names:
        coords = F.pad(data.codes[name][1].long() // config.merge, (1, 0))
        count = len(torch.unique(sequence_keys(coords)))
        if most and count > most:
            count = most if config.truncate_mode == "head" else _pooled(coords, most)
        counts.append(float(count + config.shape_tokens))
    return counts


def _pooled(coords: Tensor, most: int) -> int:
    """Return how many tokens the blocks at `coords [M, 4]` become."""
    blocks = torch.unique(coords[:, [0, 3, 2, 1]], dim=0)[:, [0, 3, 2, 1]]  # by (z, y, x)
    return len(pool_to_budget(torch.zeros(len(blocks), 1), blocks, most)[1])


def _from_fields(config: AlignmentConfig, processor: Processor3D, folder: Path) -> AlignmentData:
    from sdf_vqvae.config.architecture import VAEConfig
    from sdf_vqvae.model.checkpoint import config_of

    reads = VAEConfig.from_json(config_of(config.vae_config, config.vae_ckpt))
    gathered = read_field_table(folder)
    rows = [] if gathered is None else gathered.rows
    splits = _splits_of(rows, folder)
    read = functools.partial(SDF3DCaptionDataset, folder, reads.data_resolution, min_points=1, reads=reads)
    data = read(split=TRAIN if splits else None, **_words(config))
    collate = functools.partial(collate_sdf_caption, tokenizer=processor, prompt=config.prompt, max_length=None)
    return _apart(config, data, data.sizes, collate, rows, splits, read)


def _dummies(config: AlignmentConfig, processor: Processor3D, latent_dim: int) -> AlignmentData:
    most = min(config.max_3d_tokens, _DUMMY_CODES) if config.max_3d_tokens > 0 else _DUMMY_CODES
    count = config.dummy_samples
    vocabulary = len(processor.tokenizer)
    data = Dummy3DTextDataset(count, most, _DUMMY_TEXT, vocab_size=vocabulary, latent_dim=latent_dim)
    collate = functools.partial(collate_3d_text, latent_dim=latent_dim)
    return _split(config, data, data, [f"dummy-{i}" for i in range(count)], [1.0] * count, collate, sources={})


def _split(
    config: AlignmentConfig,
    data: Dataset[Any],
    val: Dataset[Any],
    names: Sequence[str],
    sizes: Sequence[float],
    collate: Any,
    *,
    sources: Mapping[str, str],
    captioned: Dataset[Any] | None = None,
) -> AlignmentData:
    """Keep some objects for validation; `val` and `captioned` are the same objects as `data` with other words."""
    learned, held = divided(names, config.val_samples)
    return AlignmentData(
        train=Tolerant(Subset(data, learned)),
        lengths=[sizes[i] for i in learned],
        val=Tolerant(Subset(val, held)) if held else None,
        collate=collate,
        limited=_limited(config, [names[i] for i in learned], sources),
        captioned=None if captioned is None else Tolerant(Subset(captioned, learned)),
        names=[names[i] for i in learned],
        val_names=[names[i] for i in held],
    )


def _limited(
    config: AlignmentConfig, names: Sequence[str], sources: Mapping[str, str]
) -> list[tuple[list[int], int]]:
    """Return the items of each source that is limited, and its limit.

    Raises:
        ValueError: no object is of a limited source.
    """
    groups = []
    for source, most in config.numbers("epoch_limits").items():
        items = [number for number, name in enumerate(names) if sources.get(name) == source]
        if not items:
            named = sorted({sources.get(name, "") for name in names} - {""})
            there = f"there are {', '.join(named)}" if named else "the table has no column source"
            raise ValueError(f"epoch_limits: no object is of the source {source!r} ({there})")
        groups.append((items, most))
    return groups
