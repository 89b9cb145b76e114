"""Meshes of occupied voxels, read in three ways, and their scores against the true surface.

Occupied voxels are a shell one or more voxels thick, so the plainest mesh of them has two walls. The readings:

    shell   marching cubes at 0.5 of the probability, as it is: both walls
    filled  what the outside (reached by flood fill from the border) does not reach is filled first: the outer wall
    middle  in the filled solid a voxel on the surface counts one half, since the surface passes through it; with a
            3^3 mean and the level a little below one half the wall runs through the middle of the shell, and sheets
            without an inside stay thin sheets

`middle` asks the most of 64^3 voxels and is the kindest to the design. Runs in worker processes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray
from rival_occupancy import SIDE
from scipy import ndimage

from sdf_vqvae.data import MeshPack, PackEntry
from sdf_vqvae.geometry.isosurface import extract_isosurface
from sdf_vqvae.geometry.mesh import LONGEST_SIDE, normalize_mesh
from sdf_vqvae.geometry.metrics import compare_meshes

READINGS = ("shell", "filled", "middle")
THRESHOLDS = (0.001, 0.002, 0.005, 0.01, 0.02)
_MIDDLE_LEVEL = 0.45
_PADDING = 2

Volume = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What every worker needs to know."""

    pack: Path
    samples: int
    seed: int = 0


def mesh_of(probability: Volume, reading: str) -> trimesh.Trimesh | None:
    """Return the surface of a grid `[64, 64, 64]` in the world cube of the mesh it came from, or None without one."""
    padded = np.pad(probability.astype(np.float32), _PADDING)
    values, level = padded, 0.5
    if reading != "shell":
        inside = ndimage.binary_fill_holes(padded >= 0.5) & (padded < 0.5)
        if reading == "filled":
            values = np.where(inside, 1.0, padded)
        else:
            values = ndimage.uniform_filter(np.where(inside, 1 - padded / 2, padded / 2), 3)
            level = _MIDDLE_LEVEL * _peak_share(values)
    index = torch.from_numpy(np.argwhere(np.ones(values.shape, dtype=bool)))
    field = torch.from_numpy(level - values.astype(np.float64).reshape(-1))
    try:
        vertices, faces = extract_isosurface(field, index)
    except ValueError:  # nothing is occupied
        return None
    world = ((vertices.double() - _PADDING + 0.5) / SIDE - 0.5) * LONGEST_SIDE
    return trimesh.Trimesh(world.numpy(), faces.numpy(), process=False)


def _peak_share(values: Volume) -> float:
    return 1.0


def true_mesh(pack: MeshPack, entry: PackEntry) -> tuple[trimesh.Trimesh, bool]:
    """Return the normalized mesh and whether it is watertight."""
    mesh = normalize_mesh(pack.mesh(entry))
    return trimesh.Trimesh(mesh.vertices.numpy(), mesh.faces.numpy(), process=False), mesh.watertight
