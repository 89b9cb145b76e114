"""One change at a time: variants of the tokenizer, each trained for the same seconds on the same stream of objects.

python benchmarks/quality/tokenizer_choices.py --pack PACK --max_seconds 45 --variants base,cosine,rotation

Every variant starts from `configs/vae/sdf_vqvae_256.json` with one thing changed, a warm-up of 50 steps, and kernels
compiled before its clock starts. Measured are the averaged weights on objects of `val`, with codes: the mean error
within one voxel of the surface, in voxels of the base grid (`finer_grid`, twice as fine with the same latent grid, is
measured within one of its own voxels), the share of wrong signs there, the share of true blocks that the decoder
leaves out, and the codebook's health. Two GPUs can share the variants, each process with a --name of its own.
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
from sdf_vqvae.config.training import DatasetConfig, TrainerConfig
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.training.mesh_draws import Augmentation, MeshDraws
from sdf_vqvae.training.mesh_stream import MeshStream
from sdf_vqvae.training.start import mesh_places, voxelized
from sdf_vqvae.training.trainer import TokenizerTrainer
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device, seed_everything, setup_logging

ROOT = Path(__file__).resolve().parents[2]
ORIGINAL = {
    "architecture": "original",
    "level_channels": (32, 64, 96),
    "level_blocks": (),
    "predict_occupancy": False,
    "pool_counts_zero": False,
}
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
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


@dataclass(frozen=True)
class Data:
    """The same objects in the same order, at one resolution."""

    stream: MeshStream
    held_out: list[Any]

    @classmethod
    def voxelized(cls, config: VAEConfig, dataset: DatasetConfig, options: argparse.Namespace) -> Data:
        """Fill the buffer; a grid twice as fine has four times the voxels and gets a quarter of the places."""
        device = resolve_device(options.device)
        train, weights, val = mesh_places(options.pack, dataset)
        finer = (config.data_resolution // options.resolution) ** 2
        stream = MeshStream(
            MeshDraws(train, weights, Augmentation(rotation=dataset.rotation, stretch=dataset.stretch), 0),
            resolution=config.data_resolution,
            band=config.field.band or 3.0,
            device=device,
            echo=dataset.echo,
            buffer=options.buffer // finer,
            max_points=(dataset.max_points or 10**9) * finer,
            workers=options.workers,
        )
        held_out = voxelized(val, options.held_out, config, device)
        while len(stream.kept) < options.buffer // finer:
            stream.draw(1)
        return cls(stream, held_out)


def variant_config(name: str, base: VAEConfig, resolution: int) -> VAEConfig:
    """Return a variant's model on a data grid of this side."""
    model, _ = VARIANTS[name]
    args = {**base.to_args(), **model}
    args["resolution"] = resolution // 2**base.levels
    field = {**args["field"], "resolution": resolution * (2 if name == "finer_grid" else 1)}
    return VAEConfig.from_args({**args, "field": field})


def measure_variant(
    name: str, config: VAEConfig, trainer: TrainerConfig, data: Data, device: torch.device, resolution: int
) -> dict[str, Any]:
    """Train one variant and return what came of it."""
    seed_everything(0)
    vae = SparseSDFVQVAE(config)
    _compile(vae, trainer, data.stream, device)
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        run = TokenizerTrainer(vae.to(device), trainer, data.stream, held_out=data.held_out, folder=Path(folder))
        start = time.perf_counter()
        records = run.run()
    last = [r for r in records if r["kind"] == "held_out"][-1]
    voxels = (config.field.band or 1.0) * resolution / config.data_resolution
    curve = [[r["step"], round(r["seconds"], 1), r["l1_near"] * voxels] for r in records if r["kind"] == "train"]
    return {
        "variant": name,
        "change": {**VARIANTS[name][0], **VARIANTS[name][1]},
        "parameters": sum(p.numel() for p in vae.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "steps": run.step_number,
        "objects": run.objects,
        "near_error_voxels": last["l1_near"] * voxels,
        "wrong_sign_near": last["wrong_sign"],
        "blocks_missed": last.get("missed_1"),
        "blocks_extra": last.get("extra_1"),
        "perplexity": last["perplexity"],
        "used": last["used"],
        "peak_gigabytes": max((r.get("peak_gigabytes", 0.0) for r in records), default=0.0),
        "curve": curve,
    }


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
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, with commas between")
    parser.add_argument(
        "--resolution", type=int, default=256, help="side of the base grid; 128 trains four times as fast"
    )
    parser.add_argument("--max_seconds", type=float, default=45.0, help="training time of each")
    parser.add_argument("--held_out", type=int, default=48, help="objects of val")
    parser.add_argument("--buffer", type=int, default=1024, help="voxelized meshes to train on")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--device")
    options = parser.parse_args()
    setup_logging()
    logging.getLogger("sdf_vqvae.training.mesh_stream").setLevel(logging.ERROR)
    device = resolve_device(options.device)
    document = read_vae_document(options.vae_config)
    assert document.dataset is not None and document.trainer is not None
    data: dict[int, Data] = {}
    rows = []
    for name in options.variants.split(","):
        _, trainer = VARIANTS[name]
        config = variant_config(name, document.model, options.resolution)
        settings = dataclasses.replace(
            document.trainer,
            max_seconds=options.max_seconds,
            warmup_steps=50,
            i_sample=10**9,
            i_save=10**9,
            disable_snapshot=True,
            **trainer,
        )
        grid = config.data_resolution
        if grid not in data:
            data = {grid: Data.voxelized(config, document.dataset, options)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rows.append(measure_variant(name, config, settings, data[grid], device, options.resolution))
        print(json.dumps({k: v for k, v in rows[-1].items() if k not in ("curve", "change")}), flush=True)
        result = {"resolution": options.resolution, "seconds": options.max_seconds, "rows": rows}
        write_run(options, result)


if __name__ == "__main__":
    main()
