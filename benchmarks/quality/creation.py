"""What a generator makes: does it fit the words, is it a shape, is it new, what does it cost.

    python benchmarks/quality/creation.py --generator my_generator --codes codes --train_codes codes --count 64

Captions are drawn with --seed from the split, one an object, and one object is made of each. Beside what is made
stand four rows: `real`, the objects the captions are of (ceiling); `shuffled`, what is made, against another caption
of the same draw (floor); `no_words`, made without any; and the rival, `nearest_by_words`: the object of training
whose caption lies nearest to the words in the sentence model.

- `r_precision_1`, `_3`: how often an object's own caption is among the first 1 or 3 of `--pool` captions (its own and
  others of the draw) by the matcher's cosine (Guo et al. 2022, for motions). The matcher is the shipped search head.
  It learned on the split train with the same sentence model that the generator reads, so it may see as the generator
  does; an independent one, of another seed and text model, is named by --matcher_head and --matcher_projector.
- `coverage`, `mmd`, `one_nna`: with D the Chamfer distance of --points points (mean of squared distances, both ways)
  between made (G) and real (R) objects: the share of R that is the nearest one to some of G; the mean over R of the
  least D to G; and the share of G and R whose nearest other object in both is of their own set (Achlioptas et al.
  2018; Yang et al. 2019). 0.5 is best for the last.
- `nearest_training`: the least D to an object of training, in the median, for what is made and for `real`; and the
  share of what is made that lies nearer than the median of `real`: copies show here.
- `closed`: the share of meshes that are closed manifolds (each edge in two faces), of all draws; `one_part`: those
  that are connected; `failed`: draws without a surface.
- `seconds`: a mesh, from words, after the models are loaded.

Objects of training, for the rival and for the nearest one, are at most --train_count, drawn with --seed.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import trimesh
from scipy.spatial import cKDTree
from torch import Tensor

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.pipeline import decode_codes, surface_of
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.progress import follow
from sdf_vqvae.utils.runtime import setup_logging
from vae_qwen3vl.creation.config import Sampling
from vae_qwen3vl.creation.making import Made, ShapeMaker
from vae_qwen3vl.data.datasets_3d import CachedCodesDataset
from vae_qwen3vl.language.sentence_encoder import embed, load_sentence_encoder
from vae_qwen3vl.search.vectors import ShapeVectors, shipped_search_weights

logger = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]
Shape = tuple[Tensor, Tensor]
"""Codes `[M]` and cells `[M, 3]`."""


def r_precision(likeness: Array, first: int, pool: int, seed: int = 0) -> float:
    """Return how often an object's own caption is among the `first` of `pool` captions.

    Args:
        likeness: `[O, O]`, of object i and caption j; caption i is object i's own.
        first: places that count; a tie counts as half a place before it.
        pool: captions that compete, the own one among them; at most O.
        seed: of the draw of the others.
    """
    count, random = len(likeness), np.random.default_rng(seed)
    hits = []
    for row in range(count):
        others = random.permutation(np.delete(np.arange(count), row))[: pool - 1]
        own, rest = likeness[row, row], likeness[row, others]
        hits.append(float((rest > own).sum() + (rest == own).sum() / 2 < first))
    return statistics.mean(hits)


def chamfer(first: Array, second: Array) -> float:
    """Return the mean squared distance of points `[P, 3]` to the nearest ones of `[Q, 3]`, and back, added."""
    there, _ = cKDTree(second).query(first)
    back, _ = cKDTree(first).query(second)
    return float((there**2).mean() + (back**2).mean())


def distances(first: Sequence[Array], second: Sequence[Array]) -> Array:
    """Return the Chamfer distance of each of one list to each of the other. `[A, B]`"""
    return np.array([[chamfer(a, b) for b in second] for a in first])


def set_measures(between: Array, made: Array, real: Array) -> dict[str, float]:
    """Return coverage, minimum matching distance and 1-nearest-neighbour accuracy.

    Args:
        between: distances `[G, R]` of made and real objects.
        made: `[G, G]`.
        real: `[R, R]`.
    """
    count = len(made)
    every = np.block([[made, between], [between.T, real]])
    np.fill_diagonal(every, np.inf)
    own = (every.argmin(1) < count) == (np.arange(len(every)) < count)
    return {
        "coverage": len(set(between.argmin(1).tolist())) / len(real),
        "mmd": float(between.min(0).mean()),
        "one_nna": float(own.mean()),
    }


def points_of(mesh: trimesh.Trimesh, count: int, seed: int) -> Array:
    """Return points drawn evenly on a surface, moved and scaled to a box of longest side 1 round the origin."""
    points = np.asarray(trimesh.sample.sample_surface(mesh, count, seed=seed)[0], dtype=np.float64)
    low, high = mesh.bounds
    return (points - (low + high) / 2) / max(float((high - low).max()), 1e-12)


def main() -> None:
    """Print and record the numbers."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--generator", type=Path, required=True, help="run folder of train-generator")
    parser.add_argument("--codes", type=Path, required=True, help="folder of codes with the captions to ask for")
    parser.add_argument("--train_codes", type=Path, required=True, help="folder of codes that was trained on")
    parser.add_argument("--split", default="val", help="of --codes (default %(default)s); choices are made on val")
    parser.add_argument("--count", type=int, default=64, help="objects (default %(default)s)")
    parser.add_argument("--pool", type=int, default=32, help="captions that compete (default %(default)s)")
    parser.add_argument("--train_count", type=int, default=500, help="objects of training (default %(default)s)")
    parser.add_argument("--points", type=int, default=2048, help="points on a surface (default %(default)s)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae_config")
    parser.add_argument("--vae_ckpt")
    parser.add_argument("--matcher_projector", type=Path)
    parser.add_argument("--matcher_head", type=Path)
    parser.add_argument("--no_matcher", action="store_true", help="leave the fit to the words out")
    parser.add_argument("--device")
    options = parser.parse_args()
    setup_logging()
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    maker = ShapeMaker.load(options.generator, vae)
    asked, captions = _asked(CodeFolder(options.codes), options.split, options.count, options.seed)
    learned, learned_captions = _asked(CodeFolder(options.train_codes), None, options.train_count, options.seed)
    sampling = Sampling(steps=options.steps, guidance=options.guidance)
    made, seconds, failed = _made(maker, captions, sampling, options.seed)
    bare, _, _ = _made(maker, [""] * len(captions), sampling, options.seed)
    own, theirs = (embed(maker.encoder, texts) for texts in (captions, learned_captions))
    rival = [learned[number] for number in (own @ theirs.T).argmax(1).tolist()]
    there = [number for number, thing in enumerate(made) if thing is not None]
    if len(there) < 2:
        raise ValueError(f"{len(there)} of {len(made)} draws have a surface: nothing can be compared")
    meshes = {
        "made": [made[number].mesh for number in there],
        "real": [_mesh(vae, asked[number]) for number in there],
        "training": [_mesh(vae, shape) for shape in follow(learned, "objects of training")],
    }
    points = {
        name: [points_of(mesh, options.points, options.seed) for mesh in of_row] for name, of_row in meshes.items()
    }
    between = distances(points["made"], points["real"])
    sets = set_measures(between, distances(points["made"], points["made"]), distances(points["real"], points["real"]))
    nearest = {name: distances(points[name], points["training"]).min(1) for name in ("made", "real")}
    usual = float(np.median(nearest["real"]))
    numbers: dict[str, Any] = {
        "split": options.split,
        "objects": len(captions),
        "steps": options.steps,
        "guidance": options.guidance,
        "failed": failed,
        "closed": sum(bool(mesh.is_watertight) for mesh in meshes["made"]) / (len(meshes["made"]) + failed),
        "one_part": statistics.mean(float(mesh.body_count == 1) for mesh in meshes["made"]),
        **sets,
        "nearest_training": {name: float(np.median(values)) for name, values in nearest.items()},
        "nearer_than_usual": float((nearest["made"] < usual).mean()),
        "nearest_training_histogram": np.histogram(
            nearest["made"] / max(usual, 1e-12), [0, 0.25, 0.5, 1, 2, 4, np.inf]
        )[0].tolist(),
        "seconds": statistics.median(seconds),
    }
    if not options.no_matcher:
        files = options.matcher_projector, options.matcher_head
        numbers["fit"] = _fit(
            files if all(files) else shipped_search_weights(),
            vae,
            captions,
            {
                "real": asked,
                "nearest_by_words": rival,
                "made": [_shape(thing) for thing in made],
                "no_words": [_shape(thing) for thing in bare],
            },
            pool=min(options.pool, len(captions)),
        )
    for name, value in numbers.items():
        print(f"{name:28}{value}")
    write_run(options, numbers)


