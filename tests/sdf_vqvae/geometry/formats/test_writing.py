"""Mesh files keep an object's own precision, wherever it stands and whatever its units."""

from __future__ import annotations

import json
import logging
import struct

import numpy as np
import pytest
import trimesh

from sdf_vqvae.geometry.formats.registry import WRITABLE
from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh, to_source_units, write_mesh
from sdf_vqvae.geometry.up import Up, up_of

BALL = trimesh.creation.icosphere(subdivisions=2)
UTM = (500000.25, 4649776.5, 231.0)
KEEPING = tuple(suffix for suffix in WRITABLE if suffix != ".stl")
PLACES = [
    pytest.param(1.0, (0, 0, 0), id="about the origin"),
    pytest.param(1.0, UTM, id="UTM"),
    pytest.param(1e-6, (0, 0, 0), id="micrometres"),
    pytest.param(1e-6, (0.3, -0.1, 7), id="micrometres far away"),
    pytest.param(1e9, (0, 0, 0), id="planets"),
    pytest.param(1e9, (1.5e15, 0, -2e14), id="planets far away"),
    pytest.param(3e-42, (0, 0, 0), id="below 32-bit floats"),
    pytest.param(1e60, (-3e64, 0, 0), id="beyond 32-bit floats"),
]


def ball(size: float, place) -> trimesh.Trimesh:
    return trimesh.Trimesh(BALL.vertices * size + place, BALL.faces, process=False)


def matched(back: trimesh.Trimesh, corners: np.ndarray) -> float:
    """Return how far the corners of the faces lie from the ones written, in the order of the faces."""
    return float(np.abs(np.asarray(back.vertices)[np.asarray(back.faces)] - corners).max())


@pytest.mark.parametrize(("size", "place"), PLACES)
@pytest.mark.parametrize("suffix", KEEPING)
def test_a_written_object_is_off_by_less_than_a_millionth_of_its_size(tmp_path, suffix, size, place):
    mesh = ball(size, place)
    assert write_mesh(tmp_path / f"ball{suffix}", mesh) is None
    expected = mesh.vertices[mesh.faces]
    for back in (load_mesh(tmp_path / f"ball{suffix}"), trimesh.load(tmp_path / f"ball{suffix}", process=False)):
        if isinstance(back, trimesh.Scene):
            back = back.to_mesh()
        assert matched(back, expected) < 1e-6 * size


@pytest.mark.parametrize("suffix", KEEPING)
def test_an_object_at_utm_coordinates_goes_through_the_world_cube_and_back_into_a_file(tmp_path, suffix):
    write_mesh(tmp_path / f"in{suffix}", ball(1, UTM))
    world = normalize_mesh(load_mesh(tmp_path / f"in{suffix}"))
    assert world.watertight
    unit = trimesh.Trimesh(world.vertices.numpy(), world.faces.numpy(), process=False)
    write_mesh(tmp_path / f"out{suffix}", to_source_units(unit, world.center, world.scale))
    radii = np.linalg.norm(load_mesh(tmp_path / f"out{suffix}").vertices - UTM, axis=1)
    np.testing.assert_allclose(radii, 1, atol=1e-6)


def gltf_of(file) -> dict:
    data = file.read_bytes()
    return json.loads(data[20 : 20 + struct.unpack_from("<I", data, 12)[0]])


def test_only_an_object_far_from_the_origin_is_put_in_its_place_by_a_glb_node(tmp_path):
    write_mesh(tmp_path / "near.glb", ball(1, (0, 3, 0)))
    assert gltf_of(tmp_path / "near.glb")["nodes"] == [{"name": "geometry_0", "mesh": 0}]
    write_mesh(tmp_path / "far.glb", ball(1, UTM))
    (node,) = gltf_of(tmp_path / "far.glb")["nodes"]
    assert node["matrix"][12:15] == [500000, 4649776, 231]  # doubles, of few digits


def test_stl_moves_a_distant_object_near_the_origin_and_says_by_how_much(tmp_path, caplog):
    mesh = ball(1, UTM)
    with caplog.at_level(logging.WARNING):
        taken = write_mesh(tmp_path / "ball.stl", mesh)
    assert taken == (500000, 4649776, 231)
    assert "500000.0, 4649776.0, 231.0 were taken" in caplog.text
    back = load_mesh(tmp_path / "ball.stl")
    assert matched(back, mesh.vertices[mesh.faces] - taken) < 1e-6
    assert (tmp_path / "ball.stl").read_bytes()[:41] == b"moved by -500000 -4649776 -231".ljust(41, b"\0")
    assert trimesh.load(tmp_path / "ball.stl").volume == pytest.approx(BALL.volume)


def test_stl_keeps_the_place_of_what_stands_where_scans_and_drawings_do(tmp_path):
    mesh = ball(5, (300, -450, 1200))
    assert write_mesh(tmp_path / "ball.stl", mesh) is None
    back = load_mesh(tmp_path / "ball.stl")
    assert matched(back, mesh.vertices[mesh.faces]) < 1e-4
    np.testing.assert_allclose(trimesh.load(tmp_path / "ball.stl").face_normals, mesh.face_normals, atol=1e-3)


def test_a_tiny_object_has_its_normals_in_stl(tmp_path):
    write_mesh(tmp_path / "ball.stl", ball(1e-6, (0, 0, 0)))
    rows = (tmp_path / "ball.stl").read_bytes()[84:]
    normals = np.frombuffer(rows, dtype=[("n", "<f4", 3), ("rest", "V38")])["n"]
    np.testing.assert_allclose(normals, BALL.face_normals, atol=1e-5)


def test_stl_refuses_what_no_32_bit_float_can_hold(tmp_path):
    with pytest.raises(ValueError, match=r"STL holds 32-bit floats, and none for an object of size 2e\+200"):
        write_mesh(tmp_path / "ball.stl", ball(1e200, (0, 0, 0)))
    assert list(tmp_path.iterdir()) == []


def test_a_large_mesh_is_written_as_text_in_whole_rows(tmp_path):
    mesh = trimesh.creation.icosphere(subdivisions=6)
    assert len(mesh.faces) > 2**16
    for suffix in (".obj", ".off"):
        write_mesh(tmp_path / f"ball{suffix}", mesh)
        assert matched(load_mesh(tmp_path / f"ball{suffix}"), mesh.vertices[mesh.faces]) < 1e-8


@pytest.mark.parametrize("suffix", WRITABLE)
@pytest.mark.parametrize("offset", [(0, 0, 0), UTM])
def test_a_file_says_which_of_its_axes_is_up_where_that_is_known(tmp_path, suffix, offset):
    write_mesh(tmp_path / f"says{suffix}", ball(1, offset), up="-x")
    write_mesh(tmp_path / f"silent{suffix}", ball(1, offset))
    assert up_of(tmp_path / f"says{suffix}") == Up(axis="-x", known_from="the file says so")
    assert up_of(tmp_path / f"silent{suffix}").known_from != "the file says so"
    says, silent = (load_mesh(tmp_path / f"{name}{suffix}") for name in ("says", "silent"))
    assert np.array_equal(says.vertices, silent.vertices) and np.array_equal(says.faces, silent.faces)
