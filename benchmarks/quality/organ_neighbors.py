"""How far organs can be told by their shape alone: the training organ whose occupied cells lie most alike.

    python benchmarks/quality/organ_neighbors.py --codes train_codes

No language model and no codes: each object is its occupied cells of the latent grid, blurred by a Gaussian of one
cell, and the nearest training organ by cosine lends its name (left and right counted as one). Printed for the names
that training has, as `eval_3d_vl` asks for them: training organs as they are, and with their mirror images (x -> -x),
which are known here without encoding anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.data.tables import ID_COLUMN
from sdf_vqvae.evaluation.bootstrap import mean_interval
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.evaluation.closed_sets import group_of

Array = npt.NDArray[np.float64]
TOPS = (1, 5)


def organs_of(codes: CodeFolder) -> list[dict[str, str]]:
    """Return id -> organ without its side, of training, `val` and `test`, as `eval_3d_vl` asks for them in English.

    Of the held-out ones those whose names training has.
    """
    splits = {row[ID_COLUMN]: row["split"] for row in codes.table()}
    organs: dict[str, dict[str, str]] = {"train": {}, "val": {}, "test": {}}
    for part in ("", "_val", "_test"):
        for line in (codes.folder / f"conversations{part}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            name = record["sample_id"]
            if record["kind"] == "organ" and record["language"] == "en" and name in codes:
                organs[splits[name]][name] = group_of("organ", record["answer"])
    trained = set(organs["train"].values())
    return [{name: organ for name, organ in names.items() if organ in trained} for names in organs.values()]


def grid_of(codes: CodeFolder, name: str) -> Array:
    """Return an object's blurred occupancy `[R, R, R]`, axes x, y, z."""
    side = codes.manifest.latent_resolution
    grid = np.zeros((side, side, side))
    grid[tuple(codes[name][1].long().T.numpy())] = 1
    blurred: Array = gaussian_filter(grid, 1)
    return blurred


def rows_of(grids: list[Array]) -> Array:
    """Return grids as rows of length 1."""
    rows = np.stack([grid.ravel() for grid in grids])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def hits(likeness: Array, trained_names: list[str], asked: list[str]) -> dict[str, Any]:
    """Return how often an organ's name is among the first different names of its neighbours."""
    right: dict[int, list[bool]] = {top: [] for top in TOPS}
    for row, name in zip(likeness, asked, strict=True):
        names = list(dict.fromkeys(trained_names[number] for number in np.argsort(-row, kind="stable")))
        for top in TOPS:
            right[top].append(name in names[:top])
    shares = {}
    for top, values in right.items():
        interval = mean_interval(np.array(values, dtype=float))
        assert interval is not None
        shares[f"top_{top}"] = {key: round(getattr(interval, key), 4) for key in ("mean", "low", "high")}
    return shares


def main() -> None:
    """Print the shares and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument(
        "--codes", type=Path, required=True, help="folder of cached codes with questions of each split"
    )
    options = parser.parse_args()
    codes = CodeFolder(options.codes)
    train, *held_out = organs_of(codes)
    trained_names = list(train.values())
    grids = [grid_of(codes, name) for name in train]
    references = rows_of(grids), rows_of([grid[::-1] for grid in grids])
    result: dict[str, Any] = {"training_organs": len(train), "training_names": len(set(trained_names))}
    for split, organs in zip(("val", "test"), held_out, strict=True):
        names, asked = list(organs), list(organs.values())
        rows = rows_of([grid_of(codes, name) for name in names])
        plain, mirrored = (rows @ reference.T for reference in references)
        result[split] = {
            "organs": len(names),
            "as they are": hits(plain, trained_names, asked),
            "with mirror images": hits(np.maximum(plain, mirrored), trained_names, asked),
        }
        print(split, json.dumps(result[split]))
    write_run(options, result, "cpu")


if __name__ == "__main__":
    main()
