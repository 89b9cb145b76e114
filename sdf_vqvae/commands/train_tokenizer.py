"""The program that trains a tokenizer: options and configs in, a run folder out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdf_vqvae.config.architecture import VAEConfig, VAEDocument, read_vae_document
from sdf_vqvae.config.training import DatasetConfig, TrainerConfig
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.programs import add_run_options
from sdf_vqvae.utils.settings import add_options, given

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from sdf_vqvae.data.objects import Place
    from sdf_vqvae.training.streams import Field, Stream

logger = logging.getLogger(__name__)

ABOUT = "Train a tokenizer on meshes or prepared fields."
EXAMPLES = (
    "  train_tokenizer --vae_config configs/vae/sdf_vqvae_256.json --data_dir meshes --output_dir outputs/tok\n"
    "  train_tokenizer --vae_config configs/vae/sdf_vqvae_stage2.json --data_dir train_sdf_dataset \\\n"
    "      --output_dir outputs/stage2 --max_steps 1000 --batch_size_per_gpu 2\n"
    "  torchrun --nproc_per_node 2 scripts/train_tokenizer.py ...            two GPUs\n"
    "The same command goes on where it stopped. DATA is a mesh pack (meshes.bin, meshes.jsonl), a folder of mesh\n"
    "files, or a dataset folder of field files ({id}_r{R}.npz); the config's `dataset` section says which of them."
)
_WRITTEN = "train_args.json"
_NOT_FLAGS = ("name", "resolution", "shares", "ema_rate", "fp16_mode", "window_type")
_FREE = ("max_steps", "max_seconds", "max_epoch", "num_workers", "disable_snapshot", "keep_checkpoints")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options; those of the sections `trainer` and `dataset` are their fields."""
    parser.add_argument("--vae_config", type=Path, required=True, metavar="JSON", help="model, dataset and trainer")
    parser.add_argument("--data_dir", type=Path, required=True, metavar="DATA", help="see below")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="FOLDER", help="the run folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="SOURCE=SHARE",
        help="give a source of a pack this share of the draws, e.g. ldraw=0.3; the rest is drawn evenly",
    )
    parser.add_argument(
        "--ema_rate",
        type=float,
        action="append",
        metavar="R",
        help="decay of averaged weights; the first is exported",
    )
    for title, section in (("trainer", TrainerConfig), ("dataset", DatasetConfig)):
        group = parser.add_argument_group(f"of the config's section {title}, which they replace")
        add_options(group, section, leave_out=_NOT_FLAGS, overrides=True)
    add_run_options(parser, json_output=False)


