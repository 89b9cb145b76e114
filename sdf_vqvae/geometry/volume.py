"""A binary label of a scan (a stack of voxels of any spacing) to a smooth closed surface in millimetres.

The voxels' staircase is not the organ's shape. The signed distance of the label, in millimetres, is smoothed by less
than a voxel while no voxel's center may change sides by more than a tenth of one, so that parts one voxel thick
survive (after Gibson, 1998, and Lempitsky, 2010). It is then interpolated to a finer, nearly isotropic grid, and its
surface is taken at the level that encloses the label's own volume.

Works block by block and keeps values near the surface alone: memory grows with the surface, not with the scan. Knows
nothing of files, labels' names or codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import trimesh
from scipy import ndimage

from sdf_vqvae.geometry.isosurface import extract_isosurface
from sdf_vqvae.geometry.mesh import LONGEST_SIDE
from sdf_vqvae.geometry.up import lay_back, stand_up
from sdf_vqvae.geometry.voxelizer.voxelize import VoxelField, voxelize

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

SIGN_METHOD = "volume"
"""What a field made here records as its `sign_method`: the sides come from the label itself."""
MAX_ANISOTROPY = 100.0
"""Largest ratio of two spacings of one scan. CT slices of 5 mm with pixels of half a millimetre have 10."""
CUBIC_MM_PER_ML = 1000.0
_SIGMA = 0.7
"""Of the smoothing, in voxels."""
_ROUNDS = 3
"""Of smoothing and giving the voxels their sides back."""
_TAPS = 2
"""Voxels to each side that one round sees."""
_REACH = 2.0
"""Distances are exact up to so many of the largest spacing, and cut there."""
_LEVELS = 1.3
"""The surface may lie at levels up to so many of the largest spacing. A lone voxel takes nearly 1."""
_TOLERANCE = 0.1
"""How far a round may carry the surface past a voxel's center, in the smallest spacing. With 0 every step that
touches the bound stays as a bump; with 0.1 a ball's normals are off by 3 degrees and thin ribs stay whole."""
_THIN = 0.4
"""Least distance of a voxel's center to the surface, in the smallest spacing, where the label, or the gap between two
parts of it, is thin. Without it a hip bone's wing, a voxel thick, has holes."""
_CELLS = 128
"""The surface's grid has about so many cells along the label, but never fewer than the scan."""
_FINEST = 6
"""Most cells that the smallest spacing is divided into."""
_BLOCK = 96
_AWAY = 1e-3
"""Least distance of a value to the level, in cells: vertices of neighboring edges never coincide."""
_CLOSE_ENOUGH = 5e-4
"""Of the volume, as a share."""
_MOST_STEPS = 12


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSurface:
    """The closed surface of one label."""

    mesh: trimesh.Trimesh
    """In millimetres, in the coordinates of the scan; faces look outwards."""
    label_ml: float
    """Volume of the label's voxels."""
    mesh_ml: float
    """Volume that the mesh encloses."""
    voxels: int
    """Number of the label's voxels; none is left out."""
    shift: float
    """Millimetres by which the surface was moved outwards so that it encloses the label's volume."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelField:
    """The distance field of a surface in the world cube."""

    field: VoxelField
    center: tuple[float, float, float]
    """Center of the surface's bounding box in millimetres; world = R(up) @ (millimetres - center) * scale."""
    scale: float
    """World units a millimetre."""


