"""What a run starts from: the model with its weights, what it trains on, and what is held out.

Knows folders and configs; the steps are `trainer`'s, and how objects come to them the streams'.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.config.training import THIN, DatasetConfig, TrainerConfig
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.objects import Kind, kind_of, mesh_objects, pack_objects
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import READABLE
from sdf_vqvae.model.checkpoint import load_inner_levels, load_weights
from sdf_vqvae.model.vqvae import CODEBOOK, SparseSDFVQVAE
from sdf_vqvae.training.field_stream import FieldStream
from sdf_vqvae.training.mesh_draws import Augmentation, MeshDraws, source_weights
from sdf_vqvae.training.mesh_stream import MeshStream
from sdf_vqvae.training.streams import Field, Stream

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sdf_vqvae.data.objects import Place

logger = logging.getLogger(__name__)


def start_model(config: VAEConfig, trainer: TrainerConfig, seed: int) -> tuple[SparseSDFVQVAE, bool]:
    """Return the model at the start of training, and whether its codebook has been trained.

    Raises:
        ValueError: `pretrained_vae_path` is absent or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same weights in every process
        vae = SparseSDFVQVAE(config)
    if trainer.pretrained_vae_path is None:
        if trainer.training_stage != 2:
            raise ValueError(
                f"training_stage {trainer.training_stage} starts from trained weights: give --pretrained_vae_path"
            )
        return vae, False
    if not Path(trainer.pretrained_vae_path).is_file():
        raise ValueError(
            f"pretrained_vae_path {trainer.pretrained_vae_path} does not exist: training starts from it, so give "
            "another with --pretrained_vae_path"
        )
    if trainer.pretrained_inner:
        report = load_inner_levels(vae, trainer.pretrained_vae_path)
        logger.info("%s", report)
        return vae, trainer.bypass_share == 0 and CODEBOOK not in report.missing
    report = load_weights(vae, trainer.pretrained_vae_path, codebook_required=trainer.training_stage == 3)
    logger.info("%s", report)
    return vae, not report.missing and trainer.training_stage != 1


def training_data(
    folder: Path,
    model: VAEConfig,
    dataset: DatasetConfig,
    trainer: TrainerConfig,
    seed: int,
    accelerator: Accelerator,
) -> tuple[Stream, list[Field]]:
    """Return this process's stream and the held-out objects (of the first process; the others need none).

    Raises:
        ValueError: the folder is not of the kind that the config's `dataset` section names.
    """
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    keep = trainer.held_out if accelerator.is_main_process else 0
    device = accelerator.device
    if dataset.name != "Meshes":
        fields, rest = prepared_fields(folder, model, dataset, trainer.held_out)
        stream: Stream = FieldStream(
            fields,
            device=device,
            seed=seed,
            symmetries=dataset.symmetries,
            workers=trainer.num_workers,
            **place,
        )
        return stream, [(f.index.to(device), f.sdf.to(device)) for f in rest[:keep]]
    if model.field.sampling != "center" or model.field.unit != "band" or model.field.kind != "sdf":
        raise ValueError(
            f"meshes are voxelized as signed fields in units of a band, the model reads {model.field.in_words()}: "
            "prepare such fields with dataset_toolkits/sdf_voxelize.py and vae-qwen3vl convert"
        )
    band = model.field.band or 3.0
    train, weights, held_out = mesh_places(folder, dataset)
    how = Augmentation(rotation=dataset.rotation, stretch=dataset.stretch)
    stream = MeshStream(
        MeshDraws(train, weights, how, seed, made=dataset.shares.get(THIN, 0.0)),
        resolution=model.data_resolution,
        band=band,
        device=device,
        echo=dataset.echo,
        buffer=dataset.buffer,
        by_error=dataset.draw_by_error,
        max_points=dataset.max_points,
        workers=trainer.num_workers,
        **place,
    )
    return stream, voxelized(held_out, keep, model, device)


def mesh_places(folder: Path, dataset: DatasetConfig) -> tuple[list[Place], torch.Tensor, list[Place]]:
    """Return training meshes, how often each is drawn, and held-out meshes of a pack or a folder of files.

    Of a folder without splits, one file in a hundred (at least one, by the order of names) is held out.
    """
    if not folder.is_dir():
        raise ValueError(f"--data_dir {folder} does not exist")
    if kind_of(folder, Kind.PACK):
        meshes = list(pack_objects(MeshPack(folder)))
        train, val = ([mesh for mesh in meshes if mesh.split == split] for split in ("train", "val"))
        if not train:
            raise ValueError(f"{folder} has no mesh of the split train")
        sources = [mesh.source for mesh in train]
        unknown = sorted(set(dataset.shares) - {*sources, THIN})
        if unknown:
            raise ValueError(f"shares: {folder} has no source {unknown}; it has {sorted(set(sources))}")
        order = torch.randperm(len(val), generator=torch.Generator().manual_seed(0)).tolist()
        weights = source_weights(sources, dict(dataset.shares))
        return [mesh.there for mesh in train], weights, [val[i].there for i in order]
    files = sorted((mesh.there for mesh in mesh_objects(folder)), key=lambda place: place.path)
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files)} mesh files ({', '.join(READABLE)}) and no pack: too few to train"
        )
    if set(dataset.shares) - {THIN}:
        raise ValueError(f"shares name sources of a pack; a folder of files has none but {THIN}")
    files = [dataclasses.replace(place, name=str(place.path)) for place in files]
    apart = [place for number, place in enumerate(files) if number % 100 == 0]
    rest = [place for number, place in enumerate(files) if number % 100]
    return rest, torch.ones(len(rest)), apart


def voxelized(places: Sequence[Place], count: int, model: VAEConfig, device: torch.device) -> list[Field]:
    """Voxelize the first meshes that can be."""
    fields: list[Field] = []
    for place in places:
        if len(fields) == count:
            break
        try:
            field = SparseSDF.from_mesh(
                place.mesh(), model.data_resolution, band=model.field.band or 3.0, device=device
            )
        except ValueError as error:
            logger.warning("held-out object %s left out: %s", place.name, error)
            continue
        fields.append((field.index.to(torch.int16), field.sdf.to(torch.float16)))
    return fields


def prepared_fields(
    folder: Path, model: VAEConfig, dataset: DatasetConfig, held_out: int
) -> tuple[FieldFolder, list[SparseSDF]]:
    """Return the training fields of a dataset folder and the held-out ones, its last (at most a tenth).

    Raises:
        ValueError: the folder holds no field, or fields of another kind than the model's.
    """
    fields = FieldFolder(folder, dataset.resolution, min_points=dataset.min_points, max_points=dataset.max_points)
    first = fields[0]
    if first.field != model.field:
        raise ValueError(
            f"{folder} holds {first.field.in_words()}, but the model reads {model.field.in_words()}: see "
            "vae-qwen3vl convert"
        )
    apart = min(held_out, len(fields) // 10)
    rest = [fields[number] for number in range(len(fields) - apart, len(fields))]
    del fields.rows[len(fields) - apart :]
    return fields, rest
