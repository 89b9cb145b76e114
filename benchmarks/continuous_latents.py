"""Latents before quantization, in the form of cached codes: what training would see without a codebook.

    python benchmarks/continuous_latents.py --codes train_codes --pack ../shared/data/shapes --count 2000 -o latents
    python benchmarks/alignment_choices.py --codes train_codes --compile_layers --latents latents

The folder holds the first so many `train` objects of the cached codes and all of `val`, encoded again from their
meshes. Its codebook has an entry for every latent cell of the dataset, so training and evaluation read it as they
read codes; only the vectors are the encoder's own. The records of the cached codes (conversations) are copied.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sdf_vqvae.archives import write_safetensors
from sdf_vqvae.field_folder import ID_COLUMN, METADATA, write_table
from sdf_vqvae.runtime import resolve_device
from sdf_vqvae.sparse_sdf import SparseSDF, collate_sparse_sdf
from vae_qwen3vl.captions import captions_in
from vae_qwen3vl.code_cache import CodeCache
from vae_qwen3vl.code_folder import CODEBOOK, CodeFolder
from vae_qwen3vl.encoding import EncodeSettings, EncodeWorker, Place, objects_of

_AT_A_TIME = 16


def chosen_rows(codes: CodeFolder, count: int) -> list[dict[str, str]]:
    """Return the rows of the first so many captioned `train` objects and of all of `val`."""
    rows = [row for row in codes.table() if row[ID_COLUMN] in codes and captions_in(row["captions"])]
    train = [row for row in rows if row["split"] == "train"][:count]
    return train + [row for row in rows if row["split"] == "val"]


def latents_of(worker: EncodeWorker, places: Sequence[Place]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield id, latents float32 `[M, D]` and coordinates int16 `[M, 3]` of each object that can be encoded."""
    for start in tqdm(range(0, len(places), _AT_A_TIME), unit="group", disable=None):
        group = places[start : start + _AT_A_TIME]
        for place, field in zip(group, worker.fields_of(list(group)), strict=True):
            if not isinstance(field, SparseSDF):
                print(f"{place.name} is left out: {field}")
                continue
            with torch.no_grad():
                latent = worker.vae.encode_latent(collate_sparse_sdf([field]))
            yield place.name, latent.feats.float().cpu(), latent.coords[:, 1:].to("cpu", torch.int16)


def main() -> None:
    """Encode and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True, help="cached codes of the pack")
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--count", type=int, default=2000, help="training objects (default %(default)s)")
    parser.add_argument("--device", help="default: CUDA where present")
    parser.add_argument("--output", "-o", type=Path, required=True, help="the folder to write; must be new")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    start = time.perf_counter()
    codes = CodeFolder(options.codes)
    rows = chosen_rows(codes, options.count)
    settings = EncodeSettings(source=options.pack, output=options.output)
    worker = EncodeWorker(str(resolve_device(options.device)), settings=settings)
    if worker.vae.fingerprint() != codes.manifest.vae_hash:
        raise SystemExit("the codes are of another tokenizer than the shipped one")
    places = {place.name: place for place in objects_of(settings, worker.vae)[1]}
    found = list(latents_of(worker, [places[row[ID_COLUMN]] for row in rows]))
    names, latents, coords = zip(*found, strict=True)
    sizes = torch.tensor([0, *map(len, latents)])
    table = torch.cat(latents)
    manifest = dataclasses.replace(codes.manifest, codebook_size=len(table))
    shard = CodeCache(
        codes=torch.arange(len(table), dtype=torch.int32),
        coords=torch.cat(coords),
        splits=sizes.cumsum(0),
        ids=names,
        failures={},
        vae_hash=manifest.vae_hash,
    )
    shard.save(options.output / "codes-000000.safetensors")
    write_safetensors(options.output / CODEBOOK, {"codebook": table}, {})
    write_table(options.output / METADATA, [row for row in rows if row[ID_COLUMN] in names])
    for file in options.codes.glob("conversations*.jsonl"):
        shutil.copy(file, options.output)
    manifest.save(options.output)
    print(f"{len(names)} objects, {len(table):,} latents, {time.perf_counter() - start:.0f} s: {options.output}")


if __name__ == "__main__":
    main()