def label_surface(
    mask: Mask,  # [X, Y, Z]
    affine: npt.ArrayLike,  # [4, 4]
) -> LabelSurface:
    """Return the surface of the true voxels of a mask.

    A label that touches the border of the scan is closed there, at the outer faces of its voxels.

    Args:
        mask: the label.
        affine: index (i, j, k, 1) of a voxel's center to (x, y, z, 1) in millimetres. For voxels of a spacing alone:
            `np.diag([*spacing, 1])`.

    Raises:
        ValueError: the mask isn't three-dimensional or has no true voxel, or the affine is no grid of voxels.
    """
    matrix = check_affine(affine)
    if mask.ndim != 3 or mask.dtype != np.bool_:
        raise ValueError(f"a label's mask must be bool [X, Y, Z], got {mask.dtype} {list(mask.shape)}")
    corner, crop = _crop(mask)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    cell_ml = abs(float(np.linalg.det(matrix[:3, :3]))) / CUBIC_MM_PER_ML
    count = int(np.count_nonzero(crop))
    parts = _subdivision(crop.shape, spacing)
    near = _near_surface(crop, spacing, parts)
    to_mm = matrix @ np.block(
        [[np.diag(1 / parts), np.reshape(corner, (3, 1)).astype(np.float64)], [np.zeros((1, 3)), np.ones((1, 1))]]
    )
    step = float((spacing / parts).min())
    wanted = count * int(parts.prod()) - near.inside
    guess = float(np.partition(near.values, wanted)[wanted]) if 0 <= wanted < len(near.values) else 0.0
    mesh, shift = _at_volume(near, to_mm, count * cell_ml * CUBIC_MM_PER_ML, step, guess)
    return LabelSurface(
        mesh=mesh, label_ml=count * cell_ml, mesh_ml=float(mesh.volume) / CUBIC_MM_PER_ML, voxels=count, shift=shift
    )


def label_field(
    surface: LabelSurface,
    *,
    resolution: int,
    band: float = 3.0,
    up: str = "y",
    device: torch.device | str = "cpu",
) -> LabelField:
    """Return the exact distances to a label's surface on the grid of the world cube, centered, longest side 0.95.

    Args:
        surface: what `label_surface` made.
        resolution: grid side R.
        band: half width in voxels of the stored shell.
        up: the axis of the millimetres that points up, and becomes +y.
        device: where to compute.

    Raises:
        ValueError: see `voxelize`.
    """
    vertices = stand_up(np.asarray(surface.mesh.vertices, dtype=np.float64), up)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    center, scale = (low + high) / 2, LONGEST_SIDE / float((high - low).max())
    field = voxelize(
        torch.from_numpy((vertices - center) * scale).to(device),
        torch.from_numpy(np.array(surface.mesh.faces, dtype=np.int64)).to(device),
        resolution=resolution,
        band=band,
        watertight=True,
    )
    x, y, z = lay_back(center, up).tolist()
    return LabelField(field=field, center=(x, y, z), scale=scale)


