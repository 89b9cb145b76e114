"""SparseSDF: from a mesh to a file and a batch, and what is refused on the way."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdf_vqvae.fields.description import FieldDescription
from sdf_vqvae.fields.sparse_sdf import SparseSDF, collate_sparse_sdf

BOX = trimesh.creation.box(extents=[1, 2, 4])


def description(**changes) -> FieldDescription:
    values = {"kind": "sdf", "unit": "band", "band": 3.0, "sampling": "center", "resolution": 64}
    return FieldDescription(**{**values, **changes})


def small(**changes) -> SparseSDF:
    values = {
        "sdf": torch.tensor([-0.5, 0.25]),
        "index": torch.tensor([[0, 1, 2], [3, 4, 63]], dtype=torch.int32),
        "field": description(),
        "center": (1.0, 2.0, 3.0),
        "scale": 0.5,
        "watertight": True,
        "sign_method": "winding",
    }
    return SparseSDF(**{**values, **changes})


def assert_same(one: SparseSDF, other: SparseSDF) -> None:
    assert torch.equal(one.sdf, other.sdf) and torch.equal(one.index, other.index)
    assert one.sdf.dtype == other.sdf.dtype and one.index.dtype == other.index.dtype
    for name in ("field", "center", "scale", "watertight", "sign_method"):
        assert getattr(one, name) == getattr(other, name), name


def arrays_of(field: SparseSDF, tmp_path, **changes) -> dict[str, np.ndarray]:
    field.save(tmp_path / "whole.npz")
    with np.load(tmp_path / "whole.npz", allow_pickle=False) as archive:
        return {**{name: archive[name] for name in archive.files}, **changes}


def test_a_mesh_file_and_a_mesh_give_the_same_field(tmp_path):
    BOX.export(tmp_path / "box.ply")
    one = SparseSDF.from_mesh(tmp_path / "box.ply", 32, device="cpu")
    assert_same(one, SparseSDF.from_mesh(BOX, resolution=32, device="cpu"))
    assert one.field == description(resolution=32)
    assert one.watertight and one.sign_method == "winding"
    assert one.scale == pytest.approx(0.95 / 4) and one.center == pytest.approx((0, 0, 0))
    assert (one.sdf < 0).any() and (one.sdf > 0).any() and one.sdf.abs().max() <= 1


def test_the_band_is_recorded_and_unsigned_is_said_so():
    field = SparseSDF.from_mesh(BOX, 32, band=2.0, signed=False, device="cpu")
    assert field.field == description(resolution=32, band=2.0, kind="udf")
    assert field.sign_method == "none" and (field.sdf >= 0).all()


@st.composite
def fields(draw) -> SparseSDF:
    resolution = draw(st.integers(2, 1024))
    corner = st.integers(0, resolution - 1)
    index = draw(st.lists(st.tuples(corner, corner, corner), min_size=1, max_size=20, unique=True))
    unit = draw(st.sampled_from(["band", "world"]))
    kind = draw(st.sampled_from(["sdf", "udf"]))
    low = -1.0 if kind == "sdf" else 0.0
    number = st.floats(low, 1, width=32)
    return SparseSDF(
        sdf=torch.tensor(draw(st.lists(number, min_size=len(index), max_size=len(index)))),
        index=torch.tensor(index, dtype=torch.int32),
        field=FieldDescription(
            kind=kind,
            unit=unit,
            band=draw(st.floats(0.1, 100)) if unit == "band" else draw(st.none() | st.floats(0.1, 100)),
            sampling=draw(st.sampled_from(["center", "corner"])),
            resolution=resolution,
        ),
        center=draw(st.tuples(*[st.floats(-1e30, 1e30)] * 3)),
        scale=draw(st.floats(1e-30, 1e30)),
        watertight=draw(st.booleans()),
        sign_method=draw(st.sampled_from(["winding", "winding+shell", "none"])),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=fields())
def test_what_is_saved_is_loaded(tmp_path, field):
    field.save(tmp_path / "field.npz")
    assert_same(SparseSDF.load(tmp_path / "field.npz"), field)
    assert [p.name for p in tmp_path.iterdir()] == ["field.npz"]
    assert FieldDescription.from_dict(field.field.to_dict()) == field.field


def test_the_file_has_the_names_and_types_of_the_original(tmp_path):
    arrays = arrays_of(small(), tmp_path)
    assert arrays["sparse_sdf"].shape == (2, 1) and arrays["sparse_sdf"].dtype == np.float32
    assert arrays["sparse_index"].shape == (2, 3) and arrays["sparse_index"].dtype == np.int32
    assert arrays["resolution"].shape == () and int(arrays["resolution"]) == 64
    assert str(arrays["sampling"]) == "center"


def test_a_file_of_the_original_is_raw_unsigned_distance_of_unknown_band(tmp_path):
    np.savez_compressed(
        tmp_path / "original.npz",
        sparse_sdf=np.array([[0.001], [0.002]], np.float32),
        sparse_index=np.array([[0, 1, 2], [511, 0, 0]], np.int32),
        resolution=512,
    )
    field = SparseSDF.load(tmp_path / "original.npz")
    assert field.field == description(kind="udf", unit="world", band=None, sampling="corner", resolution=512)
    assert (field.center, field.scale, field.sign_method) == ((0, 0, 0), 1, "none")
    assert field.sdf.tolist() == pytest.approx([0.001, 0.002])


def test_british_spelling_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays_of(small(), tmp_path, sampling=np.str_("centre")))
    assert SparseSDF.load(tmp_path / "a.npz").field.sampling == "center"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sparse_sdf", np.zeros((3, 1), np.float32), "sparse_sdf must be floats"),
        ("sparse_sdf", np.zeros((2, 1), int), "sparse_sdf must be floats"),
        ("sparse_sdf", np.array([[np.nan], [0]], np.float32), "not finite"),
        ("sparse_sdf", np.array([[2], [0]], np.float32), r"-1\.\.1"),
        ("sparse_index", np.zeros((2, 3), np.float32), "sparse_index must be integers"),
        ("sparse_index", np.zeros((2, 4), int), "sparse_index must be integers"),
        ("sparse_index", np.array([[0, 0, 0], [0, 0, 64]]), r"0\.\.63, got 0\.\.64"),
        ("sparse_index", np.array([[0, 0, 0], [0, 0, 2**32 + 1]]), r"0\.\.63"),
        ("sparse_index", np.zeros((2, 3), int), "more than once"),
        ("resolution", np.array([64, 64]), "resolution must be one int"),
        ("resolution", np.array(4096), r"2\.\.1024"),
        ("resolution", np.array("64"), "resolution must be one int"),
        ("kind", np.str_("tsdf"), "kind"),
        ("kind", np.str_("udf"), "negative"),
        ("unit", np.str_("mm"), "unit"),
        ("band", np.array(-3.0), "band"),
        ("band", np.array(np.nan), "needs the band"),
        ("sampling", np.str_("edge"), "sampling"),
        ("center", np.zeros(2), "center"),
        ("center", np.array([0, np.inf, 0]), "center"),
        ("scale", np.array(0.0), "scale"),
        ("watertight", np.array("yes"), "watertight"),
        ("format", np.array(99), "format is 99"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(tmp_path, key, value, message):
    np.savez(tmp_path / "wrong.npz", **arrays_of(small(), tmp_path, **{key: value}))
    with pytest.raises(ValueError, match=message) as error:
        SparseSDF.load(tmp_path / "wrong.npz")
    assert "wrong.npz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["sparse_sdf", "sparse_index", "resolution", "kind", "band", "scale", "format"])
def test_a_missing_key_is_named(tmp_path, key):
    arrays = arrays_of(small(), tmp_path)
    del arrays[key]
    np.savez(tmp_path / "lacking.npz", **arrays)
    with pytest.raises(ValueError, match=f"lacks the key '{key}'"):
        SparseSDF.load(tmp_path / "lacking.npz")


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    small().save(tmp_path / "field.npz")
    data = (tmp_path / "field.npz").read_bytes()
    for seed in range(150):
        chance = random.Random(seed)
        broken = bytearray(data)
        if seed % 3 == 0:
            broken = broken[: chance.randrange(len(broken))]
        else:
            for _ in range(chance.randrange(1, 8)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
        (tmp_path / "broken.npz").write_bytes(bytes(broken))
        try:
            SparseSDF.load(tmp_path / "broken.npz")
        except ValueError as error:
            assert "\n" not in str(error)


def test_what_is_no_archive_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        SparseSDF.load(tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", sparse_sdf=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="is a folder"):
        SparseSDF.load(tmp_path)
    for path in (tmp_path / "one.npy", tmp_path / "objects.npz"):
        with pytest.raises(ValueError, match="not a readable field file"):
            SparseSDF.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sdf": torch.zeros(0), "index": torch.zeros(0, 3, dtype=torch.int32)}, "N > 0"),
        ({"sdf": torch.zeros(2, 1)}, "shape"),
        ({"sdf": torch.zeros(3)}, "shape"),
        ({"index": torch.zeros(2, 3)}, "integers"),
        ({"index": torch.tensor([[0, 0, 0], [0, 0, 64]])}, r"0\.\.63"),
        ({"sdf": torch.tensor([0.0, float("inf")])}, "not finite"),
        ({"field": description(kind="udf")}, "negative"),
        ({"scale": -1.0}, "scale"),
        ({"center": (0.0, 0.0)}, "center"),
    ],
)
def test_an_impossible_field_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_an_unknown_key_of_a_description_is_refused():
    with pytest.raises(ValueError, match="keys"):
        FieldDescription.from_dict({**description().to_dict(), "width": 3})


def test_a_field_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small().scale = 2.0  # type: ignore[misc]


def test_a_batch_has_the_three_tensors_in_order():
    one = small()
    two = small(sdf=torch.tensor([0.125]), index=torch.tensor([[7, 8, 9]], dtype=torch.int32))
    batch = collate_sparse_sdf([one, two])
    assert list(batch) == ["sparse_sdf", "sparse_index", "batch_idx"]
    assert batch["sparse_sdf"].tolist() == [[-0.5], [0.25], [0.125]] and batch["sparse_sdf"].dtype == torch.float32
    assert batch["sparse_index"].tolist() == [[0, 1, 2], [3, 4, 63], [7, 8, 9]]
    assert batch["batch_idx"].tolist() == [0, 0, 1]
    assert batch["sparse_index"].dtype == batch["batch_idx"].dtype == torch.int64
    for key, value in one.to_batch().items():
        assert torch.equal(value, collate_sparse_sdf([one])[key])


def test_a_batch_of_nothing_or_of_unlike_fields_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate_sparse_sdf([])
    with pytest.raises(ValueError, match="one kind of field"):
        collate_sparse_sdf([small(), small(field=description(resolution=128))])


def test_a_mirror_image_has_left_and_right_exchanged():
    wedge = trimesh.creation.box(extents=[2, 1, 1])
    wedge.vertices[wedge.vertices[:, 0] > 0] *= [1, 0.3, 0.6]
    wedge.apply_translation([5, 0, 0])
    field = SparseSDF.from_mesh(wedge, 32, device="cpu")
    mirrored = field.mirrored()
    assert not torch.equal(mirrored.index, field.index)
    assert_same(mirrored.mirrored(), field)
    turned = wedge.copy()
    turned.vertices[:, 0] *= -1
    turned.invert()
    own = SparseSDF.from_mesh(turned, 32, device="cpu")
    assert torch.equal(own.index, mirrored.index) and own.center == pytest.approx(mirrored.center)
    torch.testing.assert_close(own.sdf, mirrored.sdf, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="corners has no mirror image"):
        small(field=description(sampling="corner")).mirrored()
