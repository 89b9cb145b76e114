"""Volumes of labels (NIfTI) as a visitor meets them: names of organs, and the surface of one. Knows no processes."""

from __future__ import annotations

from pathlib import Path

import trimesh

from sdf_vqvae.preprocessing.ct.cases import Case, grid_of, load_case
from sdf_vqvae.preprocessing.ct.layouts import pair_case
from sdf_vqvae.preprocessing.ct.organs import surface_of

SCAN_SUFFIXES = (".nii", ".nii.gz")
"""Kinds of files that are read."""


def voxels_of(label: Path) -> int:
    """Return how many voxels a volume claims to have; its header alone is read.

    Raises:
        ValueError: it can't be used, or claims more than its file can hold.
        ImportError: nibabel is not installed.
    """
    x, y, z = grid_of(label)
    return x * y * z


def organs_of(label: Path, names: Path | None) -> dict[str, int]:
    """Return the organs of a volume of labels and the number of their voxels, the largest first.

    Args:
        label: the volume.
        names: JSON with the names of its labels; None takes the one beside it, where there is one.

    Raises:
        ValueError: the files can't be used, or no voxel has a label.
        ImportError: nibabel is not installed.
    """
    case = _read(label, names)
    assert case.masks is not None
    counts = {case.names.of(organ): case.masks.count(organ) for organ in case.masks.labels(case.names)}
    if not counts:
        raise ValueError(f"{label.name} has no voxel with a label: a file of labels is needed, not the image")
    return dict(sorted(counts.items(), key=lambda organ: organ[1], reverse=True))


def surface_of_organ(label: Path, names: Path | None, organ: str) -> trimesh.Trimesh:
    """Return the surface of an organ, in millimetres.

    Raises:
        ValueError: the files can't be used, there is no such organ, or its label has no surface.
        ImportError: nibabel is not installed.
    """
    case = _read(label, names)
    assert case.masks is not None
    found = {case.names.of(one): one for one in case.masks.labels(case.names)}
    if organ not in found:
        raise ValueError(f"the scan has no {organ!r}")
    return surface_of(case, found[organ]).mesh


def _read(label: Path, names: Path | None) -> Case:
    return load_case(pair_case(None, label, names), with_image=False)