def check_affine(affine: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the affine of a scan as an array.

    Raises:
        ValueError: it is not `[4, 4]` and finite, or its axes and spacing are no grid of voxels.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise ValueError(f"the affine of a scan must be [4, 4], finite, its last row 0 0 0 1; got {matrix.tolist()}")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not (spacing.min() > 0 and spacing.max() < MAX_ANISOTROPY * spacing.min()):
        raise ValueError(
            f"the spacing of a scan must be positive and its largest less than {MAX_ANISOTROPY:g} times the "
            f"smallest, got {[round(float(s), 6) for s in spacing]} mm"
        )
    if abs(float(np.linalg.det(matrix[:3, :3] / spacing))) < 0.5:
        raise ValueError("the axes of the scan's affine lie nearly in one plane")
    return matrix


def _crop(mask: Mask) -> tuple[tuple[int, ...], Mask]:
    """Return the lowest voxel of the mask's bounding box, and the box."""
    bounds = []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if len(filled) == 0:
            raise ValueError("the label has no voxel")
        bounds.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(b.start for b in bounds), mask[tuple(bounds)]


def _subdivision(shape: tuple[int, ...], spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return into how many cells a voxel is divided along each axis, so that cells are nearly cubes."""
    smallest = float(spacing.min())
    step = float(np.clip((np.array(shape) * spacing).max() / _CELLS, smallest / _FINEST, smallest))
    return np.maximum(np.round(spacing / step), 1).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Near:
    """The smoothed signed distance near a label's surface, on the fine grid."""

    values: Floats
    """`[N]`, millimetres."""
    index: npt.NDArray[np.int32]
    """`[N, 3]`."""
    inside: int
    """Number of places deeper inside the label."""
    highest: float
    """All corners of the cells that a level between `-highest` and `highest` cuts are here."""
    steepest: float
    """No two corners of a cell differ by more."""


def _near_surface(crop: Mask, spacing: npt.NDArray[np.float64], parts: npt.NDArray[np.int64]) -> _Near:
    """Compute the distance, block by block."""
    reach = _REACH * float(spacing.max())
    halo = np.ceil(reach / spacing).astype(np.int64) + _ROUNDS * _TAPS + 4
    padded = np.pad(crop, [(int(h) + 2, int(h) + 2) for h in halo])
    highest = _LEVELS * float(spacing.max())
    values: list[Floats] = []
    places: list[npt.NDArray[np.int32]] = []
    inside = 0
    steepest = np.zeros(3)
    for low, high in _blocks(crop.shape):
        # In the padded array, a block that begins at `low` of the crop has its halo at `low + 2`.
        part = padded[tuple(slice(lo + 2, hi + 2 + 2 * int(h)) for lo, hi, h in zip(low, high, halo, strict=True))]
        if part.all():
            inside += int(np.prod((np.array(high) - low) * parts))
        if part.all() or not part.any():
            continue
        distance = _smooth_distance(part, spacing, reach)
        for axis in range(3):
            weights = _interpolation(part.shape[axis], int(halo[axis]), high[axis] - low[axis], int(parts[axis]))
            distance = np.moveaxis(np.tensordot(weights, distance, axes=(1, axis)), 0, axis)
        steepest = np.maximum(steepest, [float(np.abs(np.diff(distance, axis=axis)).max()) for axis in range(3)])
        near = _around(distance <= highest) & _around(distance >= -highest)
        distance = distance[1:-1, 1:-1, 1:-1]
        values.append(distance[near])
        places.append((np.argwhere(near) + np.array(low) * parts).astype(np.int32))
        inside += int(np.count_nonzero((distance < -highest) & ~near))
    return _Near(
        values=np.concatenate(values),
        index=np.concatenate(places),
        inside=inside,
        highest=highest,
        steepest=float(steepest.sum()),
    )


def _around(chosen: Mask) -> Mask:
    """Return which inner points of a grid are chosen or have one of their 26 neighbors chosen."""
    for axis in range(3):
        along = np.moveaxis(chosen, axis, 0)
        chosen = np.moveaxis(along[:-2] | along[1:-1] | along[2:], 0, axis)
    return chosen


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the lowest and the end of blocks that cover a box and two voxels all round."""
    axes = [[(start, min(start + _BLOCK, size + 2)) for start in range(-2, size + 2, _BLOCK)] for size in shape]
    for ranges in itertools.product(*axes):
        yield tuple(r[0] for r in ranges), tuple(r[1] for r in ranges)


def _smooth_distance(mask: Mask, spacing: npt.NDArray[np.float64], reach: float) -> Floats:
    """Return the smoothed signed distance of a block: negative where the mask is true, as far as the halo is good."""
    distance = ndimage.distance_transform_edt(~mask, sampling=spacing)
    distance -= ndimage.distance_transform_edt(mask, sampling=spacing)
    smooth = np.clip(distance, -reach, reach).astype(np.float32)
    smallest = float(spacing.min())
    most = np.where(_thin(mask), -_THIN * smallest, _TOLERANCE * smallest).astype(np.float32)
    least = np.where(_thin(~mask), _THIN * smallest, -_TOLERANCE * smallest).astype(np.float32)
    kernel = np.exp(-0.5 * (np.arange(-_TAPS, _TAPS + 1) / _SIGMA) ** 2)
    kernel /= kernel.sum()
    for _ in range(_ROUNDS):
        for axis in range(3):
            smooth = ndimage.correlate1d(smooth, kernel, axis=axis, mode="nearest")
        smooth = np.where(mask, np.minimum(smooth, most), np.maximum(smooth, least))
    return smooth


def _thin(mask: Mask) -> Mask:
    """Return the voxels that no cross of seven voxels inside the mask covers or touches."""
    cross = ndimage.generate_binary_structure(3, 1)
    core = ndimage.binary_erosion(mask, cross)
    return mask & ~ndimage.binary_dilation(core, cross, iterations=2)


def _interpolation(size: int, start: int, length: int, parts: int) -> Floats:
    """Return the matrix `[length * parts + 2, size]` of cubic convolution (Keys, 1981) from `start` on.

    One more point stands before the first and behind the last.
    """
    row = np.arange(length * parts + 2)
    matrix = np.zeros((len(row), size), dtype=np.float32)
    place = row - 1 + start * parts
    base, t = place // parts, (place % parts) / parts
    taps = (
        (-0.5 * t + t**2 - 0.5 * t**3),
        (1 - 2.5 * t**2 + 1.5 * t**3),
        (0.5 * t + 2 * t**2 - 1.5 * t**3),
        (-0.5 * t**2 + 0.5 * t**3),
    )
    for offset, weight in enumerate(taps):
        matrix[row, base + offset - 1] = weight
    return matrix


def _at_volume(
    near: _Near, to_mm: npt.NDArray[np.float64], volume: float, step: float, level: float
) -> tuple[trimesh.Trimesh, float]:
    """Return the surface at the level at which it encloses a volume (mm^3), and the level; one is the first guess."""
    low, high = max(float(near.values.min()), -near.highest), min(float(near.values.max()), near.highest)
    level = level if low < level < high else (low + high) / 2
    best: tuple[float, trimesh.Trimesh, float] | None = None
    before: tuple[float, float] | None = None
    for _ in range(_MOST_STEPS):
        mesh = _surface(near, to_mm, level, step)
        enclosed = 0.0 if mesh is None else float(mesh.volume)
        if mesh is not None and (best is None or abs(enclosed - volume) < best[0]):
            best = (abs(enclosed - volume), mesh, level)
        if best is not None and best[0] <= _CLOSE_ENOUGH * volume:
            break
        # The field is nearly a distance: a step outwards adds its length times the area. Two steps know better.
        growth = 0.0 if mesh is None else float(mesh.area)
        if before is not None and (enclosed - before[1]) * (level - before[0]) > 0:
            growth = (enclosed - before[1]) / (level - before[0])
        before = level, enclosed
        low, high = (level, high) if enclosed < volume else (low, level)
        further = level + (volume - enclosed) / growth if growth > 0 else low
        level = further if low < further < high else (low + high) / 2
    if best is None:
        raise ValueError("the label has no surface that encloses a volume")
    return best[1], best[2]


def _surface(near: _Near, to_mm: npt.NDArray[np.float64], level: float, step: float) -> trimesh.Trimesh | None:
    """Return the closed surface at a level, None where nothing crosses it."""
    off, places = torch.from_numpy(near.values) - level, torch.from_numpy(near.index)
    close = off.abs() <= near.steepest  # all corners of cut cells, and few others
    off, places = off[close], places[close]
    off = torch.where(off >= 0, off.clamp(min=_AWAY * step), off.clamp(max=-_AWAY * step))
    if not (bool((off < 0).any()) and bool((off > 0).any())):
        return None
    vertices, faces = extract_isosurface(off, places)
    points = vertices.double().numpy() @ to_mm[:3, :3].T + to_mm[:3, 3]
    triangles = faces.numpy()
    if np.linalg.det(to_mm[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    return trimesh.Trimesh(points, triangles, process=False)
