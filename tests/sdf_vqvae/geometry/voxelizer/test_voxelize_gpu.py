"""The voxelizer on CUDA against its plain twins and the exact sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.voxelizer import bricks_reference
from sdf_vqvae.geometry.voxelizer.batch import MeshBatch
from sdf_vqvae.geometry.voxelizer.boundary import boundary_of
from sdf_vqvae.geometry.voxelizer.boundary_reference import strips_share_reference
from sdf_vqvae.geometry.voxelizer.bricks import Bricks
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize, voxelize_batch
from sdf_vqvae.geometry.voxelizer.winding import winding_number

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
BAND = 3.0


def shapes() -> list[trimesh.Trimesh]:
    colander = trimesh.creation.icosphere(subdivisions=3)
    colander.update_faces(np.random.default_rng(0).random(len(colander.faces)) < 0.8)
    square = trimesh.Trimesh(
        [[0, 0, 0], [1, 0, 0.2], [1, 1, 0.4], [0, 1, 0.2]], [[0, 1, 2], [0, 2, 3]], process=False
    )
    turned = trimesh.creation.torus(1.0, 0.3)
    turned.invert()
    return [colander, square, trimesh.creation.box((1, 0.4, 0.1)), turned, trimesh.creation.icosphere(subdivisions=2)]


def on_gpu() -> list[tuple[torch.Tensor, torch.Tensor, bool]]:
    return [(m.vertices.cuda(), m.faces.cuda(), m.watertight) for m in map(normalize_mesh, shapes())]


def batch_on_gpu(resolution: int) -> MeshBatch:
    return MeshBatch.of([(vertices, faces) for vertices, faces, _ in on_gpu()], resolution)


@pytest.mark.parametrize("resolution", [30, 64])
def test_kernels_equal_their_plain_twins(resolution):
    batch = batch_on_gpu(resolution)
    one, other = Bricks(batch, resolution, BAND), Bricks(batch, resolution, BAND, using=bricks_reference)
    assert torch.equal(one.near()[0], other.near()[0])
    assert torch.equal(one.origins, other.origins)
    torch.testing.assert_close(one.squared, other.squared, atol=1e-4, rtol=1e-5)
    # A ray within rounding of an edge may take either of its triangles, which cross it at the same height.
    assert float((one.crossings() != other.crossings()).float().mean()) < 1e-5


def test_a_crossing_between_two_bricks_is_counted_once():
    # A prism with slopes of 45 degrees and corners on samples: its faces cross rays at whole heights, where rounding
    # decides between two bricks.
    corners = torch.tensor([[8, 0, 0], [40, 0, 32], [56, 0, 16], [24, 0, -16]], dtype=torch.float64)
    vertices = torch.cat([corners + torch.tensor([0, 4, 20]), corners + torch.tensor([0, 52, 20])])
    faces = [[0, 1, 2], [0, 2, 3], [4, 6, 5], [4, 7, 6]]
    faces += [f for i, j in ((0, 1), (1, 2), (2, 3), (3, 0)) for f in ([i, i + 4, j], [j, i + 4, j + 4])]
    for offset in (0.0, 0.3, 1e-6, 0.123456789):
        moved = (vertices + offset + 0.5) / 64 - 0.5
        batch = MeshBatch.of([(moved.cuda(), torch.tensor(faces, device="cuda"))], 64)
        one, other = Bricks(batch, 64, BAND), Bricks(batch, 64, BAND, using=bricks_reference)
        assert torch.equal(one.origins, other.origins)
        off_surface = (one.squared > 1e-6) & (one.squared <= BAND**2)
        assert torch.equal(one.crossings()[off_surface], other.crossings()[off_surface])
        assert bool((one.crossings()[off_surface] != 0).any())


def test_strips_equal_their_plain_twin():
    from sdf_vqvae.geometry.voxelizer.boundary_triton import interpolated_strips_share, strips_share

    batch = batch_on_gpu(64)
    bricks, boundary = Bricks(batch, 64, BAND), boundary_of(batch)
    index, place = bricks.near()
    mesh = bricks.mesh[place >> 9]
    exact = strips_share(index, mesh, boundary)
    quick = interpolated_strips_share(bricks.origins, bricks.mesh, bricks.places(), 64, boundary)
    assert quick is not None and len(boundary) > 100
    torch.testing.assert_close(quick.view(-1)[place], exact, atol=0.005, rtol=0)
    for number in range(len(batch)):
        own = mesh == number
        expected = strips_share_reference(index[own].double(), boundary.of_mesh(number)).float()
        torch.testing.assert_close(exact[own], expected, atol=1e-3, rtol=0)


def test_a_batch_has_the_fields_of_its_meshes_with_the_signs_of_the_exact_sum():
    meshes = on_gpu()
    for (vertices, faces, closed), field in zip(meshes, voxelize_batch(meshes, resolution=100), strict=True):
        alone = voxelize(vertices, faces, resolution=100, watertight=closed)
        assert torch.equal(alone.index, field.index) and alone.sign_method == field.sign_method
        torch.testing.assert_close(alone.distance, field.distance, atol=1e-5, rtol=0)
        if field.sign_method == "winding":
            winding = winding_number(field.index.double(), ((vertices + 0.5) * 100 - 0.5)[faces])
            turned = -1 if float((winding < -0.5).float().mean()) > 0.1 else 1
            sure = ((winding * turned - 0.5).abs() > 0.01) & (field.distance.abs() * BAND > 1e-2)
            assert torch.equal((field.distance < 0)[sure], (winding * turned > 0.5)[sure])


def test_cuda_gives_the_field_of_the_cpu():
    pytest.importorskip("numba")
    for mesh in map(normalize_mesh, shapes()):
        here = voxelize(mesh.vertices, mesh.faces, resolution=100, watertight=mesh.watertight)
        there = voxelize(mesh.vertices.cuda(), mesh.faces.cuda(), resolution=100, watertight=mesh.watertight)
        assert torch.equal(here.index, there.index.cpu()) and here.sign_method == there.sign_method
        torch.testing.assert_close(here.distance, there.distance.cpu(), atol=1e-4, rtol=0)


def test_meshes_whose_samples_pass_the_reach_of_32_bits_are_not_mixed_up():
    if torch.cuda.mem_get_info()[0] < 60 << 30:
        pytest.skip("needs 60 GiB of the GPU's memory")
    sphere = normalize_mesh(trimesh.creation.icosphere(subdivisions=3))
    mesh = (sphere.vertices.cuda(), sphere.faces.cuda())
    alone = Bricks(MeshBatch.of([mesh], 512), 512, 1.0)
    own = len(alone.origins)
    count = 2**31 // (own * 512) + 2
    many = Bricks(MeshBatch.of([mesh] * count, 512), 512, 1.0)
    assert many.squared.numel() > 2**31
    crossings = many.crossings()
    for number in (0, count - 1):
        part = slice(number * own, (number + 1) * own)
        assert torch.equal(many.origins[part], alone.origins)
        torch.testing.assert_close(many.squared[part], alone.squared, atol=1e-5, rtol=0)
        assert torch.equal(crossings[part], alone.crossings())
