"""Labels of scans become closed, smooth surfaces of the same volume, in millimetres, at any spacing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry import volume
from sdf_vqvae.geometry.face_repair import is_watertight
from sdf_vqvae.geometry.volume import label_surface


@pytest.fixture(autouse=True)
def coarse_surfaces(monkeypatch):
    """Half the cells: the tests are about shapes, and a quarter of the triangles shows them as well."""
    monkeypatch.setattr(volume, "_CELLS", 64)


def affine_of(spacing, origin=(0.0, 0.0, 0.0)):
    matrix = np.diag([*spacing, 1.0])
    matrix[:3, 3] = origin
    return matrix


def ball(radius, spacing, center=(0.3, 0.1, -0.2)):
    """Return the voxels of a ball, and an affine whose origin makes `center` its center in millimetres."""
    shape = [int(2 * radius / s) + 7 for s in spacing]
    origin = [-(n // 2) * s for n, s in zip(shape, spacing, strict=True)]
    grid = np.meshgrid(*(o + s * np.arange(n) for o, s, n in zip(origin, spacing, shape, strict=True)), indexing="ij")
    return sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2, affine_of(spacing, origin)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 3.0, 3.0), (1.0, 1.0, 4.0), (5.0, 0.8, 1.0)])
def test_a_ball_keeps_radius_place_and_volume_at_any_spacing(spacing):
    mask, affine = ball(20, spacing)
    surface = label_surface(mask, affine)
    radii = np.linalg.norm(surface.mesh.vertices - [0.3, 0.1, -0.2], axis=1)
    assert radii.mean() == pytest.approx(20, abs=0.03 * max(spacing))
    assert radii.std() < 0.1 * max(spacing)
    assert np.abs(radii - 20).max() < 0.6 * max(spacing)
    assert surface.mesh_ml == pytest.approx(surface.label_ml, rel=1e-3)
    assert surface.label_ml == pytest.approx(mask.sum() * math.prod(spacing) / 1000)
    assert surface.mesh.is_watertight
    assert surface.mesh.volume > 0


def test_a_ball_has_no_staircase():
    mask, affine = ball(30, (3.0, 3.0, 3.0))
    mesh = label_surface(mask, affine).mesh
    outwards = mesh.triangles_center - [0.3, 0.1, -0.2]
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    angles = np.degrees(np.arccos(np.clip((mesh.face_normals * outwards).sum(1), -1, 1)))
    # A staircase has faces along the axes only: 35 degrees in the mean.
    assert np.average(angles, weights=mesh.area_faces) < 5


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 1), (5, 5, 1), (1, 2, 9)])
def test_a_label_one_voxel_thick_survives_with_its_volume(shape):
    surface = label_surface(np.ones(shape, dtype=bool), affine_of((3, 3, 3)))
    assert surface.mesh_ml == pytest.approx(math.prod(shape) * 0.027, rel=1e-3)
    assert surface.voxels == math.prod(shape)
    assert surface.mesh.is_watertight
    assert surface.mesh.body_count == 1


def test_a_thin_part_of_a_large_label_stays_attached():
    mask, affine = ball(12, (1.0, 1.0, 1.0))
    middle = mask.shape[1] // 2
    mask = np.concatenate([mask, np.zeros_like(mask)])
    mask[mask.shape[0] // 4 :, middle, middle] = True
    surface = label_surface(mask, affine)
    assert surface.mesh.body_count == 1
    assert surface.mesh.bounds[1, 0] == pytest.approx(mask.shape[0] - 0.5 + affine[0, 3], abs=0.8)


def test_a_label_at_the_border_of_the_scan_is_closed_there():
    mask, affine = ball(20, (1.0, 1.0, 1.0))
    cut = mask[: mask.shape[0] // 2]
    surface = label_surface(cut, affine)
    assert surface.mesh.is_watertight
    assert surface.mesh.bounds[1, 0] == pytest.approx(cut.shape[0] - 0.5 + affine[0, 3], abs=0.5)
    assert surface.mesh_ml == pytest.approx(cut.sum() / 1000, rel=1e-3)


def test_a_cavity_stays_hollow():
    mask, affine = ball(16, (1.0, 1.0, 1.0))
    inner, _ = ball(8, (1.0, 1.0, 1.0))
    low = [(a - b) // 2 for a, b in zip(mask.shape, inner.shape, strict=True)]
    mask[tuple(slice(b, b + n) for b, n in zip(low, inner.shape, strict=True))] &= ~inner
    surface = label_surface(mask, affine)
    assert surface.mesh.body_count == 2
    assert surface.mesh_ml == pytest.approx(mask.sum() / 1000, rel=1e-3)


def test_blocks_leave_no_seam(monkeypatch):
    mask, affine = ball(14, (1.0, 1.0, 2.0))
    whole = label_surface(mask, affine)
    monkeypatch.setattr(volume, "_BLOCK", 9)
    parts = label_surface(mask, affine)
    assert len(parts.mesh.faces) == len(whole.mesh.faces)
    assert np.abs(np.sort(parts.mesh.vertices, axis=0) - np.sort(whole.mesh.vertices, axis=0)).max() < 1e-4


def test_mirrored_and_turned_axes_give_the_same_organ_in_millimetres():
    mask, affine = ball(15, (1.0, 1.0, 3.0))
    mask[: mask.shape[0] // 3] = False  # no longer symmetric
    plain = label_surface(mask, affine)
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = mask.shape[0] - 1
    for other, matrix in (
        (mask[::-1], affine @ flip),
        (mask.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]),
    ):
        surface = label_surface(other, matrix)
        assert np.allclose(surface.mesh.bounds, plain.mesh.bounds, atol=1e-3)
        assert surface.mesh.volume == pytest.approx(plain.mesh.volume, rel=1e-4)  # positive: faces look outwards


def test_the_field_is_that_of_the_ball_and_leads_back_to_millimetres():
    mask, affine = ball(30, (1.5, 1.5, 3.0))
    field = SparseSDF.from_label(label_surface(mask, affine), 64, device="cpu")
    assert (field.sign_method, field.watertight) == ("volume", True)
    assert (field.field.kind, field.field.unit, field.field.band) == ("sdf", "band", 3.0)
    world = (field.index.double() + 0.5) / 64 - 0.5
    mm = (world / field.scale + torch.tensor(field.center, dtype=torch.float64)).numpy()
    expected = (np.linalg.norm(mm - [0.3, 0.1, -0.2], axis=1) - 30) * field.scale * 64 / 3
    assert np.abs(field.sdf.numpy() - np.clip(expected, -1, 1)).mean() < 0.1
    assert np.abs(field.sdf.numpy() - np.clip(expected, -1, 1)).max() < 0.5
    assert field.scale * 60 == pytest.approx(0.95, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(mask=arrays(bool, st.tuples(*[st.integers(1, 5)] * 3)), z=st.sampled_from([0.5, 1.0, 6.0]))
def test_any_label_has_a_closed_surface_of_its_volume(mask, z):
    if not mask.any():
        with pytest.raises(ValueError, match="no voxel"):
            label_surface(mask, affine_of((1, 1, z)))
        return
    surface = label_surface(mask, affine_of((1, 1, z)))
    assert is_watertight(np.asarray(surface.mesh.faces))
    assert surface.mesh_ml == pytest.approx(surface.label_ml, rel=0.01)


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.diag([1, 1, 0, 1]), "spacing of a scan must be positive"),
        (np.diag([1, 1, 1e6, 1]), "less than 100 times"),
        (np.diag([1, np.nan, 1, 1]), "finite"),
        (np.eye(3), r"\[4, 4\]"),
        ([[1, 1, 0, 0], [0, 0.01, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "one plane"),
    ],
)
def test_an_affine_that_is_no_grid_is_refused(affine, message):
    with pytest.raises(ValueError, match=message):
        label_surface(np.ones((2, 2, 2), dtype=bool), affine)


def test_a_mask_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="bool"):
        label_surface(np.ones((2, 2, 2), dtype=np.uint8), np.eye(4))


def test_a_slanted_wing_one_voxel_thick_stays_in_one_piece_with_its_thick_body():
    x, y, z = np.indices((64, 24, 30))
    mask = (x == (0.5 * y + 0.33 * z + 3).astype(int)) & (y > 1) & (y < 22) & (z > 1) & (z < 28)
    mask |= (x - 10) ** 2 + (y - 14) ** 2 + (z - 14) ** 2 <= 81
    surface = label_surface(mask, affine_of((1, 1, 1)))
    assert surface.mesh.body_count == 1  # 8 if the wing is smoothed like the body
