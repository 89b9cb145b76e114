"""Which files belong to one case is told by their names, and what can't be told is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sdf_vqvae.preprocessing.ct.cases import load_case
from sdf_vqvae.preprocessing.ct.layouts import find_case_sets, pair_case

nibabel = pytest.importorskip("nibabel")


def touch(root, *names):
    """Make empty files: only names count here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(np.asarray(array), np.eye(4)), path)
    return path


def only_set(root):
    (found,) = find_case_sets(root)
    return found


def pairs(root):
    """Return case -> (image, label) by name; `-` where there is none."""
    return {
        c.case_id: tuple("-" if p is None else p.name.split(".nii")[0] for p in (c.image, c.label))
        for c in only_set(root).cases
        if not c.error
    }


def images_and_labels(root, images, labels, suffix=".nii.gz", folders=("imagesTr", "labelsTr")):
    names = [
        f"{folder}/{stem}{suffix}" for folder, stems in zip(folders, (images, labels), strict=True) for stem in stems
    ]
    return touch(root, *names)


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        # nnU-Net: channels.
        (["x_0000"], ["x"], {"x": ("x_0000", "x")}),
        (["x_0000", "x_0001", "y_0000", "y_0001"], ["x", "y"], {"x": ("x_0000", "x"), "y": ("y_0000", "y")}),
        (["case_0001_0000", "case_0001_0001"], ["case_0001"], {"case_0001": ("case_0001_0000", "case_0001")}),
        # An image without a label has channels where others do.
        (["x_0000", "z_0000", "z_0001"], ["x"], {"x": ("x_0000", "x"), "z": ("z_0000", "-")}),
        # Medical Segmentation Decathlon: numbers that belong to the name.
        (["img_0000", "img_0001"], ["img_0000", "img_0001"],
         {"img_0000": ("img_0000", "img_0000"), "img_0001": ("img_0001", "img_0001")}),
        (["img_0000", "img_0001"], ["img_0001"],
         {"img_0000": ("img_0000", "-"), "img_0001": ("img_0001", "img_0001")}),
        (["img_0000", "img_0001"], ["img", "img_0001"],
         {"img": ("img_0000", "img"), "img_0001": ("img_0001", "img_0001")}),
        (["a_0000", "b_0000"], [], {"a_0000": ("a_0000", "-"), "b_0000": ("b_0000", "-")}),
        # Names that differ by what they begin or end with.
        (["img0001", "img0002"], ["label0001", "label0002"],
         {"img0001": ("img0001", "label0001"), "img0002": ("img0002", "label0002")}),
        (["volume-0", "volume-10"], ["segmentation-0", "segmentation-10"],
         {"volume-0": ("volume-0", "segmentation-0"), "volume-10": ("volume-10", "segmentation-10")}),
        (["case_1_ct", "case_2_ct"], ["case_1_seg", "case_2_seg"],
         {"case_1_ct": ("case_1_ct", "case_1_seg"), "case_2_ct": ("case_2_ct", "case_2_seg")}),
        (["PANCREAS_0001", "PANCREAS_0002"], ["label0002", "label0001"],
         {"PANCREAS_0001": ("PANCREAS_0001", "label0001"), "PANCREAS_0002": ("PANCREAS_0002", "label0002")}),
        (["p1", "p2"], ["p1_mask", "p2_mask"], {"p1": ("p1", "p1_mask"), "p2": ("p2", "p2_mask")}),
        # What is not one to one stays apart.
        (["img0001", "img0002"], ["label0001"], {"img0001": ("img0001", "label0001"), "img0002": ("img0002", "-")}),
        (["img0001"], ["label0002"], {"img0001": ("img0001", "-"), "label0002": ("-", "label0002")}),
        (["ct_1", "img_1"], ["seg_1"], {"ct_1": ("ct_1", "-"), "img_1": ("img_1", "-"), "seg_1": ("-", "seg_1")}),
        (["anna"], ["berta"], {"anna": ("anna", "-"), "berta": ("-", "berta")}),
    ],
)  # fmt: skip
def test_images_and_labels_are_paired_by_name_where_that_is_one_to_one(tmp_path, images, labels, expected):
    assert pairs(images_and_labels(tmp_path, images, labels)) == expected


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_the_channel_that_dataset_json_calls_ct_is_the_ct(tmp_path, key):
    root = images_and_labels(tmp_path, ["x_0000", "x_0001", "y_0000"], ["x", "y"])
    (root / "dataset.json").write_text(json.dumps({key: {"0": "PET", "1": "CT"}, "labels": {"liver": 1}}))
    assert pairs(root) == {"x": ("x_0001", "x"), "y": ("-", "y")}
    first, second = only_set(root).cases
    assert first.notes == ("channel 0001 (CT) is read as the CT, 0000 (PET) not",)
    assert second.notes == ("channel 0000 (PET) is there, but not channel 0001 (CT), the CT",)


