"""A rival's design on our data: a dense 64^3 occupancy VQ-VAE with 1,024 tokens, trained and scored in one run.

    python benchmarks/rival/dense_occupancy.py --pack ../shared/data/shapes --max_seconds 120 --workers 14

Scoring meshes needs libigl and no GPU. To do it on another machine, in the same folder of results:

    python benchmarks/rival/dense_occupancy.py --pack PACK --max_seconds 120 --workers 14 --grids rival.npz
    python benchmarks/rival/dense_occupancy.py --pack PACK --score rival.npz --workers 2

Parameters, training time and draws are those of our own run (--parameters, --max_seconds, --share). docs/rival.md
says what of the design is published and what was chosen here. The result has the training curve, the 64^3 voxel IoU,
the meshes' scores in three readings (meshes.py) beside their ceiling, times and the health of the codebook.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from meshes import scores, table_of
from network import CHANNELS, CODES, JOINED, TOKENS, DenseOccupancyVQVAE, config_for, parameter_count
from occupancy import MeshVariants, occupancy_grids, unpacked
from rebuilding import OBJECTS, Rebuilt, print_table, rebuild
from torch import Tensor
from training import RivalTrainer

from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.training.mesh_draws import source_weights
from sdf_vqvae.utils.files import write_json_lines
from sdf_vqvae.utils.measurements import measuring_parser, read_runs, results_file, run_name, write_run
from sdf_vqvae.utils.runtime import resolve_device, seed_everything, setup_logging

RUN = "dense 64^3"


def make_parser() -> argparse.ArgumentParser:
    """Return the options."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="test", help="what is scored")
    parser.add_argument("--parameters", type=int, default=10_000_000, help="most parameters, the codebook's included")
    parser.add_argument("--max_seconds", type=float, default=120, help="training time")
    parser.add_argument("--max_steps", type=int, default=1_000_000)
    parser.add_argument("--share", action="append", default=[], metavar="SOURCE=SHARE", help="as in train_tokenizer")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup_steps", type=int, default=100)
    parser.add_argument("--bypass_share", type=float, default=0.1, help="share of the run without the quantizer")
    parser.add_argument(
        "--variants", type=int, default=1, help="grids a training mesh: itself, then stretched copies"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network before training starts")
    parser.add_argument("--max_objects", type=int, help="of each split, drawn at random (default: all)")
    parser.add_argument("--grids", type=Path, metavar="NPZ", help="write the rebuilt grids here and score no meshes")
    parser.add_argument(
        "--score", type=Path, metavar="NPZ", help="train nothing: score such grids and add to the result"
    )
    parser.add_argument("--samples", type=int, default=30_000, help="points on each surface")
    parser.add_argument("--workers", type=int, default=1, help="processes that read meshes and score them")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def chosen(entries: list[PackEntry], most: int | None) -> Tensor:
    """Return the places of at most so many entries, the same each time, in order."""
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(0))
    return order[:most].sort().values


def training_grids(
    pack: MeshPack, options: argparse.Namespace, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the bit-packed grids of the split `train`, how often each is drawn, and what was made in which time."""
    start = time.perf_counter()
    everything = pack.select("train")
    entries = [everything[i] for i in chosen(everything, options.max_objects).tolist()]
    shares = {name: float(share) for name, share in (part.split("=", 1) for part in options.share)}
    weights = source_weights([entry.source for entry in entries], shares)
    bits, numbers = occupancy_grids(
        MeshVariants(pack=pack, entries=entries, variants=options.variants, seed=options.seed),
        device,
        options.workers,
        "training grids",
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    summary = {
        "grids": len(bits),
        "seconds": round(time.perf_counter() - start, 1),
        "occupied_voxels_median": float(unpacked(bits[:256]).flatten(1).sum(1).float().median()),
    }
    return bits, weights[numbers % len(entries)], summary


def main() -> None:
    """Make grids, train, evaluate, write."""
    options = make_parser().parse_args()
    setup_logging()
    if options.score is not None:
        finish(options, Rebuilt.load(options.score))
        return
    device = resolve_device(options.device)
    seed_everything(options.seed)
    torch.backends.cudnn.benchmark = True
    pack = MeshPack(options.pack)
    grids, weights, summary = training_grids(pack, options, device)
    val = pack.select("val")[: min(64, options.max_objects or 64)]
    held_out, _ = occupancy_grids(MeshVariants(pack=pack, entries=val), device, 1, "held-out grids")
    model = DenseOccupancyVQVAE(config_for(options.parameters)).to(device, memory_format=torch.channels_last_3d)
    trainer = RivalTrainer(model.train(), grids, weights, held_out, options)
    trainer.run()
    result: dict[str, Any] = {
        "split": options.split,
        "parameters": parameter_count(model),
        "widths": model.config.widths,
        "tokens": TOKENS,
        "token_width": CHANNELS * JOINED,
        "codes": CODES,
        "bits_an_object": TOKENS * math.ceil(math.log2(CODES)),
        "training_grids": summary,
        "training": {
            "seconds": round(trainer.seconds, 1),
            "steps": trainer.steps,
            "objects": trainer.steps * options.batch,
            "objects_per_second": round(trainer.steps * options.batch / trainer.seconds, 1),
            "codebook_placed": trainer.quantizing,
            "curve": trainer.curve,
        },
    }
    if device.type == "cuda":
        result["training"]["peak_gigabytes"] = torch.cuda.max_memory_allocated(device) / 1e9
    write_run(options, result, RUN)  # a failure below leaves at least this
    entries = pack.select(options.split)
    places = chosen(entries, options.max_objects)
    meshes = MeshVariants(pack=pack, entries=[entries[i] for i in places.tolist()])
    bits, numbers = occupancy_grids(meshes, device, options.workers, f"{options.split} grids")
    measured, rebuilt = rebuild(trainer.averaged(), bits, places[numbers])
    print(measured, flush=True)
    print(write_run(options, {**result, **measured}, RUN))
    if options.grids is not None:
        rebuilt.save(options.grids)
    else:
        finish(options, rebuilt)


def finish(options: argparse.Namespace, rebuilt: Rebuilt) -> None:
    """Score rebuilt grids and add the scores to the result that has been written."""
    file, name = results_file(options), run_name(options, RUN)
    before = read_runs(file)[name]
    lines = scores(
        rebuilt.jobs(),
        len(rebuilt.numbers),
        pack=options.pack,
        split=before["split"],
        samples=options.samples,
        workers=options.workers,
    )
    write_json_lines(file.with_name(OBJECTS.format(name)), lines)
    table = table_of(lines)
    print_table(table)
    # Command, commit and hardware stay those of the training.
    print(write_run(options, {**before, "samples": options.samples, "table": table}, RUN))


if __name__ == "__main__":
    main()
