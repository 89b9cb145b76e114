"""How well a search finds: objects by their authors' words, and by copies of their shapes; beside blind controls.

python benchmarks/quality/search.py --index INDEX --pack ../shared/data/shapes --split test --copies 100

INDEX is what `vae-qwen3vl index CODES -o INDEX` made of the codes of one split. Asked are

- each object's longest caption, which nobody indexed: the rank of the object among all, and whether the first ten are
  of its category (where at least five others are);
- copies of a sample of the objects: `coarser` (corners merged on a grid of 1/48 of the longest side), `turned` (by 15
  degrees about its height) and `mirrored` (left and right exchanged), each voxelized anew;
- each object's own vector, for the categories of its ten nearest others.

Controls: `shuffled` gives each object the vector of another; `random` is a random order; `same words for all` asks
for the most frequent caption whatever the object is. Beside the head's vectors, copies and neighbors are found by how
full 8^3 boxes round the objects are (`boxes`), and neighbors by how often each code occurs (`code histogram`). Copies
for a head that reads no tokens of parts are not encoded, for it needs no codes. Ranks with equals count half of them
before it; intervals of 95 % are over objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.codes.pipeline import encode_field, field_for
from sdf_vqvae.data.captions import captions_of_row
from sdf_vqvae.data.mesh_sources import Source
from sdf_vqvae.evaluation.bootstrap import mean_interval
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.up import Up
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.progress import follow
from vae_qwen3vl.language.sentence_encoder import embed, load_sentence_encoder
from vae_qwen3vl.projector import SHAPE_BOXES
from vae_qwen3vl.search import ShapeIndex
from vae_qwen3vl.search.vectors import ShapeVectors

TOPS = (1, 5, 10)
NEAREST = 10
_FEWEST_OF_A_CATEGORY = 5
_TURN, _MERGED = 15.0, 48


def coarser(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return a mesh of which corners in one box of a grid are one corner."""
    step = float(mesh.extents.max()) / _MERGED
    _, first, box = np.unique(np.round(mesh.vertices / step), axis=0, return_index=True, return_inverse=True)
    merged = trimesh.Trimesh(mesh.vertices[first], box.reshape(-1)[mesh.faces], process=False)
    merged.update_faces(merged.nondegenerate_faces())
    return merged if len(merged.faces) > 3 else mesh


