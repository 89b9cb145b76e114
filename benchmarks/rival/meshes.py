"""Meshes of occupied voxels, read in three ways, and their scores against the true surface.

Occupied voxels are a shell one or more voxels thick, so the plainest mesh of them has two walls. The readings:

    shell   marching cubes at 0.5 of the probability, as it is: both walls
    filled  what the outside (reached by flood fill from the border) does not reach is filled first: the outer wall
    middle  voxels count as occupied or not; in the filled solid an occupied one counts one half, since the surface
            passes through it, so that a level a little below one half runs through the middle of the shell. Blurred
            by a Gaussian near an inside; sheets without an inside are left sharp and stay thin

`middle` asks the most of 64^3 voxels and is the kindest to the design. Runs in worker processes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from occupancy import SIDE
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from sdf_vqvae.data.mesh_pack import MeshPack
from sdf_vqvae.geometry.isosurface import extract_isosurface
from sdf_vqvae.geometry.mesh import LONGEST_SIDE, normalize_mesh
from sdf_vqvae.geometry.metrics.scores import GroundTruth
from sdf_vqvae.utils.jobs import run_jobs

READINGS = ("shell", "filled", "middle")
THRESHOLDS = (0.001, 0.002, 0.005, 0.01, 0.02)
_LEVEL, _BLUR, _SHEET, _REACH = 0.44, 0.7, 0.9, 2
"""Of `middle`; the best F-scores of true grids on 24 meshes of the split `val` among 18 settings tried."""
_PADDING = 2
LEVELS = 15
"""Probabilities travel in sixteen levels, 0..15."""

Grid = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One object of a split, and the grids whose meshes are compared with it."""

    number: int
    """Its place in the split."""
    grids: dict[str, Grid]
    """Row (`ceiling`, `continuous`, `discrete`) -> probability times 15, `[64, 64, 64]`."""
    readings: dict[str, tuple[str, ...]]
    """Row -> readings to score."""


def as_levels(probability: Tensor) -> Grid:
    """Return probabilities `[64, 64, 64]` in sixteen levels; at least one half becomes at least 8."""
    return (probability.double() * LEVELS + 1e-9).round().to(torch.uint8).cpu().numpy()


def mesh_of(grid: Grid, reading: str) -> trimesh.Trimesh | None:
    """Return the surface of a grid in the world cube of the mesh it came from, or None where nothing is occupied."""
    probability = np.pad(grid.astype(np.float32) / LEVELS, _PADDING)
    occupied = probability >= 0.5
    values, level = probability, 0.5
    if reading != "shell":
        inside = ndimage.binary_fill_holes(occupied) & ~occupied
        values = np.where(inside, 1.0, probability)
    if reading == "middle":
        sharp = np.where(inside, 1.0, occupied / 2)
        smooth = ndimage.gaussian_filter(sharp, _BLUR)
        solid = ndimage.binary_dilation(inside, np.ones((3, 3, 3), dtype=bool), iterations=_REACH)
        values, level = np.where(solid, smooth, np.maximum(smooth, _SHEET * sharp)), _LEVEL
    index = torch.from_numpy(np.argwhere(np.ones(values.shape, dtype=bool)))
    try:
        vertices, faces = extract_isosurface(torch.from_numpy(level - values.astype(np.float64).reshape(-1)), index)
    except ValueError:  # nothing crosses the level
        return None
    world = ((vertices.double() - _PADDING + 0.5) / SIDE - 0.5) * LONGEST_SIDE
    return trimesh.Trimesh(world.numpy(), faces.numpy(), process=False)


class Scorer:
    """Scores jobs against the meshes of one split of a pack."""

    def __init__(self, pack: Path, split: str, samples: int) -> None:
        self.pack = MeshPack(pack)
        self.entries = self.pack.select(split)
        self.samples = samples

    def __call__(self, job: Job) -> dict[str, Any]:
        """Return id, whether the mesh is watertight, and `row reading` -> score, with the seconds a mesh took."""
        entry = self.entries[job.number]
        normalized = normalize_mesh(self.pack.mesh(entry))
        mesh = trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False)
        closed = normalized.watertight
        truth = GroundTruth(mesh, samples=self.samples, thresholds=THRESHOLDS, watertight=closed)
        line: dict[str, Any] = {"number": job.number, "id": entry.id, "watertight": closed}
        for row, readings in job.readings.items():
            for reading in readings:
                start = time.perf_counter()
                rebuilt = mesh_of(job.grids[row], reading)
                seconds = time.perf_counter() - start
                line[f"{row} {reading}"] = {**truth.score(rebuilt).to_dict(), "mesh_seconds": seconds}
        return line


def _make_scorer(device: str, *, pack: Path, split: str, samples: int) -> Scorer:
    return Scorer(pack, split, samples)


def scores(
    jobs: Iterable[Job], count: int, *, pack: Path, split: str, samples: int, workers: int
) -> list[dict[str, Any]]:
    """Score so many jobs in worker processes; in the order of their numbers."""
    make = functools.partial(_make_scorer, pack=pack, split=split, samples=samples)
    lines = []
    for done in tqdm(run_jobs(make, jobs, workers=workers), desc="meshes", total=count, unit="object", disable=None):
        if done.result is None:
            raise ValueError(f"object {done.number} can't be scored: {done.error}")
        lines.append(done.result)
    return sorted(lines, key=lambda line: line["number"])


def table_of(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean and median of every score for each `row reading`, and the mean over watertight meshes.

    Volume and surface IoU exist for watertight meshes only.
    """
    table: dict[str, dict[str, float]] = {}
    closed = [line for line in lines if line["watertight"]]
    for row in (key for key, value in lines[0].items() if isinstance(value, dict)):
        table[row] = {"objects": len(lines), "watertight objects": len(closed)}
        table[row]["failed"] = float(sum(bool(line[row]["failed"]) for line in lines))
        for name in lines[0][row]:
            values = [line[row][name] for line in lines if line[row][name] is not None]
            if name in ("samples", "failed") or not values:
                continue
            table[row] |= {f"{name} mean": float(np.mean(values)), f"{name} median": float(np.median(values))}
            if closed:
                table[row][f"{name} mean, watertight"] = float(np.mean([line[row][name] for line in closed]))
    return table
