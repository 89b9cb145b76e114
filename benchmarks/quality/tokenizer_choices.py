"""One change at a time: variants of the tokenizer, each trained for the same seconds on the same stream of objects.

python benchmarks/quality/tokenizer_choices.py --pack PACK --max_seconds 45 --variants base,cosine,rotation
python benchmarks/quality/tokenizer_choices.py --pack PACK --vae_config configs/vae/sdf_vqvae_512.json \
    --start sdf_vqvae/weights/model.safetensors --max_seconds 30 --buffer 256 --batch_size_per_gpu 8 --batch_split 2

Every variant is the config with one thing changed, a warm-up of 50 steps, and kernels compiled before its clock
starts. With `--start` it starts from weights of a grid half as fine (`pretrained_inner`), else from random ones. All
begin with the same filled buffer. Measured are the averaged weights on objects of `val`, with codes: the mean error
within a third of the band of the surface, in voxels of the base grid (`finer_grid`, twice as fine with the same
latent grid, is measured within one of its own voxels), and the share of wrong signs there, both also of thin parts
and of the third of the objects with the fewest codes; the error of continuous latents before and after training; how
far surfaces are off; the share of true children that the decoder leaves out at each level; and the codebook's health.
Rows are written as they come. Two GPUs can share the variants, each process with a --name of its own.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.config.architecture import VAEConfig, read_vae_document
from sdf_vqvae.config.training import THIN, DatasetConfig, TrainerConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.training.held_out import measure_held_out
from sdf_vqvae.training.mesh_draws import Augmentation, MeshDraws
from sdf_vqvae.training.mesh_stream import MeshStream
from sdf_vqvae.training.start import mesh_places, start_model, voxelized
from sdf_vqvae.training.streams import Field
from sdf_vqvae.training.trainer import TokenizerTrainer
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device, seed_everything, setup_logging
from sdf_vqvae.utils.settings import settings_of

ROOT = Path(__file__).resolve().parents[2]
_OF_DATA = settings_of(DatasetConfig)
_FINE = ("l1_near_small", "l1_near_thin", "surface")
ORIGINAL = {
    "architecture": "original",
    "level_channels": (32, 64, 96),
    "level_blocks": (),
    "level_blocks_decoder": (),
    "predict_occupancy": False,
    "pool_counts_zero": False,
}
Change = tuple[dict[str, Any], dict[str, Any]]
VARIANTS: dict[str, Change] = {
    "base": ({}, {}),
    "original": (ORIGINAL, {}),
    "all_children": ({"predict_occupancy": False}, {}),
    "rotation": ({"rotation_trick": True}, {}),
    "cosine": ({"quantizer": "cosine"}, {}),
    "codes_8192": ({"num_embeddings": 8192}, {}),
    "simvq": ({"quantizer": "simvq", "use_ema_update": False}, {}),
    "fsq": (
        {
            "quantizer": "fsq",
            "use_ema_update": False,
            "fsq_levels": (8, 8, 8, 4, 4),
            "latent_channels": 5,
            "num_embeddings": 8192,
        },
        {},
    ),
    "no_slope": ({}, {"slope_weight": 0.0}),
    "no_sign": ({}, {"sign_weight": 0.0}),
    "huber": ({}, {"loss_type": "huber"}),
    "no_balance": ({}, {"object_balance": 0.0}),
    "fewer_blocks": ({"level_blocks": (1, 2)}, {}),
    "more_trunk": ({"num_blocks": 6}, {}),
    "narrow_codes": ({"latent_channels": 8}, {}),
    "lr_2e-3": ({}, {"lr": 2e-3}),
    "no_bypass": ({}, {"bypass_share": 0.02}),
    "finer_grid": ({"level_channels": (32, 64, 128), "level_blocks": (1, 2, 2)}, {"batch_split": 4}),
}
"""Changes of the model and of the training, of a network that starts at random."""
STARTED: dict[str, Change] = {
    "base": ({}, {}),
    "one_level_more": ({"patch_size": 2, "level_channels": (32, 64, 128), "level_blocks": (1, 2, 2)}, {}),
    "codes_16384": ({"num_embeddings": 16384}, {"bypass_share": 0.0}),
    "codes_16384_anew": ({"num_embeddings": 16384}, {}),
    "input_band_1.75": ({"input_band": 1.75}, {}),
    "vq_decay_0.98": ({"vq_decay": 0.98}, {}),
    "balance_0.8": ({}, {"object_balance": 0.8}),
    "no_made_thin": ({}, {"shares": {"ldraw": 0.35}}),
    "lr_5e-4": ({}, {"lr": 5e-4}),
    "lr_2e-3": ({}, {"lr": 2e-3}),
    "muon": ({}, {"optimizer": "Muon"}),
    "thin_weight": ({}, {"thin_weight": 3.0}),
    "surface_weight": ({}, {"surface_weight": 1.0}),
    "by_error": ({}, {"draw_by_error": 1.0}),
    "rotation": ({"rotation_trick": True}, {}),
    "commitment_1": ({}, {"lambda_commitment": 1.0}),
    "second_codes": ({"quantizer": "residual", "second_codes": 8192, "second_share": 0.15}, {}),
    "finer_decoder": ({"level_blocks_decoder": (4, 2)}, {}),
    "thin_surface_error": ({}, {"thin_weight": 3.0, "surface_weight": 1.0, "draw_by_error": 1.0}),
}
"""The same with `--start`."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The same objects for every variant of one resolution."""

    filled: MeshStream
    held_out: list[Field]

    @classmethod
    def voxelized(cls, config: VAEConfig, dataset: DatasetConfig, options: argparse.Namespace) -> Data:
        """Fill the buffer; a grid twice as fine has four times the voxels and gets a quarter of the places."""
        device = resolve_device(options.device)
        train, weights, val = mesh_places(options.pack, dataset)
        finer = (config.data_resolution // options.resolution) ** 2
        how = Augmentation(rotation=dataset.rotation, stretch=dataset.stretch)
        stream = MeshStream(
            MeshDraws(train, weights, how, 0, made=dataset.shares.get(THIN, 0.0)),
            resolution=config.data_resolution,
            band=config.field.band or 3.0,
            device=device,
            echo=dataset.echo,
            buffer=options.buffer // finer,
            max_points=(dataset.max_points or 10**9) * finer,
            workers=options.workers,
        )
        held_out = voxelized(val, options.held_out, config, device)
        while len(stream.kept) < stream.size:
            stream.draw(1)
        return cls(filled=stream, held_out=held_out)

    def stream(self, dataset: DatasetConfig, options: argparse.Namespace) -> MeshStream:
        """Return a stream that begins with the filled buffer, as a variant's `dataset` section says.

        Other shares of meshes are as many as there are; without `made:thin` the buffer holds the meshes alone.
        """
        own = copy.copy(self.filled)
        own.generator = torch.Generator().manual_seed(0)
        own.by_error, own.echo = dataset.draw_by_error, dataset.echo
        own.kept, own.errors, own._untold = list(own.kept), torch.full_like(own.errors, torch.nan), []
        made = dataset.shares.get(THIN, 0.0)
        if made != own.draws.made:
            train, weights, _ = mesh_places(options.pack, dataset)
            own.draws = MeshDraws(train, weights, own.draws.augmentation, own.draws.seed, made=made)
            own.kept = [item for item in own.kept if made or not self.filled.draws.is_made(item[0])]
            own.size, own._incoming = len(own.kept), None
        return own


def variant_config(name: str, change: dict[str, Any], base: VAEConfig, resolution: int) -> VAEConfig:
    """Return a variant's model on a data grid of this side."""
    args = {**base.to_args(), **change}
    args["resolution"] = resolution // 2**base.levels
    field = {**args["field"], "resolution": resolution * (2 if name == "finer_grid" else 1)}
    return VAEConfig.from_args({**args, "field": field})


def measure_variant(
    config: VAEConfig,
    trainer: TrainerConfig,
    stream: MeshStream,
    held_out: list[Field],
    device: torch.device,
    voxels: float,
) -> dict[str, Any]:
    """Train one variant and return what came of it; `voxels`: those of the base grid in the band."""
    seed_everything(0)
    vae, has_codebook = start_model(config, trainer, 0)
    _compile(vae, trainer, stream, device)
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        run = TokenizerTrainer(
            vae.to(device),
            trainer,
            stream,
            held_out=held_out,
            folder=Path(folder),
            has_codebook=has_codebook,
        )
        before = _without_codes(run, held_out, trainer)
        start = time.perf_counter()
        records = run.run()
        seconds = time.perf_counter() - start
        after = _without_codes(run, held_out, trainer)
    last = [r for r in records if r["kind"] == "held_out"][-1]
    curve = [[r["step"], round(r["seconds"], 1), r["l1_near"] * voxels] for r in records if r["kind"] == "train"]
    return {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "seconds": round(seconds, 1),
        "seconds_drawing": round(run.waited, 1),
        "steps": run.step_number,
        "objects": run.objects,
        "near_error_voxels": last["l1_near"] * voxels,
        "without_codes_voxels": [before * voxels, after * voxels],
        **{f"{name}_voxels": last[name] * voxels for name in _FINE if name in last},
        "wrong_sign_near": last["wrong_sign"],
        **{name: last[name] for name in ("wrong_sign_small", "wrong_sign_thin") if name in last},
        "children_missed": [last[name] for name in sorted(last) if name.startswith("missed_")],
        "children_extra": [last[name] for name in sorted(last) if name.startswith("extra_")],
        "perplexity": last["perplexity"],
        "used": last["used"],
        "peak_gigabytes": max((r.get("peak_gigabytes", 0.0) for r in records), default=0.0),
        "curve": curve,
    }


def _without_codes(run: TokenizerTrainer, held_out: list[Field], settings: TrainerConfig) -> float:
    """Return the error near the surface of continuous latents, which tells of the network alone."""
    with run._precision():
        return measure_held_out(run.averaged().eval(), held_out, settings, quantizing=False)["l1_near"]


def _compile(vae: SparseSDFVQVAE, settings: TrainerConfig, stream: MeshStream, device: torch.device) -> None:
    """Run a few steps on a copy, so that compiling kernels does not count."""
    warm = dataclasses.replace(settings, max_seconds=None, max_steps=3, bypass_share=0.0)
    trainer = TokenizerTrainer(copy.deepcopy(vae).to(device), warm, stream, folder=Path("unused"))
    trainer._modes()
    for _ in range(warm.max_steps):
        trainer.step(0.0)


def main() -> None:
    """Train the variants and write the table."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--vae_config", type=Path, default=ROOT / "configs/vae/sdf_vqvae_256.json")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="WEIGHTS",
        help="part of the network: of fewer blocks or a grid half as fine, config.json beside them",
    )
    parser.add_argument("--variants", help="names, with commas between; default: all that start so")
    parser.add_argument("--resolution", type=int, help="side of the base grid; default: the config's")
    parser.add_argument("--max_seconds", type=float, default=45.0, help="training time of each")
    parser.add_argument("--held_out", type=int, default=48, help="objects of val")
    parser.add_argument("--buffer", type=int, default=1024, help="voxelized meshes to train on")
    parser.add_argument("--batch_size_per_gpu", type=int, help="default: the config's")
    parser.add_argument("--batch_split", type=int, help="default: the config's")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--device")
    options = parser.parse_args()
    setup_logging()
    logging.getLogger("sdf_vqvae.training.mesh_stream").setLevel(logging.ERROR)
    device = resolve_device(options.device)
    document = read_vae_document(options.vae_config)
    assert document.dataset is not None and document.trainer is not None
    options.resolution = options.resolution or document.model.data_resolution
    given = {
        "max_seconds": options.max_seconds,
        "warmup_steps": 50,
        "i_sample": 10**9,
        "i_save": 10**9,
        "disable_snapshot": True,
        "pretrained_vae_path": None if options.start is None else str(options.start),
        "pretrained_inner": options.start is not None,
    }
    sizes = ("batch_size_per_gpu", "batch_split")
    given |= {name: getattr(options, name) for name in sizes if getattr(options, name) is not None}
    known = VARIANTS if options.start is None else STARTED
    data: dict[int, Data] = {}
    rows = []
    for name in options.variants.split(",") if options.variants else known:
        model, changes = known[name]
        of_data = {key: value for key, value in changes.items() if key in _OF_DATA}
        dataset = dataclasses.replace(document.dataset, **of_data)
        of_training = {key: value for key, value in changes.items() if key not in _OF_DATA}
        trainer = dataclasses.replace(document.trainer, **given | of_training)
        config = variant_config(name, model, document.model, options.resolution)
        grid = config.data_resolution
        if grid not in data:
            data = {grid: Data.voxelized(config, document.dataset, options)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        voxels = (config.field.band or 1.0) * options.resolution / grid
        stream = data[grid].stream(dataset, options)
        row = {"variant": name, "change": {**model, **changes}}
        row |= measure_variant(config, trainer, stream, data[grid].held_out, device, voxels)
        rows.append(row)
        print(json.dumps({k: v for k, v in row.items() if k not in ("curve", "change")}), flush=True)
        write_run(options, {"resolution": options.resolution, "seconds": options.max_seconds, "rows": rows})


if __name__ == "__main__":
    main()