def _asked(folder: CodeFolder, split: str | None, count: int, seed: int) -> tuple[list[Shape], list[str]]:
    """Return objects drawn from a folder, and a caption of each."""
    splits = {row.get("split") for row in folder.table()}
    chosen = split if split in splits else ("train" if split is None and "train" in splits else None)
    data = CachedCodesDataset(folder, split=chosen, caption_share=1.0, vectors=False).for_validation()
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    items = [data[number] for number in order]
    return [(item["codes"], item["coords"]) for item in items], [item["caption"] for item in items]


def _made(
    maker: ShapeMaker, captions: Sequence[str], sampling: Sampling, seed: int
) -> tuple[list[Any], list[float], int]:
    """Return an object of each caption, None where none was made; seconds of each; draws that failed."""
    made: list[Made | None] = []
    seconds, failed = [], 0
    for number, words in enumerate(follow(captions, "objects made")):
        start, first = time.perf_counter(), seed + 1000 * number
        try:
            thing = next(iter(maker.make(words, seed=first, sampling=sampling)))
        except ValueError as error:
            logger.warning("%r: %s", words, error)
            made.append(None)
            failed += 1
            continue
        seconds.append(time.perf_counter() - start)
        failed += thing.seed - first
        made.append(thing)
    return made, seconds, failed


