"""The rival design on a split: rebuilt grids, voxel IoU, times and codebook, then the scores of their meshes.

The network needs a GPU and the scores don't, so the rebuilt grids can travel between the two in a file.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from meshes import LEVELS, READINGS, Job, as_levels
from network import CODES, DenseOccupancyVQVAE, voxel_iou
from numpy.typing import NDArray
from occupancy import SIDE, unpacked
from torch import Tensor
from tqdm import tqdm
from training import precision

from sdf_vqvae.quantizers.codebook_usage import codebook_health
from sdf_vqvae.utils.archives import read_npz, write_npz
from sdf_vqvae.utils.files import atomic_path
from sdf_vqvae.utils.runtime import Stopwatch

_READ_FOR = {"ceiling": READINGS, "continuous": ("middle",), "discrete": READINGS}
_MOST_BYTES = 2**31
OBJECTS = ".{}_objects.jsonl"
"""Name of the scores of each object beside a result; several megabytes, which git ignores."""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What the network makes of a split."""

    numbers: NDArray[np.int64]
    """Places of the objects in the split `[N]`."""
    ceiling: NDArray[np.uint8]
    """True grids, bit-packed `[N, 32768]`."""
    continuous: NDArray[np.uint8]
    """Probability in 16 levels without the quantizer `[N, 64, 64, 64]`."""
    discrete: NDArray[np.uint8]
    """The same from codes."""

    def save(self, file: Path) -> None:
        """Write a compressed `.npz`."""
        with atomic_path(file) as temporary, temporary.open("wb") as target:
            write_npz(target, self.__dict__)

    @classmethod
    def load(cls, file: Path) -> Rebuilt:
        """Read what `save` wrote."""
        names = tuple(cls.__dataclass_fields__)
        return cls(**read_npz(file, names, dict.fromkeys(names, _MOST_BYTES)))

    def jobs(self) -> Iterator[Job]:
        """Yield what is to be scored."""
        for number, truth, continuous, discrete in zip(
            self.numbers, self.ceiling, self.continuous, self.discrete, strict=True
        ):
            grid = np.unpackbits(truth, bitorder="little").reshape(SIDE, SIDE, SIDE) * np.uint8(LEVELS)
            grids = {"ceiling": grid, "continuous": continuous, "discrete": discrete}
            yield Job(number=int(number), grids=grids, readings=_READ_FOR)


@torch.no_grad()
def rebuilt(model: DenseOccupancyVQVAE, bits: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield grid, continuous probability, discrete probability and codes of each bit-packed grid."""
    for part in tqdm(bits.split(8), desc="rebuilding", disable=None):
        grids = unpacked(part)
        with precision(bits.device):
            continuous = model.logits(model.latent(grids)).sigmoid()
            codes = model.encode(grids)
            discrete = model.decode(codes)
        yield from zip(grids, continuous, discrete, codes, strict=True)


@torch.no_grad()
def times(model: DenseOccupancyVQVAE, bits: Tensor, count: int = 20) -> dict[str, float]:
    """Return the median milliseconds of encoding and of decoding one object, and the peak memory in megabytes."""
    watch = Stopwatch(bits.device)
    for row in [*bits[:3], *bits[:count]]:  # the first three choose kernels
        grid = unpacked(row[None])
        with precision(bits.device):
            with watch("encode"):
                codes = model.encode(grid)
            with watch("decode"):
                model.decode(codes)
    counted = watch.costs[2 * 3 :]
    costs = {
        f"{name}_milliseconds": statistics.median(1000 * cost.seconds for cost in counted if cost.name == name)
        for name in ("encode", "decode")
    }
    if bits.device.type == "cuda":
        costs["peak_megabytes"] = max(cost.peak_device_bytes for cost in watch.costs) / 1e6
    return costs


def rebuild(model: DenseOccupancyVQVAE, bits: Tensor, numbers: Tensor) -> tuple[dict[str, Any], Rebuilt]:
    """Return voxel IoU, codebook health and times over bit-packed grids, and the rebuilt grids."""
    measured: dict[str, Any] = {"times": {bits.device.type: times(model, bits)}}
    iou: dict[str, list[float]] = {"continuous": [], "discrete": []}
    counts = torch.zeros(CODES, dtype=torch.int64, device=bits.device)
    grids: dict[str, list[NDArray[np.uint8]]] = {row: [] for row in iou}
    for grid, continuous, discrete, codes in rebuilt(model, bits):
        for row, probability in (("continuous", continuous), ("discrete", discrete)):
            iou[row].append(float(voxel_iou(probability[None], grid[None])))
            grids[row].append(as_levels(probability))
        counts += torch.bincount(codes, minlength=CODES)
    measured["voxel_iou"] = {
        row: {
            "mean": statistics.fmean(values),
            "median": statistics.median(values),
            "least": min(values),
            "half_width_of_95_percent": 1.96 * statistics.pstdev(values) / math.sqrt(len(values)),
        }
        for row, values in iou.items()
    }
    health = codebook_health(counts)
    measured["codebook"] = {k: getattr(health, k) for k in ("used", "perplexity", "dead", "top_percent_mass")}
    if bits.device.type == "cuda":
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        measured["times"]["cpu, 2 threads"] = times(copy.deepcopy(model).cpu(), bits[:5].cpu(), 5)
        torch.set_num_threads(threads)
    arrays = {row: np.stack(values) for row, values in grids.items()}
    return measured, Rebuilt(numbers=numbers.numpy(), ceiling=bits.cpu().numpy(), **arrays)


def print_table(table: dict[str, dict[str, float]]) -> None:
    """Print the main columns."""
    names = {f"fscore@{t} mean": f"F@{t}" for t in ("0.001", "0.002", "0.005", "0.01")}
    names |= {"normal_consistency mean": "NC", "surface_iou mean": "S-IoU", "volume_iou mean": "V-IoU"}
    print(f"{'row, reading':<20}{'CD-L1':>9}" + "".join(f"{n:>9}" for n in names.values()) + f"{'failed':>8}")
    for row, t in table.items():
        cells = "".join(f"{t.get(name, math.nan):>9.4f}" for name in names)
        print(f"{row:<20}{t['chamfer_l1 mean']:>9.5f}{cells}{int(t['failed']):>8}")
