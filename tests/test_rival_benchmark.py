"""The rival design of `benchmarks/rival`: its voxels, tokens, size and the readings of its grids."""

from __future__ import annotations

import meshes
import network
import numpy as np
import occupancy
import pytest
import torch
import trimesh

from sdf_vqvae.geometry.mesh import LONGEST_SIDE
from sdf_vqvae.geometry.metrics.surface_voxels import surface_voxels


def test_occupied_voxels_are_those_that_the_metrics_find():
    rng = np.random.default_rng(0)
    small = rng.uniform(1, 60, (300, 1, 3)) + rng.normal(0, 0.7, (300, 3, 3))
    corners = np.concatenate([small, rng.uniform(0, 64, (40, 3, 3))])
    assert np.array_equal(
        occupancy.occupied_voxels(corners),
        surface_voxels(corners.reshape(-1, 3) / 64 - 0.5, np.arange(3 * len(corners)).reshape(-1, 3)),
    )


def test_a_wall_between_two_voxels_belongs_to_one_of_them_whatever_its_triangles():
    large = np.array([[[10.0, 0, 0], [10, 64, 0], [10, 0, 64]]])
    small = np.array([[[10.0, 3, 3], [10, 3.5, 3], [10, 3, 3.5]]])
    for corners in (large, small):
        assert set(occupancy.occupied_voxels(corners).nonzero()[0].tolist()) == {10}


def test_grids_survive_packing_and_turning():
    grids = torch.rand(3, 64, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.1
    bits = torch.from_numpy(np.stack([occupancy.packed(grid) for grid in grids.numpy()]))
    assert bits.shape == (3, 32768)
    assert torch.equal(occupancy.unpacked(bits), grids)
    assert np.array_equal(np.unpackbits(bits[0].numpy(), bitorder="little"), grids[0].reshape(-1).numpy())
    turned = occupancy.turned(grids, torch.Generator().manual_seed(0))
    assert not torch.equal(turned, grids)
    assert torch.equal(turned.flatten(1).sum(1), grids.flatten(1).sum(1))


def test_the_network_keeps_to_its_budget_and_to_1024_tokens():
    with torch.device("meta"):
        count = network.parameter_count(network.DenseOccupancyVQVAE(network.config_for(10_000_000)))
    assert 9_000_000 < count <= 10_000_000
    with pytest.raises(ValueError, match="at least"):
        network.config_for(1000)
    vae = network.DenseOccupancyVQVAE(network.RivalConfig(widths=(8, 8, 8), blocks=1)).eval()
    codes = vae.encode(torch.zeros(1, 64, 64, 64, dtype=torch.bool))
    assert codes.shape == (1, 1024)
    assert vae.decode(codes).shape == (1, 64, 64, 64)


def test_a_token_is_four_cells_in_a_row():
    grids = torch.zeros(1, 64, 64, 64, dtype=torch.bool)
    grids[0, 5, 9, 40] = True
    surface = network.tokens_of_surface(grids)
    assert surface.nonzero().tolist() == [[(1 * 16 + 2) * 4 + 2]]
    cells = torch.zeros(1, 8, 16, 16, 16)
    cells[0, :, 1, 2, 10] = 1  # the cell that holds the voxel
    vae = network.DenseOccupancyVQVAE(network.RivalConfig(widths=(8, 8, 8), blocks=1))
    vae.encoder = _Answers(cells)
    assert vae.latent(grids).abs().sum(1).nonzero().tolist() == surface.nonzero().tolist()


class _Answers(torch.nn.Module):
    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_the_middle_of_the_shell_is_nearer_to_a_sphere_than_its_walls():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    grid = occupancy.occupied_voxels((ball.triangles + 0.5) * 64)
    levels = meshes.as_levels(torch.from_numpy(grid).float())
    errors = {}
    for reading in meshes.READINGS:
        mesh = meshes.mesh_of(levels, reading)
        radii = np.linalg.norm(mesh.vertices, axis=1) / LONGEST_SIDE
        errors[reading] = np.abs(radii - 0.5).mean() * 64
    assert errors["middle"] < 0.3 < errors["filled"]
    assert errors["middle"] < 0.5 * errors["shell"]
    assert meshes.mesh_of(np.zeros_like(levels), "middle") is None
