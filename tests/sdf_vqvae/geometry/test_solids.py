"""Fields of solids are exact: against plain formulas in float64, and against the voxelizer of meshes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.geometry.mesh import LONGEST_SIDE
from sdf_vqvae.geometry.solids import Solids
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize
from sdf_vqvae.training.thin_shapes import THICKEST, THINNEST, bar, part, thin_shape

R = 40
A, B = np.array([-0.3, -0.2, 0.1]), np.array([0.35, 0.1, -0.2])


def dense(field: tuple[torch.Tensor, torch.Tensor], resolution: int, band: float = 3.0) -> np.ndarray:
    """Return distances in voxels on the whole grid, NaN where there are none."""
    grid = np.full((resolution,) * 3, np.nan)
    grid[tuple(field[0].numpy().T)] = field[1].double().numpy() * band
    return grid


def samples(resolution: int) -> np.ndarray:
    steps = (np.arange(resolution) + 0.5) / resolution - 0.5
    return np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)


def capsule(p: np.ndarray) -> np.ndarray:
    along = np.clip((p - A) @ (B - A) / ((B - A) @ (B - A)), 0, 1)[..., None]
    return np.linalg.norm(p - A - along * (B - A), axis=-1) - 0.06


def cylinder(p: np.ndarray) -> np.ndarray:
    axis = (B - A) / np.linalg.norm(B - A)
    z = (p - (A + B) / 2) @ axis
    across = np.linalg.norm(p - (A + B) / 2 - z[..., None] * axis, axis=-1) - 0.06
    return box_of(np.stack([across, np.abs(z) - np.linalg.norm(B - A) / 2], -1))


def box_of(beyond: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(-1), 0)


def tube(p: np.ndarray) -> np.ndarray:
    """A wall between the radii 0.2 and 0.3."""
    rho = np.hypot(p[..., 0], p[..., 1])
    return box_of(np.stack([np.maximum(0.2 - rho, rho - 0.3), np.abs(p[..., 2]) - 0.25], -1))


def torus(p: np.ndarray) -> np.ndarray:
    return np.hypot(np.hypot(p[..., 0], p[..., 1]) - 0.3, p[..., 2]) - 0.07


PLAIN = {
    "capsule": (bar(A, B, 0.12, "round"), capsule),
    "cylinder": (bar(A, B, 0.12, "cylinder"), cylinder),
    "box": (part((0, 0, 0.1), (0.3, 0.1, 0.03)), lambda p: box_of(np.abs(p - (0, 0, 0.1)) - (0.3, 0.1, 0.03))),
    "tube": (part((0, 0, 0), (0.05, np.inf, 0.25), ring=0.25), tube),
    "torus": (part((0, 0, 0), (0, np.inf, 0), ring=0.3, round=0.07), torus),
    "disc": (
        part((0, 0, 0), (0.4, np.inf, 0.02), ring=0.0),
        lambda p: box_of(np.stack([np.hypot(p[..., 0], p[..., 1]) - 0.4, np.abs(p[..., 2]) - 0.02], -1)),
    ),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("band", [1.5, 3.0])
def test_a_part_is_what_its_formula_says(name: str, band: float) -> None:
    solids, formula = PLAIN[name]
    found = dense(solids.field(R, band=band), R, band)
    truth = formula(samples(R)) * R
    sure = np.abs(np.abs(truth) - band) > 1e-4
    assert np.array_equal(~np.isnan(found)[sure], (np.abs(truth) <= band)[sure])
    here = ~np.isnan(found)
    np.testing.assert_allclose(found[here], truth[here], atol=2e-4)


def crossing() -> tuple[Solids, trimesh.Trimesh]:
    """Bars of different sides that cross askew, and a plate through them; and the boolean union of their meshes."""
    rng = np.random.default_rng(5)
    parts, meshes = [], []
    for half in ((0.4, 0.06, 0.05), (0.05, 0.42, 0.07), (0.06, 0.05, 0.4), (0.3, 0.3, 0.02)):
        turn, _ = np.linalg.qr(np.eye(3) + 0.3 * rng.normal(size=(3, 3)))
        turn *= np.linalg.det(turn)
        parts.append(part((0, 0, 0.01), half).turned(torch.from_numpy(turn)))
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn, turn @ (0, 0, 0.01)
        meshes.append(trimesh.creation.box(2 * np.array(half), matrix))
    return Solids.joined(parts), trimesh.boolean.union(meshes, engine="manifold")


@pytest.mark.parametrize("resolution", [32, 48])
def test_a_union_is_what_the_voxelizer_makes_of_its_mesh(resolution: int) -> None:
    solids, mesh = crossing()
    index, distance = solids.field(resolution)
    other = voxelize(
        torch.tensor(np.asarray(mesh.vertices)),
        torch.tensor(np.asarray(mesh.faces)),
        resolution=resolution,
        watertight=True,
    )
    ours, theirs = dense((index, distance), resolution), dense((other.index, other.distance), resolution)
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    # Only samples at the very end of the band may be in one alone.
    ends = np.concatenate([ours[~both & ~np.isnan(ours)], theirs[~both & ~np.isnan(theirs)]])
    assert (np.abs(ends) > 2.98).all()
    surface = np.abs(theirs[both]) < 1e-3
    assert np.array_equal((ours[both] < 0)[~surface], (theirs[both] < 0)[~surface])
    error = np.abs(ours[both] - theirs[both])
    assert error[theirs[both] > 0].max() < 1e-3
    assert np.quantile(error, 0.999) < 2e-3
    assert error.max() < 0.15
    least = np.full((resolution,) * 3, np.inf)
    for number in range(4):
        alone = Solids(**{key: value[number : number + 1] for key, value in vars(solids).items()})
        least = np.fmin(least, dense(alone.field(resolution), resolution))
    assert (least[both] - theirs[both]).max() > 0.3  # the smallest of the parts' distances would be wrong there


def test_what_is_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the grid"):
        part((5, 5, 5), (0.1, 0.1, 0.1)).field(32)


def test_a_shape_that_may_have_too_many_voxels_loses_parts_before_any_is_computed() -> None:
    bounded = 0
    for seed in range(20):
        free = thin_shape(np.random.default_rng(seed), 64)
        shape = thin_shape(np.random.default_rng(seed), 64, most=30_000)
        assert shape.most_voxels(64) <= 30_000
        assert shape.fitted(LONGEST_SIDE)[1] == pytest.approx(1)
        fits = free.most_voxels(64) <= 30_000
        assert not fits or torch.equal(free.center, shape.center)
        walls = 2 * (torch.minimum(shape.half.amin(1), shape.half[:, 0]) + shape.round) * 64
        assert float(walls.min()) <= THICKEST * 1.01
        bounded += not fits
    assert 5 < bounded < 20
    with pytest.raises(ValueError, match="at most 100 voxels"):
        thin_shape(np.random.default_rng(0), 64, most=100)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), resolution=st.sampled_from([33, 48]))
def test_thin_shapes_fill_the_cube_and_their_fields_are_distances(seed: int, resolution: int) -> None:
    shape = thin_shape(np.random.default_rng(seed), resolution)
    _, factor = shape.fitted(LONGEST_SIDE)
    assert factor == pytest.approx(1)
    thickness = 2 * (torch.minimum(shape.half.amin(1), shape.half[:, 0]) + shape.round) * resolution
    assert THINNEST * 0.99 <= float(thickness.min()) <= THICKEST * 1.01
    index, distance = shape.field(resolution)
    assert len(index) <= shape.most_voxels(resolution)
    again = thin_shape(np.random.default_rng(seed), resolution).field(resolution)
    assert torch.equal(index, again[0])
    assert torch.equal(distance, again[1])
    keys = (index[:, 0].long() * resolution + index[:, 1]) * resolution + index[:, 2]
    assert bool((keys.diff() > 0).all())
    assert float(distance.abs().max()) <= 1
    assert int(index.min()) >= 0
    assert int(index.max()) < resolution
    grid = dense((index, distance), resolution)
    for axis in range(3):  # neighbors differ by at most a step
        steps = np.abs(np.diff(grid, axis=axis))
        assert np.nanmax(steps, initial=0) <= 1 + 0.1
    # As the voxelizer does, every sample up to the band is there: next to one that isn't there is none well within.
    missing = np.isnan(np.diff(grid, axis=0)) & ~np.isnan(grid[:-1])
    assert (np.abs(grid[:-1][missing]) > 2 - 0.1).all()
