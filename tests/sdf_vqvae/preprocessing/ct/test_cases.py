"""Cases are found and read in both layouts; what is damaged or doesn't fit is refused in one line."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse

from sdf_vqvae.preprocessing.ct.cases import load_case
from sdf_vqvae.preprocessing.ct.layouts import find_case_sets, pair_case
from sdf_vqvae.preprocessing.ct.organs import organ_of, surface_of
from sdf_vqvae.preprocessing.ct.windows import (
    WINDOWS,
    grid_side,
    why_not_hounsfield,
    window_for,
    windows_for,
    write_padded,
)

SPACING = (1.0, 1.5, 4.0)


def find_cases(root, spacing=None):
    """Return the cases of all datasets of a folder."""
    return [case for one in find_case_sets(root, spacing) for case in one.cases]


def labels_of_a_case():
    """Return a volume `[20, 18, 10]` with a block (1), a smaller one (2) and a single voxel (3)."""
    labels = np.zeros((20, 18, 10), dtype=np.uint8)
    labels[2:12, 3:13, 2:7] = 1
    labels[13:18, 10:16, 6:9] = 2
    labels[1, 1, 1] = 3
    return labels


def image_of_a_case():
    labels = labels_of_a_case()
    return np.where(labels > 0, 60, -1000).astype(np.int16) + (labels == 2) * np.int16(500)


def write_m3d(root, *, image=None, labels=None, names=None):
    """Write one case in the M3D-Seg layout."""
    labels = labels_of_a_case() if labels is None else labels
    case = root / "0007" / "case_a"
    case.mkdir(parents=True)
    names = names or {"1": "liver", "2": "kidney left", "3": "rib right 7"}
    (root / "0007" / "0007.json").write_text(json.dumps({"labels": names}))
    np.save(case / "image.npy", (image_of_a_case() if image is None else image)[None])
    channels = np.stack([labels == i for i in (1, 2, 3)]).astype(np.int32)
    scipy.sparse.save_npz(case / f"mask_{channels.shape}.npz", scipy.sparse.csr_matrix(channels.reshape(3, -1)))
    return root / "0007"


def write_nifti(root, *, axes=None, labels=None, shift=0.0, names=None):
    """Write the same case as NIfTI, on demand with axes in another order."""
    nibabel = pytest.importorskip("nibabel")
    labels = labels_of_a_case() if labels is None else labels
    image = image_of_a_case()
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for path, array, moved in (("imagesTr/case_a_0000", image, 0.0), ("labelsTr/case_a", labels, shift)):
        affine = np.diag([*SPACING, 1.0])
        affine[:3, 3] = [-100 + moved, 20, 5]
        file = nibabel.Nifti1Image(array, affine)
        if axes is not None:
            wanted = nibabel.orientations.axcodes2ornt(axes)
            file = file.as_reoriented(
                nibabel.orientations.ornt_transform(nibabel.io_orientation(file.affine), wanted)
            )
        nibabel.save(file, root / f"{path}.nii.gz")
    names = names or {"background": 0, "liver": 1, "kidney left": 2, "rib right 7": 3}
    (root / "dataset.json").write_text(json.dumps({"labels": names}))
    return root


def test_m3d_is_found_as_one_dataset_or_as_several(tmp_path):
    root = write_m3d(tmp_path)
    for folder, place in ((root, ""), (tmp_path, "0007")):
        (found,) = find_case_sets(folder)
        assert (found.name, found.folder, [c.case_id for c in found.cases]) == ("0007", place, ["case_a"])


def test_both_layouts_give_the_same_organs(tmp_path):
    (m3d,) = find_cases(write_m3d(tmp_path / "m"), SPACING)
    first = load_case(m3d)
    assert first.spacing == SPACING
    assert first.spacing_known
    for axes in ("RAS", "LPS", "SAR", "AIL"):
        (nifti,) = find_cases(write_nifti(tmp_path / axes, axes=axes))
        second = load_case(nifti)
        assert second.names.names == first.names.names
        assert np.allclose(second.spacing, SPACING)
        for label in (1, 2, 3):
            assert np.array_equal(first.masks.places[label], second.masks.places[label]), (axes, label)
        assert np.array_equal(second.image, image_of_a_case())
        assert second.affine[:3, 3] == pytest.approx([-100, 20, 5])


def test_organs_lie_where_the_scanner_says_in_millimetres(tmp_path):
    (nifti,) = find_cases(write_nifti(tmp_path, axes="LPS"))
    case = load_case(nifti)
    surface = surface_of(case, 1)
    # Voxels 2..11, 3..12, 2..6 reach half a voxel further.
    low, high = np.array([1.5, 2.5, 1.5]) * SPACING, np.array([11.5, 12.5, 6.5]) * SPACING
    assert surface.mesh.bounds == pytest.approx(np.array([low, high]) + np.array([-100, 20, 5]), abs=2.5)
    assert surface.label_ml == pytest.approx(10 * 10 * 5 * 6 / 1000)
    assert surface.mesh_ml == pytest.approx(surface.label_ml, rel=1e-3)
    assert organ_of(case, "case_a", 1).volume_ml == pytest.approx(surface.label_ml)


def test_without_a_spacing_one_millimetre_is_assumed_and_said(tmp_path):
    (files,) = find_cases(write_m3d(tmp_path))
    case = load_case(files)
    assert case.spacing == (1.0, 1.0, 1.0)
    assert not case.spacing_known


def test_a_pair_of_files_needs_no_folder(tmp_path):
    root = write_nifti(tmp_path)
    files = pair_case(root / "imagesTr/case_a_0000.nii.gz", root / "labelsTr/case_a.nii.gz", root / "dataset.json")
    assert load_case(files).names.of(2) == "kidney left"
    alone = pair_case(None, root / "labelsTr/case_a.nii.gz", None)
    assert load_case(alone).names.of(2) == "kidney left"  # dataset.json lies above labelsTr
    assert load_case(alone).image is None
    (root / "dataset.json").unlink()
    assert load_case(pair_case(None, root / "labelsTr/case_a.nii.gz", None)).names.of(2) == "label 2"
    (root / "labelsTr/labels.json").write_text('{"2": "spleen"}')
    beside = pair_case(root / "imagesTr/case_a_0000.nii.gz", root / "labelsTr/case_a.nii.gz", None)
    assert load_case(beside).names.of(2) == "spleen"


def test_image_and_label_on_different_grids_are_refused(tmp_path):
    (files,) = find_cases(write_nifti(tmp_path / "a", shift=2.0))
    with pytest.raises(ValueError, match="2 mm apart"):
        load_case(files)
    (files,) = find_cases(write_nifti(tmp_path / "b", labels=labels_of_a_case()[:-1]))
    with pytest.raises(ValueError, match="the image has the shape"):
        load_case(files)
    (files,) = find_cases(write_m3d(tmp_path / "c", image=image_of_a_case()[:, :-1]))
    with pytest.raises(ValueError, match="the image has the shape"):
        load_case(files)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.97])
def test_a_truncated_nifti_is_refused(tmp_path, share):
    (files,) = find_cases(write_nifti(tmp_path))
    whole = files.label.read_bytes()
    files.label.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"case_a\.nii\.gz is not a readable NIfTI file"):
        load_case(files)


def test_a_nifti_that_claims_more_than_it_holds_is_refused_unread(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((1000, 1000, 1000))
    path = tmp_path / "bomb.nii"
    path.write_bytes(header.binaryblock + b"\0" * 4)
    with pytest.raises(ValueError, match="its header claims 8,000,000,000 bytes"):
        load_case(pair_case(None, path, None))
    header.set_data_shape((30000, 30000, 30000))
    path.write_bytes(header.binaryblock + b"\0" * 4)
    with pytest.raises(ValueError, match="is not read: at most"):
        load_case(pair_case(None, path, None))


def test_arrays_of_objects_and_text_are_refused(tmp_path):
    (files,) = find_cases(write_m3d(tmp_path))
    np.save(files.image, np.array([[[{"a": 1}]]], dtype=object))
    with pytest.raises(ValueError, match="not a readable array"):
        load_case(files)
    header = b"{'descr': '<f4', 'fortran_order'\0 False, 'shape': (1, 2, 3), }".ljust(117) + b"\n"
    files.image.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header)  # NumPy says TokenError
    with pytest.raises(ValueError, match="not a readable array"):
        load_case(files)
    files.image.write_text("no array")
    with pytest.raises(ValueError, match="not a readable array"):
        load_case(files)


@pytest.mark.parametrize("name", ["病人_01", "Пациент-1", "_a.b"])
def test_a_case_may_be_named_in_any_script(tmp_path, name):
    (files,) = find_cases(write_m3d(tmp_path))
    assert load_case(dataclasses.replace(files, case_id=name)).masks is not None


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "a b", "-a", "a\0", "", "病" * 70])
def test_a_case_is_no_path(tmp_path, name):
    (files,) = find_cases(write_m3d(tmp_path))
    with pytest.raises(ValueError, match="can't name a folder"):
        load_case(dataclasses.replace(files, case_id=name))


def test_a_description_without_labels_names_none(tmp_path):
    root = write_nifti(tmp_path)
    (root / "dataset.json").write_text(json.dumps({"name": "BTCV", "modality": {"0": "CT"}, "training": []}))
    (files,) = find_cases(root)
    case = load_case(files)
    assert [case.names.of(n) for n in case.masks.labels(case.names)] == ["label 1", "label 2", "label 3"]
    assert case.notes == ("dataset.json names no labels",)


def test_a_name_that_stands_twice_in_json_is_refused(tmp_path):
    root = write_nifti(tmp_path)
    (root / "dataset.json").write_text('{"labels": {"liver": 1, "liver": 2}}')
    (files,) = find_cases(root)
    with pytest.raises(ValueError, match="'liver' is given twice"):
        load_case(files)


def test_several_masks_of_one_case_are_refused(tmp_path):
    root = write_m3d(tmp_path)
    (root / "case_a" / "mask_(1, 2, 2, 2).npz").write_bytes(b"")
    (files,) = find_cases(root)
    with pytest.raises(ValueError, match="several mask files"):
        load_case(files)


def test_a_folder_without_cases_says_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match="imagesTr/ and labelsTr/"):
        find_cases(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        find_cases(tmp_path / "absent")


# -- how a volume lies -------------------------------------------------------------------------------------------


def write_volume(path, array, *, sform=None, qform=None, zooms=(2.0, 3.0, 4.0)):
    """Write a NIfTI file with the forms that are given, and no others."""
    nibabel = pytest.importorskip("nibabel")
    file = nibabel.Nifti1Image(array, None)
    file.header.set_zooms(zooms)
    for key, form in (("sform", sform), ("qform", qform)):
        if form is not None:
            getattr(file.header, f"set_{key}")(form, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(file, path)
    return path


def grid(*, flip=False, shift=0.0):
    affine = np.diag([-2.0 if flip else 2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = [10 + shift, 20, 30]
    return affine


def test_without_qform_and_sform_the_axes_stay_as_they_are_and_that_is_said(tmp_path):
    label = write_volume(tmp_path / "label.nii.gz", labels_of_a_case())
    case = load_case(pair_case(None, label, None))
    assert np.array_equal(np.unravel_index(case.masks.places[3], case.shape), [[1], [1], [1]])  # not turned round
    assert case.affine[:3, :3] == pytest.approx(np.diag([2.0, 3.0, 4.0]))
    assert case.spacing_known
    assert not case.orientation_known
    assert "no file has a qform or sform" in " ".join(case.notes)


@pytest.mark.parametrize("formless", ["image", "label"])
@pytest.mark.parametrize("zooms", [(2.0, 3.0, 4.0), (1.0, 1.0, 1.0)])
def test_of_image_and_label_one_form_places_both(tmp_path, formless, zooms):
    files = {}
    for name, array in (("image", image_of_a_case()), ("label", labels_of_a_case())):
        how = {"zooms": zooms} if name == formless else {"sform": grid(flip=True)}
        files[name] = write_volume(tmp_path / f"{name}.nii.gz", array, **how)
    for with_image in (True, False):
        case = load_case(pair_case(files["image"], files["label"], None), with_image=with_image)
        assert case.orientation_known
        # The voxel (1, 1, 1) is turned with the x axis, and lies where the form says: 10 - 2 mm.
        voxel = np.concatenate(np.unravel_index(case.masks.places[3], case.shape))
        assert voxel.tolist() == [18, 1, 1]
        assert (case.affine @ [*voxel, 1])[:3] == pytest.approx([8, 23, 34])
        if with_image:
            assert np.array_equal(case.image, image_of_a_case()[::-1])
            assert f"the {formless} has neither qform nor sform" in " ".join(case.notes)


def test_a_file_without_a_form_and_with_another_spacing_is_refused(tmp_path):
    image = write_volume(tmp_path / "image.nii.gz", image_of_a_case(), sform=grid())
    label = write_volume(tmp_path / "label.nii.gz", labels_of_a_case(), zooms=(2.0, 3.0, 5.0))
    with pytest.raises(ValueError, match="the spacings 2, 3, 4 and 2, 3, 5 mm"):
        load_case(pair_case(image, label, None))


def test_an_sform_wins_over_another_qform_and_that_is_said(tmp_path):
    both = write_volume(tmp_path / "both.nii.gz", labels_of_a_case(), sform=grid(), qform=grid(shift=7))
    case = load_case(pair_case(None, both, None))
    assert case.affine == pytest.approx(grid())
    assert case.notes == ("sform and qform differ by up to 7 mm: the sform is used, as in nibabel",)
    same = write_volume(tmp_path / "same.nii.gz", labels_of_a_case(), sform=grid(), qform=grid())
    assert load_case(pair_case(None, same, None)).notes == ()
    alone = write_volume(tmp_path / "alone.nii", labels_of_a_case(), sform=grid())
    assert load_case(pair_case(None, alone, None)).notes == ()
    header = bytearray(alone.read_bytes())
    header[80:92] = np.array([0.7, 0.7, 5], "<f4").tobytes()  # its pixdim, which some programs go by
    alone.write_bytes(header)
    (note,) = load_case(pair_case(None, alone, None)).notes
    assert note.startswith("the header's spacing and the sform's are 0.7, 0.7, 5 and ")
    turned = write_volume(tmp_path / "turned.nii.gz", labels_of_a_case(), qform=grid(flip=True))
    assert load_case(pair_case(None, turned, None)).affine[:3, 3] == pytest.approx([10 - 2 * 19, 20, 30])


# -- label volumes of floats -------------------------------------------------------------------------------------


def test_labels_that_are_stored_scaled_are_rounded_by_half_a_step(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels = labels_of_a_case()
    for highest in (7, 100):
        file = nibabel.Nifti1Image(np.where(labels == 3, highest, labels).astype(np.float64), np.eye(4))
        file.set_data_dtype(np.uint8)  # nibabel stores steps of highest / 255
        nibabel.save(file, tmp_path / "scaled.nii.gz")
        assert len(np.unique(np.asarray(nibabel.load(tmp_path / "scaled.nii.gz").dataobj) % 1)) > 1
        case = load_case(pair_case(None, tmp_path / "scaled.nii.gz", None))
        assert {n: case.masks.count(n) for n in case.masks.places} == {
            n if n < 3 else highest: int((labels == n).sum()) for n in (1, 2, 3)
        }
        assert "in steps of" in case.notes[0]


# -- windows -----------------------------------------------------------------------------------------------------


def test_windows_are_those_of_the_original_system():
    ranges = {name: (w.low, w.high) for name, w in WINDOWS.items()}
    assert ranges == {
        "lung": (-1350, 150),
        "bone": (-450, 1050),
        "soft_tissue": (-150, 250),
        "brain": (-5, 75),
    }


@pytest.mark.parametrize(
    ("organ", "window"),
    [
        ("lung_upper_lobe_left", "lung"),
        ("trachea", "lung"),
        ("vertebrae_L5", "bone"),
        ("rib left 7", "bone"),
        ("hip_right", "bone"),
        ("brain", "brain"),
        ("liver", "soft_tissue"),
        ("thyroid_gland", "soft_tissue"),
        ("hippocampus", "brain"),
        ("", "soft_tissue"),
    ],
)
def test_an_organ_s_name_chooses_its_window(organ, window):
    assert window_for(organ).name == window


def test_windows_of_a_case_are_those_of_its_organs():
    assert [w.name for w in windows_for(["liver", "rib left 7", "spleen"])] == ["bone", "soft_tissue"]
    assert len(windows_for([])) == 4


def test_numbers_that_are_not_hounsfield_units_are_refused():
    hounsfield = image_of_a_case()
    assert why_not_hounsfield(hounsfield) == ""
    normalized = (hounsfield - hounsfield.mean()) / hounsfield.std()
    assert "normalized or shifted" in why_not_hounsfield(normalized)
    assert "normalized or shifted" in why_not_hounsfield(hounsfield + 1024)  # air is 24
    assert "nothing lies beyond" in why_not_hounsfield(hounsfield.astype(np.float32) * 1e3)
    assert "not finite" in why_not_hounsfield(np.where(hounsfield > 0, np.nan, hounsfield))


def test_a_scan_takes_the_smallest_grid_that_it_fits():
    assert grid_side((512, 512, 100), 512) == 512
    assert grid_side((513, 512, 100), 512) == 1024
    with pytest.raises(ValueError, match="above 1024"):
        grid_side((1025, 512, 100), 512)


def test_padding_stands_behind_the_scan(tmp_path):
    block = np.arange(24).reshape(2, 3, 4) + 1
    write_padded(tmp_path / "a.npy", 8, block, dtype=np.int16, background=-1000)
    found = np.load(tmp_path / "a.npy")
    assert found.shape == (8, 8, 8)
    assert np.array_equal(found[:2, :3, :4], block)
    assert (found == -1000).sum() == 8**3 - 24
    write_padded(tmp_path / "b.npy", 8, block, dtype=np.uint8, corner=(1, 2, 3))
    found = np.load(tmp_path / "b.npy")
    assert np.array_equal(found[1:3, 2:5, 3:7], block)
    assert np.count_nonzero(found) == 24


# -- real data -----


def test_the_real_case_has_the_same_61_organs_in_both_layouts(reference_data):
    pytest.importorskip("nibabel")
    nifti = reference_data / "ct" / "nifti"
    first = load_case(pair_case(nifti / "ct.nii.gz", nifti / "organs.nii.gz", None))
    second = load_case(find_cases(reference_data / "ct" / "m3d_seg", (3.0, 3.0, 3.0))[0])
    by_name = {first.names.of(n).replace("_", " "): places for n, places in first.masks.places.items()}
    assert len(second.masks.places) == len(by_name) == 61
    for label, places in second.masks.places.items():
        assert np.array_equal(places, by_name[second.names.of(label)]), label
    assert np.allclose(first.spacing, second.spacing)
    assert why_not_hounsfield(first.image) == ""
    assert "normalized" in why_not_hounsfield(second.image)
