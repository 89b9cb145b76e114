"""Reading, normalizing and writing meshes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import trimesh
from trimesh.transformations import rotation_matrix, translation_matrix

from sdf_vqvae.geometry.formats.registry import WRITABLE
from sdf_vqvae.geometry.mesh import (
    LONGEST_SIDE,
    READABLE,
    load_mesh,
    normalize_mesh,
    to_source_units,
    write_mesh,
)


def mesh_of(vertices, faces):
    return trimesh.Trimesh(np.asarray(vertices, dtype=float), np.asarray(faces), process=False)


def two_boxes() -> trimesh.Scene:
    scene = trimesh.Scene()
    box = trimesh.creation.box()
    scene.add_geometry(box, transform=translation_matrix([3, 0, 0]) @ rotation_matrix(np.pi / 4, [0, 0, 1]))
    scene.add_geometry(box.copy(), transform=translation_matrix([-3, 0, 0]))
    return scene


@pytest.mark.parametrize("suffix", WRITABLE)
def test_every_written_format_reads_back_as_the_same_shape(tmp_path, suffix):
    shape = trimesh.creation.icosphere(subdivisions=2)
    write_mesh(tmp_path / f"ball{suffix}", shape)
    back = normalize_mesh(load_mesh(tmp_path / f"ball{suffix}"))
    assert back.watertight
    assert len(back.faces) == len(shape.faces)
    restored = back.vertices.numpy() / back.scale + back.center
    np.testing.assert_allclose(np.sort(restored, axis=0), np.sort(shape.vertices, axis=0), atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == [f"ball{suffix}"]


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_a_scene_is_flattened_with_the_transforms_of_its_nodes(tmp_path, suffix):
    exported = two_boxes().export(file_type=suffix[1:])
    for name, data in (exported if isinstance(exported, dict) else {"model.glb": exported}).items():
        (tmp_path / name).write_bytes(data)
    mesh = load_mesh(tmp_path / f"model{suffix}")
    half_diagonal = 2**0.5 / 2
    np.testing.assert_allclose(mesh.bounds, [[-3.5, -half_diagonal, -0.5], [3 + half_diagonal, half_diagonal, 0.5]])
    assert mesh.volume == pytest.approx(2)


def test_the_longest_side_fills_the_cube_and_the_affine_returns_the_source():
    source = trimesh.creation.box(extents=[2, 40, 10], transform=translation_matrix([100, -7, 3]))
    found = normalize_mesh(source)
    extent = np.ptp(found.vertices.numpy(), axis=0)
    np.testing.assert_allclose(extent, np.array([2, 40, 10]) / 40 * LONGEST_SIDE)
    np.testing.assert_allclose(found.vertices.numpy().mean(axis=0), 0, atol=1e-12)
    world = trimesh.Trimesh(found.vertices.numpy(), found.faces.numpy(), process=False)
    np.testing.assert_allclose(to_source_units(world, found.center, found.scale).bounds, source.bounds)


def test_equal_vertices_are_welded_and_collapsed_faces_dropped():
    box = trimesh.creation.box()
    soup = np.concatenate([box.vertices[box.faces].reshape(-1, 3), [[9, 9, 9]]])
    faces = np.concatenate([np.arange(36).reshape(-1, 3), [[0, 1, 1]]])
    found = normalize_mesh(mesh_of(soup, faces))
    assert found.vertices.shape == (8, 3)  # the vertex that no face uses doesn't count, nor for the size
    assert found.faces.shape == (12, 3)
    assert found.watertight


def test_zero_and_minus_zero_are_one_place():
    vertices = [[0.0, 0, 0], [-0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1, -1, 0]]
    assert len(normalize_mesh(mesh_of(vertices, [[0, 2, 3], [1, 4, 2]])).vertices) == 4


def test_a_flat_mesh_is_fine_and_a_point_is_not():
    flat = normalize_mesh(mesh_of([[0, 0, 5], [1, 0, 5], [0, 2, 5]], [[0, 1, 2]]))
    assert flat.vertices[:, 2].abs().max() == 0
    with pytest.raises(ValueError, match="two equal corners"):
        normalize_mesh(mesh_of([[1, 1, 1]] * 3, [[0, 1, 2]]))


@pytest.mark.parametrize(
    ("vertices", "faces", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3), int), "no faces"),
        ([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], "not finite"),
        ([[0, 0, 0], [1, 0, 0], [0, np.inf, 0]], [[0, 1, 2]], "not finite"),
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 3]], r"0\.\.2, got 0\.\.3"),
        ([[0, 0, 0], [1e-320, 0, 0], [0, 1e-320, 0]], [[0, 1, 2]], "no usable extent"),
    ],
)
def test_a_mesh_that_cannot_be_used_is_named_in_one_line(vertices, faces, message):
    with pytest.raises(ValueError, match=message) as error:
        normalize_mesh(mesh_of(vertices, faces))
    assert "\n" not in str(error.value)


def test_huge_coordinates_do_not_overflow():
    found = normalize_mesh(mesh_of([[-8e307, 0, 0], [8e307, 0, 0], [1, 1e308, 0]], [[0, 1, 2]]))
    assert np.ptp(found.vertices.numpy()[:, 0]) == pytest.approx(LONGEST_SIDE)


def test_a_missing_file_an_unknown_suffix_and_a_point_cloud_are_errors(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_mesh(tmp_path / "none.glb")
    (tmp_path / "a.docx").write_bytes(b"")
    with pytest.raises(ValueError, match="docx"):
        load_mesh(tmp_path / "a.docx")
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "points.ply")
    with pytest.raises(ValueError, match="no triangle"):
        load_mesh(tmp_path / "points.ply")
    with pytest.raises(ValueError, match="cannot write"):
        write_mesh(tmp_path / "a.docx", trimesh.creation.box())


@pytest.mark.parametrize("suffix", READABLE)
def test_a_damaged_file_is_a_mesh_or_one_line(tmp_path, suffix):
    exported = two_boxes().export(file_type=suffix[1:]) if suffix != ".off" else None
    if exported is None:
        exported = trimesh.creation.box().export(file_type="off")
    if isinstance(exported, dict):  # glTF: the text beside its buffers
        for name, data in exported.items():
            (tmp_path / name).write_bytes(data)
        exported = exported["model.gltf"]
    data = exported.encode() if isinstance(exported, str) else exported
    file = tmp_path / f"damaged{suffix}"
    for seed in range(60):
        chance = random.Random(seed)
        broken = bytearray(data)
        if seed % 3 == 0:
            broken = broken[: chance.randrange(len(broken))]
        else:
            for _ in range(chance.randrange(1, 10)):
                broken[chance.randrange(len(broken) if seed % 3 == 1 else 200)] = chance.randrange(256)
        file.write_bytes(bytes(broken))
        try:
            normalize_mesh(load_mesh(file))
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    target = tmp_path / "a.glb"
    write_mesh(target, trimesh.creation.box())
    before = target.read_bytes()
    broken = trimesh.creation.box()

    def fail(path, **_):
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(broken, "export", fail)
    with pytest.raises(OSError, match="full"):
        write_mesh(target, broken)
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.glb"]
