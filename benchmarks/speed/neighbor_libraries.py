"""Which library finds nearest neighbors for `vae-qwen3vl search`: usearch, faiss, and none, on the same rows.

python benchmarks/speed/neighbor_libraries.py --pack ../shared/data/shapes --rows 10000 100000 1000000

Rows are as an index's are, of length 1 and 384 wide: mixtures of two captions' embeddings of the pack with noise of a
third of their length; queries are made alike and are no rows. Exact neighbors are computed in float32; recall is the
share of the first ten of those that a library returns. Each library runs in a process of its own, so that its memory
is its own: what the process holds after building beyond what it held before, rows in float32 aside. Every index is
written to a file and opened again for the queries, one query a call, on one thread; where other work runs beside it,
times of the CPU are the ones to compare. faiss is no dependency of this project: `pip install faiss-cpu`.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sdf_vqvae.data.captions import captions_of
from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.language.sentence_encoder import embed, load_sentence_encoder

Array = npt.NDArray[np.float32]
TOP = 10
_NOISE = 1 / 3
_PIECE = 50_000


def caption_vectors(pack: MeshPack) -> Array:
    """Return the embeddings `[C, E]` of the pack's first captions, each once."""
    texts = [next(iter(captions_of(entry.record.get("captions"))), "") for entry in pack.entries]
    return embed(load_sentence_encoder(), sorted(set(texts) - {""})).numpy()


def mixtures(captions: Array, count: int, seed: int) -> Array:
    """Return `count` rows of length 1, made of two captions each and noise. `[count, E]`"""
    random = np.random.default_rng(seed)
    rows = np.empty((count, captions.shape[1]), np.float32)
    for start in range(0, count, _PIECE):
        piece = rows[start : start + _PIECE]
        first, second = random.integers(len(captions), size=(2, len(piece)))
        share = random.random((len(piece), 1), dtype=np.float32)
        noise = random.standard_normal(piece.shape, dtype=np.float32) * (_NOISE / captions.shape[1] ** 0.5)
        piece[:] = share * captions[first] + (1 - share) * captions[second] + noise
        piece /= np.linalg.norm(piece, axis=1, keepdims=True)
    return rows


def exact(rows: Array, queries: Array) -> npt.NDArray[np.int64]:
    """Return the numbers of each query's nearest rows. `[Q, TOP]`"""
    scores, numbers = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), _PIECE):
        scores = np.concatenate([scores, queries @ rows[start : start + _PIECE].T], axis=1)
        numbers = np.concatenate(
            [numbers, np.tile(np.arange(start, min(start + _PIECE, len(rows))), (len(queries), 1))], axis=1
        )
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        scores, numbers = np.take_along_axis(scores, best, 1), np.take_along_axis(numbers, best, 1)
    return numbers


Search = Callable[[Array], npt.NDArray[np.int64]]
"""One query `[E]` -> the numbers of its nearest rows."""


def plain_numpy(rows: Array, folder: Path, threads: int) -> Callable[[], Search]:
    """A product with all rows in float16, read from a file in pieces."""
    np.save(folder / "rows.npy", rows.astype(np.float16))

    def open_again() -> Search:
        there = np.load(folder / "rows.npy", mmap_mode="r")

        def search(query: Array) -> npt.NDArray[np.int64]:
            pieces = [there[start : start + 8192].astype(np.float32) @ query for start in range(0, len(there), 8192)]
            scores = np.concatenate(pieces)
            best = np.argpartition(-scores, TOP)[:TOP]
            return best[np.argsort(-scores[best])]

        return search

    return open_again


def usearch_exact(rows: Array, folder: Path, threads: int) -> Callable[[], Search]:
    """Usearch's search over all rows in float16, read from a file."""
    np.save(folder / "rows.npy", rows.astype(np.float16))

    def open_again() -> Search:
        from usearch.index import MetricKind, search

        there = np.load(folder / "rows.npy", mmap_mode="r")
        return lambda query: search(there, query.astype(np.float16), TOP, MetricKind.IP, exact=True, threads=1).keys

    return open_again


def usearch_graph(dtype: str, connectivity: int, add: int, look: int) -> Callable[..., Callable[[], Search]]:
    """Usearch's HNSW graph, mapped from its file."""

    def build(rows: Array, folder: Path, threads: int) -> Callable[[], Search]:
        from usearch.index import Index

        about: dict[str, Any] = {"ndim": rows.shape[1], "metric": "ip", "dtype": dtype}
        index = Index(**about, connectivity=connectivity, expansion_add=add, expansion_search=look)
        for start in range(0, len(rows), _PIECE):
            stop = min(start + _PIECE, len(rows))
            index.add(np.arange(start, stop, dtype=np.uint64), rows[start:stop], threads=threads)
        index.save(str(folder / "index.usearch"))

        def open_again() -> Search:
            there = Index.restore(str(folder / "index.usearch"), view=True)
            there.expansion_search = look
            return lambda query: there.search(query, TOP, threads=1).keys

        build.kept = index  # type: ignore[attr-defined]  # its memory is measured
        return open_again

    return build


