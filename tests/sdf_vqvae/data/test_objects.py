"""What lies at a path: which kind it is of, which objects are there in which order, and what each of them knows."""

from __future__ import annotations

import hashlib
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import trimesh

from sdf_vqvae.config.training import DatasetConfig
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.mesh_sources import Source
from sdf_vqvae.data.objects import (
    CODES_MANIFEST,
    Kind,
    Place,
    StoredObject,
    by_content,
    field_objects,
    kind_of,
    mesh_objects,
)
from sdf_vqvae.evaluation.objects import list_shapes
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.up import UP_IN_PACKS
from sdf_vqvae.training.start import mesh_places

NAMES = ("top.obj", "a-b/x.ply", "a/x.glb", "a/deep/y.stl", "B/z.off")


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        trimesh.creation.box((1 + number, 1, 1)).export(folder / name)
    return folder


@pytest.fixture(scope="module")
def ball_field() -> SparseSDF:
    return SparseSDF.from_mesh(trimesh.creation.icosphere(subdivisions=1), 16, band=3.0)


def test_a_path_is_of_the_first_kind_that_is_asked_for(meshes, ball_field):
    (meshes / "meshes.jsonl").touch()
    ball_field.save(meshes / "ball_r16.npz")
    (meshes / CODES_MANIFEST).touch()
    for kind in (Kind.CODES, Kind.PACK, Kind.FIELDS, Kind.FOLDER):
        assert kind_of(meshes, kind, Kind.FILE) is kind  # one folder may be all of them
    assert kind_of(meshes, Kind.FIELDS, Kind.PACK) is Kind.FIELDS
    assert kind_of(meshes, Kind.PACK, Kind.FIELDS) is Kind.PACK
    assert kind_of(meshes / "top.obj", *Kind) is Kind.FILE
    assert kind_of(meshes / "a", Kind.CODES, Kind.PACK, Kind.FIELDS) is None
    assert kind_of(meshes / "gone", *Kind) is None


def test_mesh_files_come_as_a_walk_meets_them_and_each_reader_orders_them_its_own_way(meshes):
    assert [mesh.id for mesh in mesh_objects(meshes)] == [
        "top.obj",
        "B/z.off",
        "a/x.glb",
        "a/deep/y.stl",
        "a-b/x.ply",
    ]
    assert [item.row["file"] for item in Source("folder", meshes)] == [mesh.id for mesh in mesh_objects(meshes)]
    assert [shape.id for shape in list_shapes(meshes)] == [
        "B/z.off",
        "a-b/x.ply",
        "a/deep/y.stl",
        "a/x.glb",
        "top.obj",
    ]
    train, weights, held_out = mesh_places(meshes, DatasetConfig(name="Meshes", resolution=64))
    assert [place.name for place in held_out] == [str(meshes / "B/z.off")]  # the first of a hundred
    # By the folders' names, not by the paths as text.
    assert [place.name for place in train] == [
        str(meshes / name) for name in ("a/deep/y.stl", "a/x.glb", "a-b/x.ply", "top.obj")
    ]
    assert torch.equal(weights, torch.ones(4))


def test_a_mesh_is_called_by_its_path_in_an_evaluation_and_by_its_contents_in_a_dataset(meshes):
    digest = hashlib.sha256((meshes / "a/x.glb").read_bytes()).hexdigest()
    (shape,) = (shape for shape in list_shapes(meshes) if shape.id == "a/x.glb")
    (item,) = (item for item in Source("folder", meshes) if item.row["file"] == "a/x.glb")
    assert shape.source == "a" and shape.there.content_hash() == digest
    assert (item.id, item.row["sha256"], by_content(shape).id) == (digest, digest, digest)


def test_every_mesh_file_has_a_way_up_and_the_flag_wins_over_the_table(meshes):
    (meshes / "metadata.csv").write_text("file,up\na/x.glb,-z\n")
    shape, item = (
        next(one for one in objects if one.there.name == "a/x.glb")
        for objects in (list_shapes(meshes), Source("folder", meshes))
    )
    assert shape.there.up is not None and shape.there.up.axis == "y"  # an evaluation asks no table
    assert item.there.up is not None and (item.there.up.axis, item.there.up.known_from) == ("-z", "column up")
    for one in (*list_shapes(meshes, up="x"), *Source("folder", meshes, up="x")):
        assert one.there.up is not None and (one.there.up.axis, one.there.up.known_from) == ("x", "--up")


def test_packs_stand_along_y_and_an_evaluation_says_nothing_of_it(reference_data):
    shapes = list_shapes(reference_data / "shapes", split="val")
    items = {item.row["id"]: item for item in Source("pack", reference_data / "shapes", split="val")}
    assert [shape.id for shape in shapes] == sorted(items)
    assert {shape.there.up for shape in shapes} == {None}
    assert {item.there.up for item in items.values()} == {UP_IN_PACKS}
    train, _, held_out = mesh_places(reference_data / "shapes", DatasetConfig(name="Meshes", resolution=64))
    assert {place.name for place in held_out} == set(items)
    assert {place.name for place in train}.isdisjoint(items)
    again = mesh_places(reference_data / "shapes", DatasetConfig(name="Meshes", resolution=64))
    assert held_out == again[2] and [place.name for place in held_out] != sorted(items)  # drawn, always alike


def test_objects_of_fields_are_those_of_the_table_with_what_is_wrong_with_them(tmp_path, ball_field):
    for name in ("b", "a"):
        ball_field.save(tmp_path / f"{name}_r16.npz")
    (tmp_path / "metadata.csv").write_text("sha256,split,source\nb,test,s\ngone,test,\na,train,\n")
    usable, gone, last = field_objects(FieldFolder(tmp_path, 16))
    assert (usable.id, usable.source, usable.split, usable.there.is_field) == ("b", "s", "test", True)
    assert (gone.place, gone.error, last.source) == (None, "its file does not exist", tmp_path.name)
    with pytest.raises(ValueError, match="its file does not exist"):
        _ = gone.there
    assert [shape.id for shape in list_shapes(tmp_path, resolution=16)] == ["a", "b"]
    assert torch.equal(usable.there.load().sdf, ball_field.sdf)
    with pytest.raises(ValueError, match=r"b_r16\.npz"):
        usable.there.mesh()
    stands = usable.there.standing(None)
    assert stands == usable.there and stands.up is None
    said = usable.there.standing(None, "z").up
    assert said is not None and (said.axis, said.known_from) == ("z", "column up")


def test_a_place_is_small_and_goes_to_other_processes(meshes):
    (shape,) = list_shapes(meshes / "a/x.glb")
    content = ForkingPickler.dumps(shape.there)
    assert len(content) < 1000
    assert len(ForkingPickler.loads(content).mesh().faces) == 12
    assert StoredObject(id="x", place=Place(path=meshes / "top.obj", name="top")).split is None