def turned(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return a mesh turned about its height."""
    copy = mesh.copy()
    copy.apply_transform(trimesh.transformations.rotation_matrix(np.radians(_TURN), (0, 1, 0)))
    return copy


def mirrored(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Return a mesh with left and right exchanged."""
    return trimesh.Trimesh(mesh.vertices * (-1, 1, 1), mesh.faces[:, ::-1], process=False)


COPIES: dict[str, Callable[[trimesh.Trimesh], trimesh.Trimesh]] = {
    "coarser": coarser,
    "turned": turned,
    "mirrored": mirrored,
}


def ranks_of(likeness: Tensor, own: Tensor) -> npt.NDArray[np.float64]:
    """Return how many candidates are before each asked one's own, equals as half. `likeness [Q, O]`, `own [Q]`"""
    right = likeness.gather(1, own[:, None])
    before = (likeness > right).sum(1) + ((likeness == right).sum(1) - 1) / 2
    return before.double().numpy()


def in_numbers(ranks: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return recalls with their intervals, and the median rank from 1."""
    found: dict[str, Any] = {"asked": len(ranks), "median_rank": float(np.median(ranks)) + 1}
    for top in TOPS:
        interval = mean_interval((ranks < top).astype(float))
        assert interval is not None
        found[f"recall_{top}"] = [round(value, 4) for value in (interval.mean, interval.low, interval.high)]
    return found


def of_one_category(likeness: Tensor, categories: list[str], *, leave_out: bool) -> float:
    """Return which share of the nearest is of the category asked for, over objects of categories that are not rare.

    Args:
        likeness: `[O, O]`.
        categories: of the objects.
        leave_out: the object itself is no answer.
    """
    likeness = likeness.clone()
    if leave_out:
        likeness.fill_diagonal_(float("-inf"))
    sizes = Counter(categories)
    nearest = likeness.topk(NEAREST).indices.tolist()
    shares = [
        sum(categories[other] == own for other in row) / NEAREST
        for own, row in zip(categories, nearest, strict=True)
        if sizes[own] > _FEWEST_OF_A_CATEGORY
    ]
    return round(float(np.mean(shares)), 4)


def histogram(codes: Tensor, size: int) -> Tensor:
    """Return square roots of how often each code occurs, of length 1. `[size]`"""
    counts = torch.bincount(codes.long(), minlength=size).float().sqrt()
    return counts / counts.norm()


def unit(rows: Tensor) -> Tensor:
    """Return rows of length 1."""
    return torch.nn.functional.normalize(rows, dim=1)


def main() -> None:
    """Ask, print and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--index", type=Path, required=True, help="index of the codes of one split")
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="test")
    parser.add_argument("--copies", type=int, default=100, help="objects whose copies are looked for")
    options = parser.parse_args()
    index = ShapeIndex.open(options.index)
    items = {item.id: item for item in Source("pack", options.pack, split=options.split)}
    names = sorted(name for name in index.ids() if name in items)
    parts = [index.codes_of(name) for name in follow(names, "codes")]
    shapes: ShapeVectors = index.shapes
    vectors = shapes([part.codes for part in parts], [part.coords for part in parts])
    boxes = unit(shapes.tokens.features_of_the_whole([part.coords for part in parts])[:, -SHAPE_BOXES:])
    codes = torch.stack([histogram(part.codes, len(shapes.tokens.codebook)) for part in parts])
    captions = [max(captions_of_row(items[name].row), key=len) for name in names]
    categories = [f"{items[name].source}: {items[name].row['category']}" for name in names]
    encoder = load_sentence_encoder(shapes.head.sentence_model)
    words = embed(encoder, captions)
    own, random = torch.arange(len(names)), torch.Generator().manual_seed(0)
    other = torch.roll(torch.randperm(len(names), generator=random), 1)
    usual = embed(encoder, [Counter(captions).most_common(1)[0][0]]).expand(len(names), -1)
    noise = torch.rand(len(names), len(names), generator=random)
    ways = {
        "by words": words @ vectors.T,
        "shuffled": words @ vectors[other].T,
        "random": noise,
        "same words for all": usual @ vectors.T,
    }
    result: dict[str, Any] = {
        "objects": len(names),
        "of_the_split": len(items),
        "head": shapes.head.trained_on,
        "words": {
            way: {
                **in_numbers(ranks_of(likeness, own)),
                "category": of_one_category(likeness, categories, leave_out=False),
            }
            for way, likeness in ways.items()
        },
        "neighbors_of_its_category": {
            "vectors": of_one_category(vectors @ vectors.T, categories, leave_out=True),
            "boxes": of_one_category(boxes @ boxes.T, categories, leave_out=True),
            "code histogram": of_one_category(codes @ codes.T, categories, leave_out=True),
            "shuffled": of_one_category(vectors @ vectors[other].T, categories, leave_out=True),
            "random": of_one_category(noise, categories, leave_out=True),
        },
        "copies": {},
    }
    reads_parts = bool(shapes.head.weight[:, : shapes.tokens.projector.hidden_size].any())
    vae = load_vae_from_config(device="cpu")
    chosen = torch.randperm(len(names), generator=random)[: options.copies]
    for kind, copy in COPIES.items() if options.copies else ():
        made, found = [], []
        for number in follow(chosen.tolist(), kind, "copy"):
            mesh = normalize_mesh(items[names[number]].there.mesh())
            source = trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False)
            try:
                field = field_for(vae, copy(source), up=Up(axis="y", known_from="the pack"))
            except ValueError:  # counts as not found
                made.append(torch.zeros(shapes.head.weight.shape[1]))
                found.append(number)
                continue
            if reads_parts:
                encoded = encode_field(vae, field)
                features = shapes.tokens.features([encoded.codes], [encoded.coords])
            else:
                cells = torch.unique(
                    field.index.long() // (vae.config.data_resolution // vae.config.latent_resolution), dim=0
                )
                features = shapes.tokens.features_of_the_whole([cells])
            made.append(features[0])
            found.append(number)
        rows, right = torch.stack(made), torch.tensor(found)
        result["copies"][kind] = {
            "vectors": in_numbers(ranks_of(shapes.head(rows) @ vectors.T, right)),
            "boxes": in_numbers(ranks_of(unit(rows[:, -SHAPE_BOXES:]) @ boxes.T, right)),
            "shuffled": in_numbers(ranks_of(shapes.head(rows) @ vectors[other].T, right)),
        }
    _print(result)
    print(write_run(options, result, options.split))


def _print(result: dict[str, Any]) -> None:
    print(f"{result['objects']} objects of {result['of_the_split']}; head: {result['head']}")
    for part in ("words", *(f"copies {kind}" for kind in result["copies"])):
        rows = result["words"] if part == "words" else result["copies"][part.removeprefix("copies ")]
        for way, numbers in rows.items():
            shown = "  ".join(f"R@{top} {100 * numbers[f'recall_{top}'][0]:5.1f}" for top in TOPS)
            category = f"  category {100 * numbers['category']:.1f}" if "category" in numbers else ""
            print(f"{part:<16} {way:<20} {shown}  median rank {numbers['median_rank']:.1f}{category}")
    for way, share in result["neighbors_of_its_category"].items():
        print(f"neighbors of its category  {way:<16} {100 * share:.1f}")


if __name__ == "__main__":
    main()
