"""Latents before quantization, in the form of cached codes, beside the codes of the same objects.

    python benchmarks/quality/continuous_latents.py --codes train_codes --pack PACK --count 4000 -o latents
    python benchmarks/quality/alignment_choices.py --codes train_codes --compile_layers --latents latents

What training would see without a codebook. Of the `train` objects that have a mesh in the pack, so many are drawn
with seed 0, and those of `val` are taken that come from the same sources: encoded again from their meshes. The folder
`latents` has a codebook with an entry for every latent cell, so training and evaluation read it as they read codes;
only the vectors are the encoder's own. The folder `codes` has the cached codes of the same objects. The records
(conversations) are copied into both.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.encoding import EncodeWorker, objects_of
from sdf_vqvae.codes.folder import CODEBOOK, CodeFolder
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.data.objects import Place
from sdf_vqvae.data.tables import ID_COLUMN, METADATA, write_table
from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf
from sdf_vqvae.utils.archives import write_safetensors
from sdf_vqvae.utils.runtime import resolve_device

_AT_A_TIME = 16


def chosen_rows(codes: CodeFolder, there: Collection[str], count: int) -> list[dict[str, str]]:
    """Return the rows of captioned objects that are `there`: so many of `train`, and `val` of their sources."""
    rows = [row for row in codes.table() if row[ID_COLUMN] in codes and captions_of_row(row)]
    rows = list({row[ID_COLUMN]: row for row in rows if row[ID_COLUMN] in there}.values())
    train = [row for row in rows if row["split"] == "train"]
    drawn = random.Random(0).sample(train, min(count, len(train)))
    sources = {row.get("source") for row in drawn}
    return drawn + [row for row in rows if row["split"] == "val" and row.get("source") in sources]


def latents_of(worker: EncodeWorker, jobs: Sequence[tuple[str, Place]]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield id, latents float32 `[M, D]` and coordinates int16 `[M, 3]` of each object that can be encoded."""
    for start in tqdm(range(0, len(jobs), _AT_A_TIME), unit="group", disable=None):
        names, places = zip(*jobs[start : start + _AT_A_TIME], strict=True)
        for name, field in zip(names, worker.fields_of(places), strict=True):
            if not isinstance(field, SparseSDF):
                print(f"{name} is left out: {field}")
                continue
            with torch.no_grad():
                latent = worker.vae.encode_latent(collate_sparse_sdf([field]))
            yield name, latent.feats.float().cpu(), latent.coords[:, 1:].to("cpu", torch.int16)


def main() -> None:
    """Encode and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True, help="cached codes of the pack")
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--count", type=int, default=4000, help="training objects (default %(default)s)")
    parser.add_argument("--device", help="default: CUDA where present")
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder to make, of both; must be new")
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    start = time.perf_counter()
    codes = CodeFolder(options.codes)
    settings = EncodeSettings(source=options.pack, output=options.output)
    worker = EncodeWorker(str(resolve_device(options.device)), settings=settings)
    if worker.vae.fingerprint() != codes.manifest.vae_hash:
        raise SystemExit("the codes are of another tokenizer than the shipped one")
    places = objects_of(settings, worker.vae).places
    rows = chosen_rows(codes, places, options.count)
    encoded = list(latents_of(worker, [(row[ID_COLUMN], places[row[ID_COLUMN]]) for row in rows]))
    names, latents, coords = zip(*encoded, strict=True)
    table = torch.cat(latents)
    encoded_rows = [row for row in rows if row[ID_COLUMN] in names]
    numbers = torch.arange(len(table), dtype=torch.int32)
    write(options.output / "latents", codes, encoded_rows, numbers, coords, names, table)
    indices, cells = zip(*(codes[name] for name in names), strict=True)
    quantized = torch.cat(indices).int()
    write(options.output / "codes", codes, encoded_rows, quantized, [xyz.short() for xyz in cells], names)
    print(f"{len(names)} objects, {len(table):,} latents, {time.perf_counter() - start:.0f} s: {options.output}")


def write(
    folder: Path,
    source: CodeFolder,
    rows: list[dict[str, str]],
    numbers: Tensor,
    coords: Sequence[Tensor],
    names: tuple[str, ...],
    table: Tensor | None = None,
) -> None:
    """Write a folder of codes: numbers `[T]` in `table [K, D]`, coordinates of each object; records of the source.

    Without a table the numbers are those of the source's codebook.
    """
    folder.mkdir()
    codebook = source.codebook if table is None else table
    manifest = dataclasses.replace(source.manifest, codebook_size=len(codebook))
    CodeCache(
        codes=numbers,
        coords=torch.cat(list(coords)),
        splits=torch.tensor([0, *map(len, coords)]).cumsum(0),
        ids=names,
        failures={},
        vae_hash=manifest.vae_hash,
    ).save(folder / "codes-000000.safetensors")
    write_safetensors(folder / CODEBOOK, {"codebook": codebook}, {})
    write_table(folder / METADATA, rows)
    for file in source.folder.glob("conversations*.jsonl"):
        shutil.copy(file, folder)
    manifest.save(folder)


if __name__ == "__main__":
    main()
