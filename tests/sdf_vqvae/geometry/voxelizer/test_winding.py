"""Winding numbers: known values, agreement with libigl, and every way to compute them equal."""

from __future__ import annotations

import igl
import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.geometry.voxelizer import winding, winding_reference
from sdf_vqvae.geometry.voxelizer.winding import (
    checked_winding_number,
    winding_number,
)
from sdf_vqvae.geometry.voxelizer.winding_reference import winding_number_reference


def corners_of(mesh: trimesh.Trimesh) -> torch.Tensor:
    return torch.from_numpy(np.array(mesh.triangles))


def random_points(count: int, reach: float) -> torch.Tensor:
    return (torch.rand(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1) * reach


def test_one_inside_and_zero_outside_a_closed_mesh():
    corners = corners_of(trimesh.creation.box())
    points = random_points(500, 1.0)
    inside = (points.abs() < 0.5).all(1)
    torch.testing.assert_close(winding_number(points, corners), inside.double(), atol=1e-9, rtol=0)


def test_overlapping_solids_add_up_and_a_turned_one_subtracts():
    box = corners_of(trimesh.creation.box())
    center = torch.zeros(1, 3, dtype=torch.float64)
    assert winding_number(center, torch.cat([box, box])).item() == pytest.approx(2)
    assert winding_number(center, box.flip(1)).item() == pytest.approx(-1)
    assert winding_number(center, torch.cat([box, box.flip(1)])).item() == pytest.approx(0)


def test_half_near_one_side_of_an_open_sheet():
    sheet = torch.tensor([[[-9.0, -9, 0], [9, -9, 0], [0, 9, 0]]], dtype=torch.float64)
    above, below = winding_number(torch.tensor([[0, 0, 1e-6], [0, 0, -1e-6]], dtype=torch.float64), sheet)
    assert above.item() == pytest.approx(-0.5, abs=1e-5) and below.item() == pytest.approx(0.5, abs=1e-5)


def test_a_face_without_area_adds_nothing():
    box = corners_of(trimesh.creation.box())
    flat = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]], [[1, 1, 1]] * 3], dtype=torch.float64)
    points = random_points(100, 1.0)
    torch.testing.assert_close(winding_number(points, torch.cat([box, flat])), winding_number(points, box))


def test_equal_to_the_exact_sum_of_libigl_on_an_open_mesh():
    mesh = trimesh.creation.torus(1.0, 0.4)
    mesh.update_faces(np.arange(len(mesh.faces)) % 5 > 0)
    points = random_points(300, 1.5)
    expected = igl.winding_number(np.array(mesh.vertices), np.array(mesh.faces), points.numpy())
    np.testing.assert_allclose(winding_number(points, corners_of(mesh)), expected, atol=1e-9)
    single = winding_number(points.float(), corners_of(mesh).float())
    np.testing.assert_allclose(single, expected, atol=1e-4)


def test_chunks_do_not_change_the_sum(monkeypatch):
    corners, points = corners_of(trimesh.creation.icosphere(subdivisions=2)), random_points(50, 1.2)
    whole = winding_number_reference(points, corners)
    monkeypatch.setattr(winding_reference, "_PAIRS", {"cpu": 64})
    monkeypatch.setattr(winding_reference, "_TRIANGLES", 7)
    torch.testing.assert_close(winding_number_reference(points, corners), whole, atol=1e-12, rtol=0)


def test_the_approximation_never_decides_near_the_threshold(monkeypatch):
    mesh = trimesh.creation.torus(1.0, 0.4)
    mesh.update_faces(np.asarray(mesh.triangles_center)[:, 2] < 0.2)  # open at the top: values of all sizes
    points, corners = random_points(1500, 1.5), corners_of(mesh)
    monkeypatch.setattr(winding, "_EXACT_PAIRS", 0)
    exact = winding_number_reference(points, corners)
    assert torch.equal(checked_winding_number(points, corners) > 0.5, exact > 0.5)
    both = checked_winding_number(points, corners, levels=(0.5, -0.5))
    assert torch.equal(both > 0.5, exact > 0.5) and torch.equal(both < -0.5, exact < -0.5)
    assert float((both - exact).abs().max()) < winding._UNSURE / 2


def test_compiled_for_the_cpu_equals_its_plain_twin():
    from sdf_vqvae.geometry.voxelizer.winding_numba import (
        winding_number_numba,  # machines of the GPU tests have no Numba
    )

    mesh = trimesh.creation.torus(1.0, 0.4)
    mesh.update_faces(np.arange(len(mesh.faces)) % 5 > 0)
    points, corners = random_points(500, 1.5), corners_of(mesh)
    torch.testing.assert_close(
        winding_number_numba(points, corners), winding_number_reference(points, corners), atol=1e-9, rtol=0
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_the_kernel_equals_its_plain_twin():
    mesh = trimesh.creation.torus(1.0, 0.4)
    mesh.update_faces(np.arange(len(mesh.faces)) % 5 > 0)
    points, corners = random_points(1000, 1.5), corners_of(mesh)
    found = winding_number(points.cuda(), corners.cuda()).cpu().double()
    torch.testing.assert_close(found, winding_number_reference(points, corners), atol=1e-4, rtol=0)
