"""Which way is up: rotations, where the axis is known from, and one object standing in six ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trimesh
from trimesh.transformations import translation_matrix

from sdf_vqvae.fields.conversion import convert_field, field_in_world
from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import normalize_mesh, to_source_units
from sdf_vqvae.geometry.up import UP_AXES, Up, lay_back, rotation, stand_up, up_of
from sdf_vqvae.geometry.volume import label_surface

UNIT = {"x": (1, 0, 0), "y": (0, 1, 0), "z": (0, 0, 1), "-x": (-1, 0, 0), "-y": (0, -1, 0), "-z": (0, 0, -1)}


def chair() -> trimesh.Trimesh:
    """Five boxes of odd sizes, like nothing else when turned or mirrored, standing along +y away from the origin."""
    parts = [((1.03, 0.11, 0.97), (0.013, 0.5, 0)), ((1.01, 0.83, 0.09), (0, 0.9, -0.44))]
    parts += [((0.13, 0.53, 0.12), (x, 0.23, z)) for x, z in ((0.4, 0.3), (-0.37, 0.3))]
    parts += [((0.2, 0.1, 0.3), (0.5, 1, 0))]
    mesh = trimesh.util.concatenate([trimesh.creation.box(size, translation_matrix(at)) for size, at in parts])
    mesh.apply_translation((7.3, -2.1, 11.7))
    return mesh


def lying(mesh: trimesh.Trimesh, up: str) -> trimesh.Trimesh:
    """The mesh, which stands along +y, in a file where `up` is up."""
    return trimesh.Trimesh(lay_back(np.asarray(mesh.vertices), up), mesh.faces, process=False)


@pytest.mark.parametrize("up", UP_AXES)
def test_each_axis_is_turned_up_by_a_rotation_that_is_exact(up):
    turn = rotation(up)
    assert round(np.linalg.det(turn)) == 1 and (turn @ turn.T == np.eye(3)).all()
    assert (turn @ UNIT[up]).tolist() == [0, 1, 0]
    points = np.random.default_rng(0).standard_normal((50, 3)) * 1e7 + 0.1
    there = stand_up(points, up)
    assert (np.sort(np.abs(there), axis=1) == np.sort(np.abs(points), axis=1)).all()
    assert np.array_equal(lay_back(there, up), points)


def test_z_is_turned_up_as_exporters_to_gltf_do_it():
    assert stand_up(np.array([1.0, 2.0, 3.0]), "z").tolist() == [1, 3, -2]


@pytest.mark.parametrize("up", UP_AXES)
def test_a_mesh_and_its_turned_copy_give_the_very_same_field(up):
    one, other = normalize_mesh(chair()), normalize_mesh(lying(chair(), up), up)
    assert torch.equal(one.vertices, other.vertices) and torch.equal(one.faces, other.faces)
    assert one.scale == other.scale and other.up == up
    assert other.center == tuple(lay_back(np.array(one.center), up).tolist())
    expected = SparseSDF.from_mesh(chair(), 32, device="cpu")
    field = SparseSDF.from_mesh(lying(chair(), up), 32, up=up, device="cpu")
    assert torch.equal(field.index, expected.index) and torch.equal(field.sdf, expected.sdf)


@pytest.mark.parametrize("up", UP_AXES)
def test_the_surface_of_a_field_lies_where_its_source_does(up):
    source = lying(chair(), up)
    field = SparseSDF.from_mesh(source, 64, up=up, device="cpu")
    world = extract_surface(field.sdf, field.index, field.field)
    assert np.ptp(world.vertices, axis=0).argmax() == 1  # the chair is tall inside
    back = to_source_units(world, field.center, field.scale, field.up)
    np.testing.assert_allclose(back.bounds, source.bounds, atol=1.5 / 64 / field.scale)
    assert back.volume == pytest.approx(world.volume / field.scale**3)  # not mirrored: the volume keeps its sign


def test_nothing_is_turned_unless_it_is_asked_for():
    lies = lying(chair(), "z")
    field = SparseSDF.from_mesh(lies, 32, device="cpu")
    assert field.up == "y" and field.up_from == ""
    assert field.center == pytest.approx(lies.bounds.mean(axis=0))


@pytest.mark.parametrize("up", UP_AXES)
@pytest.mark.parametrize("sampling", ["center", "corner"])
def test_a_turned_field_is_the_field_of_the_turned_mesh(up, sampling):
    kind = FieldDescription(kind="sdf", unit="band", band=3.0, sampling=sampling, resolution=32)

    def field(own_up: str) -> SparseSDF:
        mesh = normalize_mesh(chair(), own_up)
        about = {"center": mesh.center, "scale": mesh.scale, "up": own_up}
        return field_in_world(mesh.vertices, mesh.faces, kind, band=3.0, watertight=mesh.watertight, **about)

    turned, expected = field("x").turned(up), field(up)
    assert torch.equal(turned.index, expected.index) and turned.index.dtype == torch.int32
    torch.testing.assert_close(turned.sdf, expected.sdf, atol=1e-5, rtol=0)
    assert (turned.up, turned.center, turned.scale) == (up, expected.center, expected.scale)
    assert torch.equal(turned.turned("x").sdf, field("x").sdf)


@pytest.mark.parametrize("up", UP_AXES)
def test_the_mirror_image_has_left_and_right_exchanged_however_the_source_lies(up):
    expected = SparseSDF.from_mesh(chair(), 32, device="cpu").mirrored()
    field = SparseSDF.from_mesh(lying(chair(), up), 32, up=up, device="cpu").mirrored()
    assert torch.equal(field.index, expected.index) and torch.equal(field.sdf, expected.sdf)
    mirror = chair()
    mirror.vertices[:, 0] *= -1
    assert field.center == pytest.approx(lying(mirror, up).bounds.mean(axis=0))


def test_a_field_says_in_its_file_which_way_its_source_stands(tmp_path):
    field = SparseSDF.from_mesh(lying(chair(), "-x"), 32, up="-x", device="cpu")
    field.save(tmp_path / "field.npz")
    assert SparseSDF.load(tmp_path / "field.npz").up == "-x"


def test_a_field_file_that_does_not_say_it_stands_along_y(tmp_path):
    SparseSDF.from_mesh(chair(), 32, up="x", device="cpu").save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as archive:
        arrays = {key: archive[key] for key in archive.files if key not in ("up", "up_from")}
    np.savez(tmp_path / "old.npz", **arrays)
    assert SparseSDF.load(tmp_path / "old.npz").up == "y"
    np.savez(tmp_path / "bad.npz", **arrays, up=np.str_("w"))
    with pytest.raises(ValueError, match=r"bad\.npz: up must be one of x, y, z, -x, -y, -z, got 'w'"):
        SparseSDF.load(tmp_path / "bad.npz")


def test_conversion_keeps_which_way_the_source_stands():
    field = SparseSDF.from_mesh(lying(chair(), "z"), 64, up="z", device="cpu")
    kind = FieldDescription(kind="sdf", unit="band", band=3.0, sampling="center", resolution=32)
    made = convert_field(field, kind)
    assert (made.up, made.center, made.scale) == ("z", field.center, field.scale)


def test_a_label_of_a_scan_stands_along_its_superior_axis_where_that_is_asked_for():
    mask = np.zeros((12, 14, 30), dtype=bool)
    mask[3:9, 4:8, 3:27] = True
    surface = label_surface(mask, np.diag([2.0, 2.0, 2.0, 1.0]))
    field = SparseSDF.from_label(surface, 32, up="z", device="cpu")
    assert (field.index.amax(0) - field.index.amin(0)).argmax() == 1
    back = to_source_units(extract_surface(field.sdf, field.index, field.field), field.center, field.scale, field.up)
    np.testing.assert_allclose(back.bounds, surface.mesh.bounds, atol=1.5 / 32 / field.scale)


def test_where_up_is_known_from_in_the_order_that_counts():
    assert up_of("a.glb") == up_of("A.GLTF") == Up(axis="y", known_from="glTF files stand along y")
    assert up_of("a.glb", None, "z") == Up(axis="z", known_from="column up")
    assert up_of("a.glb", "x", "z") == Up(axis="x", known_from="--up")
    assert up_of("a.stl").known_from == "default for .stl"


@pytest.mark.parametrize(("text", "axis"), [("Z", "z"), ("+y", "y"), (" -X ", "-x"), ("auto", "auto")])
def test_capitals_and_plus_signs_are_read(text, axis):
    assert up_of("a.stl", None, text).axis == axis


def test_a_word_that_names_no_axis_is_refused():
    with pytest.raises(ValueError, match=r"its column up must be one of .*; got 'up'"):
        up_of("a.stl", None, "up")
    with pytest.raises(ValueError, match=r"up must be one of .*, got 'auto'"):
        normalize_mesh(chair(), "auto")
    assert up_of("a.glb", None, "nan").known_from == "glTF files stand along y"
