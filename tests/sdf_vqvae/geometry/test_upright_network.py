"""The network that says which way is up, on the objects of `examples/`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.geometry.mesh import load_mesh
from sdf_vqvae.geometry.up import UP_AXES, lay_back, rotation
from sdf_vqvae.geometry.upright_network import GRID, guess_up, surface_grid, turned_grids, turns_to_upright, usual_up


@pytest.fixture(scope="module")
def chair(repository) -> trimesh.Trimesh:
    return load_mesh(repository / "examples" / "chair.glb")


def standing_along(mesh: trimesh.Trimesh, up: str) -> trimesh.Trimesh:
    """Return a mesh that stands along +y, turned so that another axis of its own is up."""
    return trimesh.Trimesh(lay_back(np.asarray(mesh.vertices), up), mesh.faces, process=False)


@pytest.mark.parametrize("up", UP_AXES)
def test_a_chair_is_found_to_stand_as_it_does(chair, up):
    guess = guess_up(standing_along(chair, up))
    assert guess.up == up and guess.probability > 0.99
    assert guess.probability == pytest.approx(guess_up(chair).probability, abs=1e-3)


@pytest.mark.parametrize("name", ["chair", "lamp", "rocket", "plane", "mug"])
def test_the_objects_of_the_examples_stand_along_y_or_z(repository, name):
    mesh = load_mesh(repository / "examples" / f"{name}.glb")
    assert usual_up(mesh).up == "y"
    assert usual_up(standing_along(mesh, "z")).up == "z"


def test_where_the_shape_says_nothing_the_usual_axis_is_taken():
    cube = trimesh.creation.box((1, 1, 1))
    assert guess_up(cube).probability == pytest.approx(1 / 6, abs=0.02)
    assert usual_up(cube).up == "z" and usual_up(cube).probability == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize("up", UP_AXES)
def test_turns_bring_an_axis_up_and_are_rotations(up):
    grid = torch.zeros(1, GRID, GRID, GRID)
    cells = (torch.tensor([[1, 2, 3], [4, 20, 9], [30, 5, 6]]).double() + 0.5) / GRID - 0.5
    source = lay_back(cells.numpy(), up)
    grid[(0, *((torch.from_numpy(source) + 0.5) * GRID).long().T)] = 1
    found = []
    for turn in turns_to_upright(up):
        turned = turned_grids(grid, turn)[0].nonzero()
        assert sorted(turned[:, 1].tolist()) == [2, 5, 20]  # heights are those of the object that stands
        matrix = np.eye(3)[list(turn[0])]
        matrix[list(turn[1])] *= -1
        assert np.linalg.det(matrix) == pytest.approx(1)
        found.append(matrix)
    assert len(found) == 4 and any(np.array_equal(matrix, rotation(up)) for matrix in found)


def test_what_cannot_be_looked_at_is_refused():
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(ValueError, match="no usable area"):
        surface_grid(flat)
    with pytest.raises(ValueError, match="axes must be some of"):
        guess_up(trimesh.creation.box(), ("up",))
    with pytest.raises(ValueError, match="shares must be a positive number"):
        guess_up(trimesh.creation.box(), ("y", "z"), (1.0, 0.0))