def work(options: argparse.Namespace) -> int:
    """Train."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    from sdf_vqvae.training.trainer import TokenizerTrainer
    from sdf_vqvae.utils.runtime import resolve_device, seed_everything

    document = read_vae_document(options.vae_config)
    dataset, trainer = sections(document, options)
    cpu = resolve_device(options.device).type == "cpu"
    # The quantizer averages its own buffers over processes.
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    seed_everything(options.seed + accelerator.process_index)
    vae, has_codebook = start_model(document.model, trainer, options.seed)
    stream, held_out = training_data(options, document.model, dataset, trainer, accelerator)
    settings = {
        "model": document.model.to_args(),
        "dataset": dataclasses.asdict(dataset) | {"data_dir": str(options.data_dir)},
        "seed": options.seed,
        "trainer": {k: v for k, v in dataclasses.asdict(trainer).items() if k not in _FREE and k[:2] != "i_"},
    }
    settings = json.loads(json.dumps(settings))  # as a checkpoint will give them back
    training = TokenizerTrainer(
        vae,
        trainer,
        stream,
        held_out=held_out,
        folder=options.output_dir,
        accelerator=accelerator,
        has_codebook=has_codebook,
        settings=settings,
    )
    if accelerator.is_main_process:
        write_arguments(options.output_dir, {**settings, "trainer": dataclasses.asdict(trainer)})
    training.run()
    accelerator.end_training()
    return 128 + training.stopping.signal if training.stopping.signal else 0


def sections(document: VAEDocument, options: argparse.Namespace) -> tuple[DatasetConfig, TrainerConfig]:
    """Return the config's sections with the command line's values; without a section, its defaults.

    Raises:
        ValueError: a value is out of its range, or the model's grid is not the dataset's.
    """
    resolution = document.model.data_resolution
    dataset = document.dataset or DatasetConfig(name="Meshes", resolution=resolution)
    trainer = document.trainer or TrainerConfig()
    dataset = dataclasses.replace(dataset, **given(options, DatasetConfig, "dataset.args"))
    if options.share:
        shares = dict(part.split("=", 1) if "=" in part else (part, "") for part in options.share)
        try:
            dataset = dataclasses.replace(dataset, shares={name: float(share) for name, share in shares.items()})
        except ValueError as error:
            raise ValueError(f"--share must be SOURCE=SHARE, got {options.share}: {error}") from error
    trainer = dataclasses.replace(trainer, **given(options, TrainerConfig, "trainer.args"))
    if options.ema_rate:
        trainer = dataclasses.replace(trainer, ema_rate=tuple(options.ema_rate))
    if dataset.resolution != resolution:
        raise ValueError(
            f"the model reads a grid of {resolution}^3, but dataset.args.resolution is {dataset.resolution}"
        )
    return dataset, trainer


def start_model(config: VAEConfig, trainer: TrainerConfig, seed: int) -> tuple[Any, bool]:
    """Return the model at the start of training, and whether its codebook has been trained.

    Raises:
        ValueError: `pretrained_vae_path` is absent or does not fit.
    """
    import torch

    from sdf_vqvae.model.checkpoint import load_weights
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

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
    report = load_weights(vae, trainer.pretrained_vae_path, codebook_required=trainer.training_stage == 3)
    logger.info("%s", report)
    return vae, not report.missing and trainer.training_stage != 1


def training_data(
    options: argparse.Namespace,
    model: VAEConfig,
    dataset: DatasetConfig,
    trainer: TrainerConfig,
    accelerator: Accelerator,
) -> tuple[Stream, list[Field]]:
    """Return this process's stream and the held-out objects (of the first process; the others need none).

    Raises:
        ValueError: the folder is not of the kind that the config's `dataset` section names.
    """
    from sdf_vqvae.training.field_stream import FieldStream
    from sdf_vqvae.training.mesh_draws import Augmentation, MeshDraws
    from sdf_vqvae.training.mesh_stream import MeshStream

    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    keep = trainer.held_out if accelerator.is_main_process else 0
    device = accelerator.device
    if dataset.name != "Meshes":
        fields, rest = prepared_fields(options.data_dir, model, dataset, trainer.held_out)
        stream: Stream = FieldStream(
            fields,
            device=device,
            seed=options.seed,
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
    train, weights, held_out = mesh_places(options.data_dir, dataset)
    how = Augmentation(rotation=dataset.rotation, stretch=dataset.stretch)
    stream = MeshStream(
        MeshDraws(train, weights, how, options.seed),
        resolution=model.data_resolution,
        band=band,
        device=device,
        echo=dataset.echo,
        buffer=dataset.buffer,
        max_points=dataset.max_points,
        workers=trainer.num_workers,
        **place,
    )
    return stream, voxelized(held_out, keep, model, device)


def mesh_places(folder: Path, dataset: DatasetConfig) -> tuple[list[Place], torch.Tensor, list[Place]]:
    """Return training meshes, how often each is drawn, and held-out meshes of a pack or a folder of files.

    Of a folder without splits, one file in a hundred (at least one, by the order of names) is held out.
    """
    import torch

    from sdf_vqvae.data.mesh_pack import MeshPack
    from sdf_vqvae.data.objects import Kind, kind_of, mesh_objects, pack_objects
    from sdf_vqvae.geometry.mesh import READABLE
    from sdf_vqvae.training.mesh_draws import source_weights

    if not folder.is_dir():
        raise ValueError(f"--data_dir {folder} does not exist")
    if kind_of(folder, Kind.PACK):
        meshes = list(pack_objects(MeshPack(folder)))
        train, val = ([mesh for mesh in meshes if mesh.split == split] for split in ("train", "val"))
        if not train:
            raise ValueError(f"{folder} has no mesh of the split train")
        sources = [mesh.source for mesh in train]
        unknown = sorted(set(dataset.shares) - set(sources))
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
    if dataset.shares:
        raise ValueError("shares name sources of a pack; a folder of files has none")
    files = [dataclasses.replace(place, name=str(place.path)) for place in files]
    apart = [place for number, place in enumerate(files) if number % 100 == 0]
    rest = [place for number, place in enumerate(files) if number % 100]
    return rest, torch.ones(len(rest)), apart


def voxelized(places: Sequence[Place], count: int, model: VAEConfig, device: torch.device) -> list[Field]:
    """Voxelize the first meshes that can be."""
    import torch

    from sdf_vqvae.fields.sparse_sdf import SparseSDF

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


def prepared_fields(folder: Path, model: VAEConfig, dataset: DatasetConfig, held_out: int) -> tuple[Any, list[Any]]:
    """Return the training fields of a dataset folder and the held-out ones, its last (at most a tenth).

    Raises:
        ValueError: the folder holds no field, or fields of another kind than the model's.
    """
    from sdf_vqvae.data.field_folder import FieldFolder

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


def write_arguments(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write everything that the run follows, and the command line, into the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _WRITTEN, {"command": sys.argv, **settings}, indent=2)