@pytest.mark.parametrize(
    ("names", "read"),
    [("CTA", "x_0001"), ("PET/CT", "x_0001"), ("NCCT (HU)", "x_0001"), ("FACT", "x_0000"), ("T2", "x_0000")],
)
def test_a_ct_has_several_names(tmp_path, names, read):
    root = images_and_labels(tmp_path, ["x_0000", "x_0001"], ["x"])
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": names}, "labels": {"liver": 1}}))
    assert pairs(root) == {"x": (read, "x")}


def test_a_case_that_is_there_twice_is_refused_by_name(tmp_path):
    root = images_and_labels(tmp_path, ["x", "y", "z", "z_0000"], ["x", "y", "z"])
    touch(root, "imagesTr/x.nii", "labelsTr/y.nii")
    x, y, z = only_set(root).cases
    assert x.error == "x.nii and x.nii.gz are both there: keep one"
    assert y.error == "y.nii and y.nii.gz are both there: keep one"
    assert z.error == "z.nii.gz and z_0000.nii.gz are both there: keep one"
    with pytest.raises(ValueError, match=r"x\.nii and x\.nii\.gz"):
        load_case(x)


def test_names_are_the_same_however_their_letters_are_composed(tmp_path):
    assert pairs(images_and_labels(tmp_path, ["José"], ["Jose\u0301"])) == {"José": ("José", "Jose\u0301")}


def test_hidden_files_are_none_and_suffixes_may_be_upper_case(tmp_path):
    root = images_and_labels(tmp_path, ["x"], ["x"], suffix=".NII.GZ")
    touch(root, "imagesTr/._x.nii.gz", "labelsTr/._x.nii.gz", "__MACOSX/imagesTr/._x.nii.gz")
    assert pairs(root) == {"x": ("x.NII.GZ", "x.NII.GZ")}
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    write(tmp_path / "y.nii.gz", labels).rename(tmp_path / "Y.NII.GZ")
    assert load_case(pair_case(None, tmp_path / "Y.NII.GZ", None)).masks.count(1) == 8


@pytest.mark.parametrize(
    "folders",
    [("img", "label"), ("images", "labels"), ("CT", "masks"), ("scans", "segmentations"), ("ImagesTR", "labels_tr")],
)
def test_folders_of_images_and_labels_may_have_other_names(tmp_path, folders):
    assert pairs(images_and_labels(tmp_path, ["x"], ["x"], folders=folders)) == {"x": ("x", "x")}


def test_images_and_labels_may_lie_in_one_folder(tmp_path):
    touch(tmp_path, "x_img.nii.gz", "x_mask.nii.gz", "y_img.nii.gz", "y_mask.nii.gz")
    assert pairs(tmp_path) == {"x_img": ("x_img", "x_mask"), "y_img": ("y_img", "y_mask")}


