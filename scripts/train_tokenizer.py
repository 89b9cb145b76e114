"""Train a tokenizer on a pack of meshes.

    python scripts/train_tokenizer.py --pack meshes/ --vae_config configs/vae/sdf_vqvae_256.json \
        --output_dir outputs/tokenizer --max_seconds 480 --share ldraw=0.25

Writes `model.safetensors`, `config.json` and `log.jsonl`. Meshes are voxelized on the GPU as they are drawn.
This is the minimal trainer: one GPU, no resume, no stages. Configs with `dataset` and `trainer` sections, as the
original system's, are refused.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sdf_vqvae.config import read_vae_document
from sdf_vqvae.data import FieldStream, MeshPack, source_weights
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.runtime import resolve_device, seed_everything, setup_logging
from sdf_vqvae.training import TokenizerTrainer, TrainingOptions, batches_by_voxels


def make_parser() -> argparse.ArgumentParser:
    """Build the parser; training flags are the fields of `TrainingOptions`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--vae_config", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--echo", type=int, default=4, help="draws of an object before it is voxelized anew")
    parser.add_argument("--max_faces", type=int, default=8000, help="leave out meshes with more faces")
    parser.add_argument("--max_voxels", type=int, default=1_500_000, help="leave out objects with more voxels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="SOURCE=SHARE",
        help="give a source this share of the draws, e.g. ldraw=0.3; the rest is drawn evenly",
    )
    for field in dataclasses.fields(TrainingOptions):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the training."""
    options = make_parser().parse_args(argv)
    setup_logging()
    seed_everything(options.seed)
    device = resolve_device()
    document = read_vae_document(options.vae_config)
    if document.dataset is not None or document.trainer is not None:
        raise SystemExit(
            f"error: {options.vae_config} has dataset and trainer sections, which this trainer does not follow: it "
            "draws from a mesh pack with the options above; give a config without them"
        )
    config = document.model
    pack = MeshPack(options.pack)
    entries = [e for e in pack.select("train") if e.record["faces"] <= options.max_faces]
    shares = {name: float(share) for name, share in (s.split("=") for s in options.share)}
    stream = FieldStream(
        pack,
        entries,
        source_weights(entries, shares),
        resolution=config.data_resolution,
        band=config.field.band or 3.0,
        seed=options.seed,
        device=str(device),
        echo=options.echo,
        max_voxels=options.max_voxels,
    )
    vae = SparseSDFVQVAE(config).to(device)
    settings = {f.name: getattr(options, f.name) for f in dataclasses.fields(TrainingOptions)}
    trainer = TokenizerTrainer(vae, TrainingOptions(**settings), options.output_dir)
    trainer.run(batches_by_voxels(iter(stream), options.voxels_per_batch, device))


if __name__ == "__main__":
    main()
