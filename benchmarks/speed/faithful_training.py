"""The faithful configuration trains: 63 M parameters at 512^3, a short run of the project's trainer on a pack.

    python benchmarks/speed/faithful_training.py --pack ../shared/data/shapes --steps 200

Model and trainer are those of the config (default: configs/vae/sdf_vqvae_stage2.json), fields what it declares:
unsigned distances in world units at the corners of the grid, within 4 voxels of the surface (the original's
threshold_factor), objects of more voxels than its `max_points` left out. Changed is what a short run from random
weights asks for: no weights to start from, --steps, --batch, --warmup_steps, and no pictures.

The result has the loss along the run, error in voxels, objects a second and the largest memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from sdf_vqvae.config.architecture import VAEConfig, read_vae_document
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.data.objects import pack_objects
from sdf_vqvae.fields.conversion import field_in_world
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.training.mesh_draws import Augmentation, MeshDraws, prepare
from sdf_vqvae.training.streams import Field, loader_options, random_symmetry
from sdf_vqvae.training.trainer import TokenizerTrainer
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import peak_host_bytes, resolve_device, seed_everything, setup_logging

ROOT = Path(__file__).resolve().parents[2]
_NEVER = 10**9


class KeptFields:
    """A stream of fields that all stay on the device, drawn at random and turned by a symmetry of the grid."""

    def __init__(self, fields: Sequence[Field], resolution: int, seed: int) -> None:
        self.fields = list(fields)
        self.resolution = resolution
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn = 0

    @property
    def epoch(self) -> float:
        """Fields drawn over the fields there are."""
        return self.drawn / len(self.fields)

    learn = None

    def draw(self, count: int) -> list[Field]:
        """Return the next fields."""
        self.drawn += count
        chosen = torch.randint(len(self.fields), (count,), generator=self.generator).tolist()
        parts = [self.fields[number] for number in chosen]
        return [(random_symmetry(index, self.resolution, self.generator), sdf) for index, sdf in parts]

    def state(self) -> dict[str, Any]:
        """Return how many were drawn, and the generator."""
        return {"drawn": self.drawn, "generator": self.generator.get_state().tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.drawn = int(state["drawn"])
        self.generator.set_state(torch.tensor(state["generator"], dtype=torch.uint8))


def fields_of(
    pack: MeshPack, split: str, count: int, config: VAEConfig, options: argparse.Namespace, device: torch.device
) -> list[Field]:
    """Return fields of a split, drawn at random, as the config declares them.

    Raises:
        ValueError: no mesh gives a field within the bounds.
    """
    places = [mesh.there for mesh in pack_objects(pack) if mesh.split == split]
    draws = MeshDraws(places, torch.ones(len(places)), Augmentation(), options.seed)
    loader = DataLoader(
        draws,
        batch_size=8,
        sampler=range(50 * count),
        collate_fn=prepare,
        **loader_options(options.workers, options.seed),
    )
    fields: list[Field] = []
    bar = tqdm(total=count, desc=f"fields of {split}", disable=None)
    for prepared in loader:
        counts = prepared.sizes.T.tolist()
        for vertices, faces, watertight in zip(
            prepared.vertices.split(counts[0]), prepared.faces.split(counts[1]), prepared.watertight, strict=True
        ):
            if not _may_fit(vertices[faces], config, options):
                continue
            field = field_in_world(
                vertices.to(device), faces.to(device), config.field, band=options.band, watertight=watertight
            )
            if options.min_points <= len(field.sdf) <= options.max_points:
                fields.append((field.index.to(torch.int16), field.sdf))
                bar.update()
            if len(fields) == count:
                return fields
    if not fields:
        raise ValueError(
            f"none of {50 * count} meshes of {split} has {options.min_points} to {options.max_points} voxels at "
            f"{config.data_resolution}^3: give another --max_points"
        )
    return fields


def _may_fit(corners: Tensor, config: VAEConfig, options: argparse.Namespace) -> bool:
    """Return whether triangles `[F, 3, 3]` may give few enough voxels: nearly their area times the band's width."""
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1).sum() / 2
    return float(area) * config.data_resolution**2 * 2 * options.band < 2 * options.max_points