def test_a_case_may_have_a_folder_of_its_own(tmp_path):
    for case in ("case_00000", "case_00001"):
        touch(tmp_path, f"{case}/imaging.nii.gz", f"{case}/segmentation.nii.gz")
    touch(
        tmp_path,
        "case_00002/imaging.nii.gz",
        "case_00003/imaging.nii.gz",
        "case_00003/a_seg.nii",
        "case_00003/b_seg.nii",
    )
    assert pairs(tmp_path) == {
        "case_00000": ("imaging", "segmentation"),
        "case_00001": ("imaging", "segmentation"),
        "case_00002": ("imaging", "-"),
    }
    found = only_set(tmp_path)
    assert "a_seg.nii, b_seg.nii" in found.cases[3].error
    assert list(found.unpaired(with_windows=True)) == ["case_00002"]


def test_folders_of_many_cases_are_datasets(tmp_path):
    for folder, numbers in (("Training Batch 1", (0, 1)), ("Training Batch 2", (2, 3))):
        for n in numbers:
            touch(tmp_path / folder, f"volume-{n}.nii", f"segmentation-{n}.nii")
    found = find_case_sets(tmp_path)
    assert {one.folder: [(c.image.name, c.label.name) for c in one.cases] for one in found} == {
        "Training Batch 1": [("volume-0.nii", "segmentation-0.nii"), ("volume-1.nii", "segmentation-1.nii")],
        "Training Batch 2": [("volume-2.nii", "segmentation-2.nii"), ("volume-3.nii", "segmentation-3.nii")],
    }
    touch(tmp_path / "b" / "Part1", "x.nii.gz", "y.nii.gz")
    with pytest.raises(ValueError, match="holds no case"):
        find_case_sets(tmp_path / "b")


def organ(start, stop):
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[start:stop, 2:6, 2:6] = 1
    return labels


def test_a_folder_with_a_file_an_organ_is_read_and_organs_keep_their_numbers(tmp_path):
    for case, organs in {
        "s0001": {"aorta": (1, 3), "liver": (4, 9), "spleen": (0, 0)},
        "s0002": {"liver": (4, 6)},
    }.items():
        write(tmp_path / case / "ct.nii.gz", organ(0, 12).astype(np.int16))
        for name, (start, stop) in organs.items():
            write(tmp_path / case / "segmentations" / f"{name}.nii.gz", organ(start, stop) * 255)
    first, second = (load_case(case) for case in only_set(tmp_path).cases)
    assert {first.names.of(n): first.masks.count(n) for n in first.masks.labels(first.names)} == {
        "aorta": 32,
        "liver": 80,
    }
    assert {n: second.masks.count(n) for n in second.masks.labels(second.names)} == {2: 32}
    assert first.image.shape == (12, 10, 8)
    alone = load_case(pair_case(tmp_path / "s0001/ct.nii.gz", tmp_path / "s0001/segmentations", None))
    assert alone.masks.count(2) == 80
    assert only_set(tmp_path / "s0001").cases[0].case_id == "s0001"
    write(tmp_path / "s0002" / "segmentations" / "liver.nii.gz", organ(4, 6) + organ(5, 7))
    with pytest.raises(ValueError, match=r"liver\.nii\.gz holds several labels"):
        load_case(only_set(tmp_path).cases[1])


def test_what_of_a_folder_is_not_read_is_said(tmp_path):
    root = touch(images_and_labels(tmp_path / "a", ["x"], ["x"]), "imagesTs/y.nii.gz", "imagesTs/z.nii.gz")
    assert only_set(root).notes == ("imagesTs (2 files) is not read",)
    touch(root, "labelsTr/x.nrrd", "labelsTr/.DS_Store")
    assert only_set(root).notes[1:] == ("labelsTr/x.nrrd is not .nii or .nii.gz, and not read",)
    touch(root, "labels_old/x.nii.gz")
    assert "labels_old (1 files) is not read" in only_set(root).notes
    touch(tmp_path, "readme/text.txt")
    assert only_set(tmp_path).notes[-1] == "no case was found in readme"


