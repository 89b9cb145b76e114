"""What a generator learns from: cached codes with captions, the captions' words as vectors, and batches of both.

Knows the readers that alignment uses; nothing of networks or steps.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.data.objects import Kind, kind_of
from sdf_vqvae.utils.runtime import worker_seeds
from vae_qwen3vl.creation.batches import ShapeBatch, batch_of
from vae_qwen3vl.data.datasets_3d import CachedCodesDataset
from vae_qwen3vl.data.loading import BucketSampler, Tolerant, worker_options
from vae_qwen3vl.data.splits import TRAIN, VAL, divided
from vae_qwen3vl.language.sentence_encoder import SentenceEncoder, word_vectors
from vae_qwen3vl.training.generator_config import GeneratorTraining


@dataclass(frozen=True, kw_only=True)
class GeneratorData:
    """Objects to train on, objects that are kept apart, and the words of both."""

    codes: CodeFolder
    train: Dataset[Any]
    lengths: Sequence[float]
    """Codes of each object to train on."""
    val: Dataset[Any] | None
    names: Sequence[str]
    """Ids of the objects to train on."""
    val_names: Sequence[str]
    captions: Sequence[str]
    """All captions that may be met."""

    def words(self, encoder: SentenceEncoder) -> dict[str, Tensor]:
        """Return the vectors of each caption's words, float16 `[S, W]`."""
        return dict(zip(self.captions, word_vectors(encoder, self.captions), strict=True))


def generator_data(config: GeneratorTraining) -> GeneratorData:
    """Open the data that settings name.

    Where the table has splits, `train` alone is trained on, and `val` measured; else some objects are kept apart by a
    hash of their ids, as alignment does it.

    Raises:
        ValueError: there is no folder of codes, or none of its objects has a caption.
    """
    if kind_of(config.data_dir, Kind.CODES) is None:
        raise ValueError(
            f"data_dir: {config.data_dir} is no folder of codes: make one with "
            "`vae-qwen3vl encode DATASET -o CODES`, where "
            "DATASET is a pack, a folder of meshes with a table of captions, or of fields"
        )
    codes = CodeFolder(config.data_dir)
    if codes.manifest.second_codes:
        raise ValueError(f"{config.data_dir}: its cells may have two codes, and a generator makes one a cell")
    splits = {row["split"] for row in codes.table() if row.get("split")}
    if splits and TRAIN not in splits:
        raise ValueError(f"data_dir: the table of {config.data_dir} has a column split, but no object of `{TRAIN}`")
    read = functools.partial(CachedCodesDataset, codes, seed=config.seed, caption_share=1.0, vectors=False)
    data = read(split=TRAIN if splits else None, max_samples=config.max_samples, mirrored=config.mirrored_dir)
    told = data.captions()
    kept = [number for number, name in enumerate(data.names) if told[name]]
    names = [data.names[number] for number in kept]
    if not names:
        raise ValueError(f"data_dir: none of the {len(data)} objects in {config.data_dir} has a caption of its own")
    val: Dataset[Any] | None = None
    if VAL in splits:
        apart = read(split=VAL, max_samples=config.val_samples) if config.val_samples else None
        learned, val_names = list(range(len(names))), []
        if apart is not None:
            of_val = apart.captions()
            held = [number for number, name in enumerate(apart.names) if of_val[name]]
            val_names, told = [apart.names[number] for number in held], {**told, **of_val}
            val = Tolerant(Subset(apart.for_validation(), held)) if held else None
    else:
        learned, held = divided(names, config.val_samples)
        val_names = [names[number] for number in held]
        if held:
            val = Tolerant(Subset(data.for_validation(), [kept[number] for number in held]))
    return GeneratorData(
        codes=codes,
        train=Tolerant(Subset(data, [kept[number] for number in learned])),
        lengths=[float(len(codes[names[number]][0])) for number in learned],
        val=val,
        names=[names[number] for number in learned],
        val_names=val_names,
        captions=sorted({caption for of_object in told.values() for caption in of_object}),
    )


class GeneratorBatches:
    """Batches of one process, from wherever an epoch stands.

    Args:
        data: what to learn from.
        words: of `GeneratorData.words`.
        config: sizes, seed and processes that read.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        data: GeneratorData,
        words: Mapping[str, Tensor],
        config: GeneratorTraining,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.data, self.words, self.config = data, words, config
        self.width = next(iter(words.values())).shape[1]
        self.side = data.codes.manifest.latent_resolution
        self.sampler = BucketSampler(
            data.lengths, config.batch_size, seed=config.seed, rank=rank, world_size=world_size
        )
        self.loader: DataLoader[Any] = DataLoader(
            data.train,
            batch_sampler=self.sampler,
            collate_fn=list,
            generator=worker_seeds(config.seed),
            **worker_options(config.num_workers),
        )

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return len(self.sampler)

    def of_epoch(self, epoch: int, done: int) -> Iterator[ShapeBatch]:
        """Yield what is left of an epoch of which so many batches are done."""
        self.data.train.set_epoch(epoch)  # type: ignore[attr-defined]
        self.sampler.set_epoch(epoch, done)
        for items in self.loader:
            yield self.joined(items, [item["caption"] for item in items])

    def kept_apart(self) -> Iterator[tuple[ShapeBatch, ShapeBatch]]:
        """Yield the objects that are not trained on, with their own words, and with those of other objects."""
        if self.data.val is None:
            return
        items = [self.data.val[number] for number in range(len(self.data.val_names))]
        order = sorted(range(len(items)), key=lambda number: len(items[number]["codes"]))
        others = [items[(number + len(items) // 2) % len(items)]["caption"] for number in range(len(items))]
        for start in range(0, len(order), self.config.batch_size):
            numbers = order[start : start + self.config.batch_size]
            some = [items[number] for number in numbers]
            yield (
                self.joined(some, [item["caption"] for item in some]),
                self.joined(some, [others[number] for number in numbers]),
            )

    def joined(self, items: Sequence[Mapping[str, Any]], captions: Sequence[str]) -> ShapeBatch:
        """Join objects with captions."""
        return batch_of(
            [(item["codes"], item["coords"]) for item in items],
            [self.words[caption] for caption in captions],
            side=self.side,
            text_width=self.width,
        )
