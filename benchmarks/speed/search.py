"""How long an index of cached codes takes to make, and a query of indexes of many sizes.

python benchmarks/speed/search.py --codes CODES --objects 10000 --rows 10000 100000 1000000

CODES is a folder of codes; its objects are repeated under other names until there are as many as asked for, and
indexed; then the same command once more, with nothing to do. Indexes of more rows are filled with random vectors (a
query compares every row, whatever is in it), and asked by words (`embed`: the sentence model, `look`: all rows, the
ten nearest with their words), each query a call in one process on one thread.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdf_vqvae.codes.cache import CodeCache
from sdf_vqvae.codes.folder import CODEBOOK, CodeFolder
from sdf_vqvae.codes.settings import EncodeSettings
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.language.sentence_encoder import embed, load_sentence_encoder
from vae_qwen3vl.search import ShapeIndex, store
from vae_qwen3vl.search.indexing import index_dataset
from vae_qwen3vl.search.vectors import shipped_search_weights

_A_SHARD, _PIECE = 2048, 20_000
QUERIES = ("a wooden chair", "a rocket", "plate with two studs", "the left kidney", "a tree without leaves")


def repeated(codes: CodeFolder, objects: int, folder: Path) -> None:
    """Write a folder of codes of so many objects, those of `codes` again and again."""
    folder.mkdir()
    shutil.copy(codes.folder / CODEBOOK, folder / CODEBOOK)
    codes.manifest.save(folder)
    names = list(codes)
    for number, start in enumerate(range(0, objects, _A_SHARD)):
        parts = [codes[names[i % len(names)]] for i in range(start, min(start + _A_SHARD, objects))]
        CodeCache(
            codes=torch.cat([part[0] for part in parts]),
            coords=torch.cat([part[1] for part in parts]),
            splits=torch.tensor([0, *(len(part[0]) for part in parts)]).cumsum(0),
            ids=tuple(f"object{start + i}" for i in range(len(parts))),
            failures={},
            vae_hash=codes.manifest.vae_hash,
        ).save(folder / f"codes-{number:06d}.safetensors")
    rows = "".join(f'object{i},a name of it,"[""a caption of object {i}""]"\n' for i in range(objects))
    (folder / "metadata.csv").write_text("sha256,name,captions\n" + rows)


def make(codes: Path, folder: Path) -> dict[str, float]:
    """Make or update an index, and return its times."""
    wall, cpu = time.perf_counter(), time.process_time()
    report = index_dataset(EncodeSettings(source=codes, output=folder), *shipped_search_weights())
    return {
        "objects": report.objects,
        "added": report.added,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def filled(like: Path, rows: int, folder: Path) -> None:
    """Write an index of random vectors that is otherwise like another one."""
    folder.mkdir()
    for name in (store.MANIFEST, store.PROJECTOR, store.HEAD, store.CODEBOOK):
        shutil.copy(like / name, folder / name)
    width, random = store.IndexManifest.load(folder).width, np.random.default_rng(0)
    with store.IndexWriter(folder, width) as writer:
        for start in range(0, rows, _PIECE):
            count = min(_PIECE, rows - start)
            vectors = random.standard_normal((count, width), dtype=np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            writer.put([f"object{start + i}" for i in range(count)], "none", vectors.astype(np.float16))


def ask(folder: Path, repeats: int) -> dict[str, Any]:
    """Return what queries of an index cost, in milliseconds."""
    encoder = load_sentence_encoder()
    start = time.perf_counter()
    index = ShapeIndex.open(folder)
    opened = time.perf_counter() - start
    embeds, looks, cpu = [], [], []
    for text in QUERIES * repeats:
        start = time.perf_counter()
        vector = embed(encoder, [text])[0]
        embedded, before = time.perf_counter(), time.process_time()
        index.nearest(vector, 10)
        embeds.append(embedded - start)
        looks.append(time.perf_counter() - embedded)
        cpu.append(time.process_time() - before)
    return {
        "rows": len(index),
        "open_ms": round(opened * 1000, 2),
        "embed_ms": round(statistics.median(embeds) * 1000, 2),
        "look_ms": round(statistics.median(looks) * 1000, 2),
        "look_cpu_ms": round(statistics.median(cpu) * 1000, 2),
        "index_mb": round(sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) / 2**20, 1),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--codes", type=Path, required=True, help="folder of codes")
    parser.add_argument("--objects", type=int, default=10_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codes = CodeFolder(options.codes)
    sizes = [len(codes[name][0]) for name in codes]
    result: dict[str, Any] = {
        "distinct_objects": len(codes),
        "codes_an_object": round(statistics.mean(sizes)),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repeated(codes, options.objects, folder / "codes")
        result["index"] = make(folder / "codes", folder / "index")
        result["again"] = make(folder / "codes", folder / "index")
        print(result)
        result["queries"] = []
        for rows in options.rows:
            filled(folder / "index", rows, folder / f"index{rows}")
            result["queries"].append(ask(folder / f"index{rows}", options.repeats))
            print(result["queries"][-1])
    print(write_run(options, result))


if __name__ == "__main__":
    main()
