"""Masks of every layout mean the same labels, and a mask file can't lie about its size."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import scipy.sparse

from sdf_vqvae.preprocessing.ct.masks import (
    LabelNames,
    label_text,
    masks_from_array,
    masks_from_sparse_file,
    shape_in_name,
)

SHAPE = (6, 5, 4)


@pytest.fixture
def labels():
    """A volume of the ids 0, 1, 2 and 3; label 3 has a single voxel."""
    volume = np.random.default_rng(0).integers(0, 3, SHAPE)
    volume[3, 2, 1] = 3
    return volume


NAMES = LabelNames.parse({"1": "liver", "2": "spleen", "3": "adrenal gland left"})


def one_hot(labels, ids):
    return np.stack([labels == i for i in ids]).astype(np.uint8)


def save_sparse(folder, channels, name=None, **changes):
    """Write channels as M3D-Seg does, with single keys replaced."""
    matrix = scipy.sparse.csr_matrix(channels.reshape(len(channels), -1))
    keys = {
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "format": np.array(b"csr"),
        "shape": np.array(matrix.shape),
        "data": matrix.data,
    }
    path = folder / (name or f"mask_{tuple(int(n) for n in channels.shape)}.npz")
    np.savez_compressed(path, **{k: v for k, v in {**keys, **changes}.items() if v is not None})
    return path


def same(masks, labels):
    assert masks.shape == labels.shape
    assert sorted(masks.places) == [1, 2, 3]
    for number, places in masks.places.items():
        assert np.array_equal(places, np.flatnonzero(labels == number)), number


def test_all_layouts_give_the_same_labels(tmp_path, labels):
    with_background = LabelNames.parse(["background", "liver", "spleen", "adrenal gland left"])
    same(masks_from_array(labels, NAMES), labels)
    same(masks_from_array(labels[None].astype(np.float32), NAMES), labels)
    same(masks_from_array(one_hot(labels, [1, 2, 3]), NAMES), labels)
    same(masks_from_array(one_hot(labels, [0, 1, 2, 3]), NAMES), labels)
    same(masks_from_array(one_hot(labels, [0, 1, 2, 3]), with_background), labels)
    same(masks_from_array(one_hot(labels, [1, 2, 3]), with_background), labels)
    same(masks_from_sparse_file(save_sparse(tmp_path, one_hot(labels, [1, 2, 3])), NAMES), labels)
    same(masks_from_sparse_file(save_sparse(tmp_path, one_hot(labels, [0, 1, 2, 3])), NAMES), labels)
    same(masks_from_sparse_file(save_sparse(tmp_path, labels[None]), NAMES), labels)
    three_numbers = save_sparse(tmp_path, labels.reshape(6, 5, 4), "mask_(6, 5, 4).npz")  # 6 rows of 20 columns
    same(masks_from_sparse_file(three_numbers, NAMES), labels)


def test_channels_without_names_count_from_one_and_a_background_is_seen(labels):
    nameless = LabelNames(names={}, background=None)
    same(masks_from_array(one_hot(labels, [1, 2, 3]), nameless), labels)
    same(masks_from_array(one_hot(labels, [0, 1, 2, 3]), nameless), labels)


def test_ids_with_gaps_keep_their_names(labels):
    names = LabelNames.parse({"labels": {"7": "liver", "40": "spleen", "101": "aorta"}})
    masks = masks_from_array(one_hot(labels, [1, 2, 3]), names)
    assert [names.of(n) for n in sorted(masks.places)] == ["liver", "spleen", "aorta"]
    assert masks.count(101) == 1


def test_overlapping_channels_keep_all_their_voxels():
    channels = np.zeros((2, *SHAPE), dtype=np.uint8)
    channels[0, 1:5] = 1
    channels[1, 3:] = 1
    masks = masks_from_array(channels, LabelNames.parse({"1": "liver", "2": "tumor"}))
    assert (masks.count(1), masks.count(2)) == (4 * 20, 3 * 20)
    corner, crop = masks.crop(2)
    assert corner == (3, 0, 0)
    assert crop.shape == (3, 5, 4)
    assert crop.all()
    region = masks_from_array(channels, LabelNames.parse({"whole": [1, 2]}))
    assert region.count((1, 2)) == 5 * 20  # a voxel of both counts once


def test_an_empty_channel_shifts_nothing(labels):
    channels = one_hot(labels, [1, 2, 3])
    channels[1] = 0
    assert sorted(masks_from_array(channels, NAMES).places) == [1, 3]


def test_one_channel_of_one_label_has_that_label_s_id(labels):
    masks = masks_from_array((labels == 2)[None], LabelNames.parse({"5": "liver"}))
    assert list(masks.places) == [5]
    assert masks.notes == ("the only channel, of ones, is taken for the only label, 5",)


def test_in_a_volume_of_ids_a_one_is_label_1_whatever_has_a_name(tmp_path, labels):
    names, ones = LabelNames.parse({"2": "spleen"}), (labels == 2).astype(np.uint8)
    assert list(masks_from_array(ones, names).places) == [1]
    sparse = save_sparse(tmp_path, ones.reshape(6, 5, 4), "mask_(6, 5, 4).npz")
    assert list(masks_from_sparse_file(sparse, names).places) == [1]


def test_a_channel_of_several_labels_is_refused(labels):
    with pytest.raises(ValueError, match=r"channel 1 holds several labels \(1, 2, 3\)"):
        masks_from_array(np.stack([labels == 0, labels]), LabelNames(names={}, background=None))


def test_channels_that_hold_their_ids_are_compared_with_their_places(labels):
    same(masks_from_array(np.stack([(labels == i) * i for i in (1, 2, 3)]), NAMES), labels)
    same(masks_from_array(one_hot(labels, [1, 2, 3]) * 255, NAMES), labels)
    with pytest.raises(ValueError, match="channel 0 holds the value 2, but by its place it is label 1"):
        masks_from_array(np.stack([(labels == i) * i for i in (2, 1, 3)]), NAMES)


def test_channels_that_the_names_do_not_account_for_are_refused(labels):
    with pytest.raises(ValueError, match="2 channels, but the label names list 3 labels"):
        masks_from_array(one_hot(labels, [1, 2]), NAMES)


@pytest.mark.parametrize(
    "content",
    [
        {"1": "liver", "2": "spleen"},
        {"liver": 1, "spleen": 2},
        {"background": 0, "liver": 1, "spleen": "2"},
        {"labels": {"0": "background", "1": "liver", "2": "spleen"}},
        {"name": "x", "label_names": ["liver", "spleen"]},
        ["Background", "liver", "spleen"],
    ],
)
def test_names_come_in_many_forms(content):
    assert LabelNames.parse(content).names == {1: "liver", 2: "spleen"}


def test_nnu_net_names_regions_and_what_nobody_labeled():
    names = LabelNames.parse(
        {"labels": {"background": 0, "kidney and tumor": [2, 1], "tumor": 2, "spleen": [3], "ignore": 4}}
    )
    assert (names.names, names.regions) == ({2: "tumor", 3: "spleen"}, {(1, 2): "kidney and tumor"})
    assert (names.background, names.ignore, names.ids) == (0, 4, [1, 2, 3, 4])
    volume = np.repeat([0, 1, 2, 3, 4, 9], [1, 2, 3, 4, 5, 6]).reshape(1, 3, 7)
    masks = masks_from_array(volume, names)
    # Label 1 has no name of its own; 9 has none at all, and stays.
    assert {label_text(n): masks.count(n) for n in masks.labels(names)} == {"1+2": 5, "2": 3, "3": 4, "9": 6}
    corner, crop = masks.crop((1, 2))
    assert (corner, crop.sum()) == ((0, 0, 1), 5)
    assert masks.notes == ("label 4 marks voxels that nobody has labeled: it is no organ",)
    assert [names.of(n) for n in masks.labels(names)] == ["kidney and tumor", "tumor", "spleen", "label 9"]


def test_channels_are_counted_by_ids_when_names_have_regions(labels):
    names = LabelNames.parse({"whole": [1, 2, 3], "core": [2, 3], "rest": 1})
    for ids in ([1, 2, 3], [0, 1, 2, 3]):
        masks = masks_from_array(one_hot(labels, ids), names)
        found = {label_text(n): masks.count(n) for n in masks.labels(names)}
        assert found == {"1": (labels == 1).sum(), "1+2+3": (labels > 0).sum(), "2+3": (labels > 1).sum()}


@pytest.mark.parametrize(
    "content", [{"x": [0, 1]}, {"x": [1, 5], "ignore": 5}, {"x": [1, 2], "y": [2, 1]}, {"x": []}]
)
def test_regions_of_what_is_no_organ_are_refused(content):
    with pytest.raises(ValueError, match=r"region|named twice|need an id"):
        LabelNames.parse(content)


def test_names_are_cleaned_and_what_is_odd_about_them_is_said():
    names = LabelNames.parse(
        {"0": "liver", "1": "fi\u0301gado", "2": " a\0b\u202e  c ", "3": "", "4": "rib", "5": "rib"}
    )
    assert names.names == {1: "fígado", 2: "a b c", 4: "rib", 5: "rib"}
    assert names.of(3) == "label 3"
    assert names.notes == (
        "label 0 is called 'liver'; it is taken for the background",
        "labels 4, 5 are all called 'rib'; each stays an organ of its own",
    )
    with pytest.raises(ValueError, match="must be a text"):
        LabelNames.parse({"1": "\ud800"})


def test_labels_near_whole_numbers_are_rounded_and_others_are_named(labels):
    near = labels.astype(np.float32)
    near[labels == 3] = 2.9995
    near[0, 0, 0] = 1e-4
    masks = masks_from_array(near, NAMES)
    assert sorted(masks.places) == [1, 2, 3]  # what is near 0 is no label
    assert masks.count(3) == 1
    assert masks.count(1) == (labels[near > 1e-3] == 1).sum()
    assert masks.notes == ("labels were rounded to whole numbers, 2.99950004 to 3",)
    near[labels == 3] = 2.9
    near[0, 0, 1] = 0.5
    with pytest.raises(ValueError, match=r"this one holds 0\.5, 2\.9$"):
        masks_from_array(near, NAMES)


def test_a_channel_of_probabilities_is_no_mask(labels):
    channels = one_hot(labels, [1, 2, 3]).astype(np.float32)
    same(masks_from_array(channels * np.float32(0.9999) + np.float32(1e-5), NAMES), labels)
    with pytest.raises(ValueError, match="whole numbers"):
        masks_from_array(channels * np.float32(0.7), NAMES)


def test_a_volume_without_a_label_has_no_organ():
    assert masks_from_array(np.zeros(SHAPE, np.uint8), NAMES).labels(NAMES) == []


@pytest.mark.parametrize("content", [3, {"a": "b"}, {"1": 2.5}, {"1": "x", "01": "y"}, {"1": "x" * 300}, {"-1": "x"}])
def test_names_of_other_forms_are_refused(content):
    with pytest.raises(ValueError):
        LabelNames.parse(content)


@pytest.mark.parametrize(
    "name",
    [
        "mask_(9999999999, 9999, 9999, 9999).npz",
        "mask_(61, 122, 101, -112).npz",
        "mask_(61, 0, 101, 112).npz",
        "mask_(2000, 10, 10, 10).npz",
        "mask_(1, 2048, 2048, 2048).npz",
        "mask_(10, 10).npz",
        "mask_(__import__('os'), 1, 1, 1).npz",
        "mask_(1e3, 10, 10, 10).npz",
        "mask_(٣, 10, 10, 10).npz",
        "mask.npz",
    ],
)
def test_a_shape_that_no_scan_has_is_refused_by_name_alone(tmp_path, name):
    with pytest.raises(ValueError, match=r"is not read|does not have the form"):
        shape_in_name(name)
    with pytest.raises(ValueError, match=r"is not read|does not have the form"):
        masks_from_sparse_file(tmp_path / name, NAMES)  # before the file is looked for


def first(array, value):
    changed = array.copy()
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("indices", lambda a: first(a, -1), "indices must lie in"),
        ("indices", lambda a: first(a, 2**31 - 1), "indices must lie in"),
        ("indices", lambda a: a.astype(np.float64), "must be integers"),
        ("indices", lambda a: a[:-1], "of one length"),
        ("indptr", lambda a: first(a, 1), "must rise from 0"),
        ("indptr", lambda a: a[::-1].copy(), "must rise from 0"),
        ("indptr", lambda a: np.append(a[:-1], a[-1] + 1), "must rise from 0"),
        ("indptr", lambda a: a[:-1], "does not fit"),
        ("indptr", lambda a: a[None], "one number more"),
        ("shape", lambda a: a * 2**40, "does not fit|not as many"),
        ("shape", lambda a: a + np.array([0, 1]), "not as many"),
        ("shape", lambda a: np.array("big"), "must be integers"),
        ("data", lambda a: np.array([None] * len(a)), "pickled"),
        ("data", lambda a: a.astype(np.complex64), "data numbers"),
        ("format", lambda a: np.array(b"coo"), "no CSR matrix"),
        ("format", lambda a: None, "lacks"),
    ],
)
def test_an_inconsistent_matrix_is_refused(tmp_path, labels, key, change, message):
    channels = one_hot(labels, [1, 2, 3])
    matrix = scipy.sparse.csr_matrix(channels.reshape(3, -1))
    given = {"shape": np.array(matrix.shape), "format": np.array(b"csr")}.get(key, getattr(matrix, key, None))
    path = save_sparse(tmp_path, channels, **{key: change(given)})
    with pytest.raises(ValueError, match=message):
        masks_from_sparse_file(path, NAMES)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    # A header that claims 16 GB of indices in a file of a few hundred bytes.
    path = tmp_path / "mask_(3, 6, 5, 4).npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key, count in (("indices", 2**31), ("data", 2**31), ("indptr", 4), ("shape", 2), ("format", 1)):
            header = str({"descr": "<i8", "fortran_order": False, "shape": (count,)}).ljust(117) + "\n"
            archive.writestr(f"{key}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    with pytest.raises(ValueError, match="at most"):
        masks_from_sparse_file(path, NAMES)


def test_entries_out_of_order_or_twice_count_once(tmp_path, labels):
    channels = one_hot(labels, [1, 2, 3])
    matrix = scipy.sparse.csr_matrix(channels.reshape(3, -1))
    indices = matrix.indices.copy()
    indices[:2] = indices[1::-1]
    same(masks_from_sparse_file(save_sparse(tmp_path, channels, indices=indices), NAMES), labels)
    indices[1] = indices[0]
    masks = masks_from_sparse_file(save_sparse(tmp_path, channels, indices=indices), NAMES)
    assert masks.count(1) == (labels == 1).sum() - 1


def test_explicit_zeros_are_no_voxels(tmp_path, labels):
    channels = one_hot(labels, [1, 2, 3])
    matrix = scipy.sparse.csr_matrix(channels.reshape(3, -1))
    masks = masks_from_sparse_file(save_sparse(tmp_path, channels, data=first(matrix.data, 0)), NAMES)
    assert masks.count(1) == (labels == 1).sum() - 1


@pytest.mark.parametrize("bad", [np.nan, 0.5, -1.0])
def test_a_volume_that_holds_no_labels_is_refused(labels, bad):
    with pytest.raises(ValueError, match=r"whole numbers|from 0 on"):
        masks_from_array(first(labels.astype(np.float64), bad), NAMES)


def test_an_image_given_as_labels_is_noticed():
    with pytest.raises(ValueError, match="is it an image"):
        masks_from_array(np.arange(5000).reshape(10, 20, 25), NAMES)