def settings_for(trainer: TrainerConfig, options: argparse.Namespace) -> TrainerConfig:
    """Return the config's trainer for a short run from random weights."""
    return dataclasses.replace(
        trainer,
        pretrained_vae_path=None,
        max_steps=options.steps,
        max_seconds=options.max_seconds,
        max_epoch=None,
        batch_size_per_gpu=options.batch,
        batch_split=options.batch_split,
        warmup_steps=options.warmup_steps,
        disable_snapshot=True,
        i_print=max(1, options.steps // 10),
        i_log=1,
        i_sample=_NEVER,
        i_save=_NEVER,
    )


def summary(records: Sequence[dict[str, Any]], steps: dict[str, Any]) -> dict[str, Any]:
    """Return a run's curve and speed, without its first tenth, in which most kernels are compiled, and later."""
    train = [r for r in records if r["kind"] == "train"]
    held_out = [r for r in records if r["kind"] == "held_out"]
    tenth = max(1, len(train) // 10)
    first, last = train[min(tenth, len(train) - 1)], train[-1]
    seconds = last["seconds"] - first["seconds"]
    half = train[len(train) // 2]
    later = last["seconds"] - half["seconds"]
    result = {
        **steps,
        "steps": last["step"],
        "seconds": round(last["seconds"], 1),
        "objects_per_second": round((last["objects"] - first["objects"]) / seconds, 3) if seconds > 0 else None,
        "objects_per_second_second_half": round((last["objects"] - half["objects"]) / later, 3)
        if later > 0
        else None,
        "loss_first_tenth": statistics.fmean(r["loss"] for r in train[:tenth]),
        "loss_last_tenth": statistics.fmean(r["loss"] for r in train[-tenth:]),
        "l1_voxels_first_tenth": statistics.fmean(r["l1_voxels"] for r in train[:tenth]),
        "l1_voxels_last_tenth": statistics.fmean(r["l1_voxels"] for r in train[-tenth:]),
        "peak_gigabytes": max((r["peak_gigabytes"] for r in train if "peak_gigabytes" in r), default=None),
        "peak_host_gigabytes": round(peak_host_bytes() / 1e9, 2),
        "curve": [
            {k: round(r[k], 6) for k in ("step", "seconds", "loss", "l1_voxels", "perplexity") if k in r}
            for r in train
        ],
    }
    if held_out:
        result["held_out"] = {k: held_out[-1][k] for k in ("l1", "perplexity", "used") if k in held_out[-1]}
    return result


def make_parser() -> argparse.ArgumentParser:
    """Return the options."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--vae_config", type=Path, default=ROOT / "configs/vae/sdf_vqvae_stage2.json")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--max_seconds", type=float, help="of training, where that is reached first")
    parser.add_argument("--batch", type=int, default=4, help="objects a step (the config has 16)")
    parser.add_argument("--batch_split", type=int, default=1)
    parser.add_argument("--warmup_steps", type=int, default=20, help="the config has 100")
    parser.add_argument("--objects", type=int, default=64, help="meshes of train")
    parser.add_argument("--held_out", type=int, default=8, help="meshes of val")
    parser.add_argument("--band", type=float, default=4.0, help="half width of the fields in voxels")
    parser.add_argument("--max_points", type=int, help="most voxels of an object (default: the config's)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read meshes")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Make fields, train, write."""
    options = make_parser().parse_args()
    setup_logging()
    device = resolve_device(options.device)
    seed_everything(options.seed)
    document = read_vae_document(options.vae_config)
    if document.trainer is None or document.dataset is None:
        raise ValueError(f"{options.vae_config} has no sections dataset and trainer: give a config of a training run")
    options.min_points = document.dataset.min_points
    options.max_points = options.max_points or document.dataset.max_points or _NEVER
    config = document.model
    pack = MeshPack(options.pack)
    start = time.perf_counter()
    train = fields_of(pack, "train", options.objects, config, options, device)
    held_out = fields_of(pack, "val", options.held_out, config, options, device)
    fields_seconds = time.perf_counter() - start
    vae = SparseSDFVQVAE(config).to(device)
    about = {
        "config": options.vae_config.name,
        "field": config.field.in_words(),
        "band_voxels": options.band,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "backend": active_backend(device),
        "objects_a_step": options.batch,
        "objects": len(train),
        "voxels_an_object": round(statistics.fmean(len(sdf) for _, sdf in train)),
        "most_voxels": max(len(sdf) for _, sdf in train),
        "fields_seconds": round(fields_seconds, 1),
    }
    print(about, flush=True)
    stream = KeptFields(train, config.data_resolution, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TokenizerTrainer(
            vae, settings_for(document.trainer, options), stream, held_out=held_out, folder=Path(folder)
        )
        records = trainer.run()
    for record in records:
        if "l1" in record:
            record["l1_voxels"] = record["l1"] * config.field.voxels_per_unit
    result = summary(records, about)
    print({k: v for k, v in result.items() if k != "curve"})
    print(write_run(options, result))


if __name__ == "__main__":
    main()
