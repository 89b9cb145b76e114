"""The program that trains a tokenizer: options and configs in, a run folder out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdf_vqvae.config.architecture import VAEDocument, read_vae_document
from sdf_vqvae.config.training import DatasetConfig, TrainerConfig
from sdf_vqvae.utils.files import write_json
from sdf_vqvae.utils.programs import add_run_options
from sdf_vqvae.utils.settings import add_options, given

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
        help="give a source of a pack this share of the draws, e.g. ldraw=0.3; the rest is drawn evenly; "
        "made:thin=0.1 adds thin shapes made by rule",
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

    from sdf_vqvae.training.start import start_model, training_data
    from sdf_vqvae.training.trainer import TokenizerTrainer
    from sdf_vqvae.utils.progress import waiting
    from sdf_vqvae.utils.runtime import resolve_device, seed_everything

    document = read_vae_document(options.vae_config)
    dataset, trainer = sections(document, options)
    cpu = resolve_device(options.device).type == "cpu"
    # The quantizer averages its own buffers over processes.
    accelerator = Accelerator(cpu=cpu, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    seed_everything(options.seed + accelerator.process_index)
    vae, has_codebook = start_model(document.model, trainer, options.seed)
    with waiting("reading what to train on"):
        stream, held_out = training_data(
            options.data_dir, document.model, dataset, trainer, options.seed, accelerator
        )
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


def write_arguments(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write everything that the run follows, and the command line, into the run folder."""
    write_json(folder / _WRITTEN, {"command": sys.argv, **settings}, indent=2)