def faiss_index(factory: str, **parameters: int) -> Callable[..., Callable[[], Search]]:
    """An index of faiss by the name of its factory."""

    def build(rows: Array, folder: Path, threads: int) -> Callable[[], Search]:
        import faiss

        faiss.omp_set_num_threads(threads)
        name = factory.format(lists=int(4 * len(rows) ** 0.5))
        index = faiss.index_factory(rows.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        space = faiss.ParameterSpace()
        if "efConstruction" in parameters:
            index.hnsw.efConstruction = parameters["efConstruction"]
        if not index.is_trained:
            index.train(rows[np.random.default_rng(0).permutation(len(rows))[: 64 * int(4 * len(rows) ** 0.5)]])
        for start in range(0, len(rows), _PIECE):
            index.add(rows[start : start + _PIECE])
        faiss.write_index(index, str(folder / "index.faiss"))

        def open_again() -> Search:
            faiss.omp_set_num_threads(1)
            there = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
            for key, value in parameters.items():
                if key != "efConstruction":
                    space.set_index_parameter(there, key, value)
            return lambda query: there.search(query[None], TOP)[1][0]

        build.kept = index  # type: ignore[attr-defined]
        return open_again

    return build


WAYS: dict[str, Callable[..., Callable[[], Search]]] = {
    "NumPy, all rows, float16": plain_numpy,
    "usearch, all rows, float16": usearch_exact,
    "usearch HNSW 16/128/64, float16": usearch_graph("f16", 16, 128, 64),
    "usearch HNSW 16/128/128, float16": usearch_graph("f16", 16, 128, 128),
    "usearch HNSW 16/128/128, int8": usearch_graph("i8", 16, 128, 128),
    "faiss HNSW 16/128/64, float16": faiss_index("HNSW16_SQfp16", efConstruction=128, efSearch=64),
    "faiss HNSW 16/128/128, float16": faiss_index("HNSW16_SQfp16", efConstruction=128, efSearch=128),
    "faiss IVF, 32 lists read, int8": faiss_index("IVF{lists},SQ8", nprobe=32),
    "faiss, all rows, float16": faiss_index("SQfp16"),
}


def _held() -> int:
    """Return the bytes that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(
    way: str, rows_file: str, queries: Array, right: npt.NDArray[np.int64], threads: int, answer: Any
) -> None:
    """Build, write, open and ask; put the numbers into the queue `answer`."""
    rows = np.load(rows_file)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, start, cpu = _held(), time.perf_counter(), time.process_time()
        open_again = WAYS[way](rows, folder, threads)
        seconds, cpu_seconds, held = time.perf_counter() - start, time.process_time() - cpu, _held() - before
        size = sum(file.stat().st_size for file in folder.iterdir())
        start = time.perf_counter()
        search = open_again()
        search(queries[0])
        first = time.perf_counter() - start
        hits, times, cpu_times = 0, [], []
        for query, own in zip(queries, right, strict=True):
            start, cpu = time.perf_counter(), time.process_time()
            found = search(query)
            times.append(time.perf_counter() - start)
            cpu_times.append(time.process_time() - cpu)
            hits += len(set(found.tolist()) & set(own.tolist()))
    answer.put(
        {
            "build_s": round(seconds, 2),
            "build_cpu_s": round(cpu_seconds, 2),
            "held_mb": round(max(0, held) / 2**20),
            "file_mb": round(size / 2**20),
            "open_and_first_query_ms": round(first * 1000, 2),
            "query_ms": round(statistics.median(times) * 1000, 3),
            "query_cpu_ms": round(statistics.median(cpu_times) * 1000, 3),
            "recall_at_10": round(hits / right.size, 4),
        }
    )


def main() -> None:
    """Measure every way at every size and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2, help="threads that build (2)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    captions = caption_vectors(MeshPack(options.pack))
    queries = mixtures(captions, options.queries, 1)
    process = multiprocessing.get_context("spawn")
    for count in options.rows:
        rows = mixtures(captions, count, 0)
        right = exact(rows, queries)
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/rows.npy"
            np.save(file, rows)
            del rows
            for way in options.ways:
                answer = process.Queue()
                worker = process.Process(target=measure, args=(way, file, queries, right, options.threads, answer))
                worker.start()
                found[way] = answer.get()
                worker.join()
                print(f"{count:>9,}  {way:<34}  {found[way]}")
        numbers = {"rows": count, "width": captions.shape[1], "queries": options.queries, "threads": options.threads}
        write_run(options, {**numbers, "ways": found}, f"{count} rows")


if __name__ == "__main__":
    main()