def _shape(thing: Made | None) -> Shape | None:
    return None if thing is None else (thing.codes.codes.long(), thing.codes.coords)


def _mesh(vae: SparseSDFVQVAE, shape: Shape) -> trimesh.Trimesh:
    from sdf_vqvae.codes.folder import Manifest

    codes = Manifest.of(vae).shape(shape[0].int(), shape[1])
    return surface_of(vae, decode_codes(vae, codes), codes)


def _fit(
    files: tuple[Path, Path],
    vae: SparseSDFVQVAE,
    captions: Sequence[str],
    rows: dict[str, Any],
    *,
    pool: int,
) -> dict[str, dict[str, float]]:
    """Return R-precision of each row; an object that was not made is like no caption."""
    matcher = ShapeVectors.load(*files, vae.vq.embeddings.weight.detach().cpu())
    texts = embed(load_sentence_encoder(matcher.head.sentence_model), captions)
    fit: dict[str, dict[str, float]] = {}
    for name, shapes in rows.items():
        vectors = torch.zeros(len(shapes), texts.shape[1])
        there = [number for number, shape in enumerate(shapes) if shape is not None]
        if there:
            vectors[there] = matcher([shapes[n][0] for n in there], [shapes[n][1] for n in there]).cpu()
        likeness = (vectors @ texts.T).double().numpy()
        for called, table in ((name, likeness), ("shuffled", np.roll(likeness, 1, axis=1))):
            if called == name or name == "made":
                fit[called] = {f"r_precision_{first}": r_precision(table, first, pool) for first in (1, 3)}
    return fit


if __name__ == "__main__":
    main()