@pytest.mark.parametrize("case", ["{}/ct.nii.gz", "{}/image.npy"])
def test_folders_without_a_case_beside_folders_of_cases_are_named(tmp_path, case):
    touch(tmp_path, case.format("p1"), case.format("p2"), "p3/ct.nrrd", "p4/IM0001.dcm")
    assert [c.case_id for c in only_set(tmp_path).cases] == ["p1", "p2"]
    assert only_set(tmp_path).notes == ("no case was found in p3, p4",)


def test_what_of_a_case_s_folder_is_not_read_is_said(tmp_path):
    touch(tmp_path, "p1/ct.nii.gz", "p1/liver.nii.gz", "p1/structures/spleen.nii.gz", "p2/ct.nii.gz", "p2/seg.nii.gz")
    assert [c.notes for c in only_set(tmp_path).cases] == [
        ("liver.nii.gz, structures/ of its folder are not read",), (),
    ]  # fmt: skip
    root = images_and_labels(tmp_path / "many", ["x"], ["x/liver", "x/spleen"], folders=("images", "labels"))
    assert only_set(root).notes == ("labels (2 files) is not read",)


def test_one_of_the_two_folders_may_have_its_usual_name_and_the_other_not(tmp_path):
    assert pairs(images_and_labels(tmp_path / "a", ["x"], ["x"], folders=("imagesTr", "masks"))) == {"x": ("x", "x")}
    assert pairs(images_and_labels(tmp_path / "b", ["x"], ["x"], folders=("ct", "labelsTr"))) == {"x": ("x", "x")}
    images_and_labels(tmp_path / "b", [], ["x"], folders=("ct", "masks"))
    assert only_set(tmp_path / "b").notes == ("masks (1 files) is not read",)


def test_an_empty_folder_of_labels_is_named(tmp_path):
    (images_and_labels(tmp_path, ["x"], []) / "labelsTr").mkdir()
    assert only_set(tmp_path).notes == ("labelsTr holds no NIfTI file",)


def test_an_image_without_a_label_and_a_label_without_an_image_are_named(tmp_path):
    found = only_set(images_and_labels(tmp_path, ["a", "anna"], ["a", "berta"]))
    assert found.unpaired(with_windows=True) == {
        "anna": "no label goes with the image imagesTr/anna.nii.gz (left over: berta.nii.gz)",
        "berta": "no image goes with the label labelsTr/berta.nii.gz (left over: anna.nii.gz)",
    }
    assert list(found.unpaired(with_windows=False)) == ["anna"]


def test_a_folder_of_another_format_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"imagesTr/a\.mha, labelsTr/a\.mha are not .* and not read$"):
        find_case_sets(touch(tmp_path, "imagesTr/a.mha", "labelsTr/a.mha"))


def test_images_alone_lack_nothing(tmp_path):
    assert only_set(images_and_labels(tmp_path, ["a"], [])).unpaired(with_windows=True) == {}


def test_several_datasets_of_one_folder_stay_apart(tmp_path):
    for name in ("Task03_Liver", "Task09_Spleen"):
        images_and_labels(tmp_path / name, ["x"], ["x"])
    touch(tmp_path, "0007/case_a/image.npy", "0007/._0007.json", "0007/labels_of_it.json")
    found = find_case_sets(tmp_path)
    assert [(one.folder, [c.case_id for c in one.cases]) for one in found] == [
        ("0007", ["case_a"]), ("Task03_Liver", ["x"]), ("Task09_Spleen", ["x"]),
    ]  # fmt: skip
    assert found[0].cases[0].names == tmp_path / "0007/labels_of_it.json"
    with pytest.raises(ValueError, match="--spacing is for the M3D-Seg layout"):
        find_case_sets(tmp_path, (1.0, 1.0, 1.0))
