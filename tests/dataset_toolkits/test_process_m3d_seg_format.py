"""The program: scans in, masks, windows and a dataset of organs out; it resumes, and failures cost one case."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.sparse

from dataset_toolkits.process_m3d_seg_format import main, make_parser
from sdf_vqvae.commands.ct import INCOMPLETE
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.geometry import volume
from sdf_vqvae.geometry.mesh import load_mesh
from vae_qwen3vl.commands.main import main as command_line
from vae_qwen3vl.data.datasets_3d import SDF3DCaptionDataset

SMALL = ["--default_resolution", "32", "--sdf_resolution", "32", "--num_workers", "1"]
NAMES = {"1": "liver", "2": "kidney left", "3": "../../x"}


@pytest.fixture(autouse=True)
def coarse_surfaces(monkeypatch):
    """A quarter of the triangles is enough here."""
    monkeypatch.setattr(volume, "_CELLS", 32)


def labels_of(seed=0):
    labels = np.zeros((24, 20, 16), dtype=np.uint8)
    grid = np.indices(labels.shape)
    for number, (center, radius) in enumerate([((8 + seed, 10, 8), 6), ((18, 6, 5), 4), ((20, 16, 12), 2)], start=1):
        inside = sum((g - c) ** 2 for g, c in zip(grid, center, strict=True)) <= radius**2
        labels[inside & (labels == 0)] = number
    return labels


def write_dataset(root, cases=("a", "b"), normalized=True):
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{root.name}.json").write_text(json.dumps({"labels": NAMES}))
    for seed, case in enumerate(cases):
        labels = labels_of(seed)
        image = np.where(labels > 0, 60.0, -1000.0)
        image[labels == 2] = 700
        if normalized:
            image = (image - image.mean()) / image.std()
        (root / case).mkdir()
        np.save(root / case / "image.npy", image[None].astype(np.float32))
        channels = np.stack([labels == i for i in (1, 2, 3)]).astype(np.int32)
        scipy.sparse.save_npz(
            root / case / f"mask_{channels.shape}.npz", scipy.sparse.csr_matrix(channels.reshape(3, -1))
        )
    return root


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_mask_mode_leaves_what_the_original_does_and_a_dataset_of_organs(tmp_path, capsys):
    root, out = write_dataset(tmp_path / "0042"), tmp_path / "out"
    arguments = ["--data_root", str(root), "--output_dir", str(out), "--use_mask", "--compute_sdf"]
    assert main([*arguments, *SMALL, "--spacing", "2,2,2"]) == 0
    assert "trainable samples: 6" in capsys.readouterr().out

    rows = table(out / "metadata.csv")
    assert [row["case_id"] for row in rows] == ["a", "b"]
    assert rows[0]["original_shape"] == "24,20,16"
    assert rows[0]["adapted_shape"] == "32,32,32"
    assert json.loads(rows[0]["organs_present"]) == list(NAMES.values())
    assert rows[0]["spacing"] == "2,2,2"
    assert json.loads((out / "failed_cases.json").read_text()) == []
    config = json.loads((out / "dataset_config.json").read_text())
    assert (config["dataset_name"], config["num_cases"], config["num_organs"]) == ("0042", 2, 6)
    assert (out / "debug_logs" / "a.log").read_text().count("label") == 3

    masks = out / "processed" / "a" / "masks"
    mask = np.load(masks / "1_binary.npy")
    assert mask.shape == (32, 32, 32)
    assert np.array_equal(mask[:24, :20, :16], labels_of() == 1)
    assert json.loads((masks / "organ_labels.json").read_text())["label_to_name"] == NAMES

    organs = FieldFolder(out / "organs", 32)
    assert len(organs) == 6
    row = organs.rows[0]
    assert (row["organ"], row["case_id"], row["label"]) == ("liver", "a", "1")
    assert float(row["volume_ml"]) == pytest.approx((labels_of() == 1).sum() * 8 / 1000)
    assert float(row["mesh_ml"]) == pytest.approx(float(row["volume_ml"]), rel=2e-3)
    assert json.loads(row["captions"])[0] == f"The liver, from a CT scan, {float(row['volume_ml']):.1f} ml."
    field = organs[0]
    assert len(field.sdf) == int(row["r32_num_points"])
    assert field.sign_method == "volume"
    assert np.array(field.center) == pytest.approx([16, 20, 16], abs=0.5)  # millimetres
    assert field.scale == pytest.approx(0.95 / 26, rel=0.1)
    assert (masks / "1_sdf.npz").read_bytes() == organs.path(row["sha256"]).read_bytes()

    samples = SDF3DCaptionDataset(out / "organs", 32)
    assert len(samples) == 6
    assert samples[0]["caption"] in json.loads(row["captions"])

    # The hostile name went nowhere: every file lies where it should.
    assert {p.name for p in (out / "processed" / "a" / "meshes").iterdir()} == {
        "1_liver.ply", "2_kidney_left.ply", "3_x.ply",
    }  # fmt: skip
    assert {p.name for p in tmp_path.iterdir()} == {"0042", "out"}
    mesh = load_mesh(out / "processed" / "a" / "meshes" / "1_liver.ply")
    assert mesh.volume / 1000 == pytest.approx(float(row["volume_ml"]), rel=2e-3)


def test_windows_need_hounsfield_units_but_masks_and_fields_do_not(tmp_path, capsys):
    root, out = write_dataset(tmp_path / "0042"), tmp_path / "out"
    assert main(["--data_root", str(root), "--output_dir", str(out), "--compute_sdf", *SMALL]) == 0
    assert "without windows: 2" in capsys.readouterr().out
    row = table(out / "metadata.csv")[0]
    assert "normalized or shifted" in row["windows_error"]
    assert row["windows_processed"] == "[]"
    assert row["hounsfield"] == "False"
    assert len(FieldFolder(out / "organs", 32)) == 6
    assert not (out / "processed" / "a" / "windows").exists()
    assert np.load(out / row["ct_path"]).dtype == np.float32


def test_window_mode_writes_image_windows_and_organs(tmp_path):
    root, out = write_dataset(tmp_path / "0042", ("a",), normalized=False), tmp_path / "out"
    assert main(["--data_root", str(root), "--output_dir", str(out), *SMALL]) == 0
    row = table(out / "metadata.csv")[0]
    assert json.loads(row["windows_processed"]) == ["soft_tissue"]
    image = np.load(out / row["ct_path"])
    assert image.shape == (32, 32, 32)
    assert image[0, 0, 0] == image[-1, -1, -1] == -1000
    window = np.load(out / "processed/a/windows/soft_tissue_w400_l50.npy")
    assert np.array_equal(window[:24, :20, :16] == 1, np.isin(labels_of(), (1, 3)))
    assert files_of(out / "processed/a/organs") == {
        "1_liver/mask.npy", "2_kidney_left/mask.npy", "3_x/mask.npy", "organ_labels.json",
    }  # fmt: skip
    assert not (out / "organs").exists()


def test_replace_npy_leaves_fields_instead_of_arrays(tmp_path):
    root, out = write_dataset(tmp_path / "0042", ("a",), normalized=False), tmp_path / "out"
    arguments = ["--data_root", str(root), "--output_dir", str(out), "--compute_sdf", "--replace_npy"]
    assert main([*arguments, *SMALL, "--organs", "Kidney_Left", "--mesh_format", "none"]) == 0
    assert files_of(out / "processed/a") == {
        "ct_original_32.npy", "info.json", "organs/organ_labels.json", "organs/2_kidney_left/sdf.npz",
        "windows/soft_tissue_w400_l50.npz",
    }  # fmt: skip
    assert [row["organ"] for row in FieldFolder(out / "organs", 32).rows] == ["kidney left"]


def test_a_bad_case_costs_itself_alone(tmp_path, capsys):
    root, out = write_dataset(tmp_path / "0042"), tmp_path / "out"
    (root / "c").mkdir()
    (root / "c" / "mask_(9999999999, 9999, 9999, 9999).npz").write_bytes(b"PK")
    (root / "bad name").mkdir()
    shutil.copy(root / "a" / "image.npy", root / "bad name")
    assert main(["--data_root", str(root), "--output_dir", str(out), "--use_mask", *SMALL]) == INCOMPLETE
    assert "cases: 2 done, 1 failed, 1 unpaired" in capsys.readouterr().out
    failed = {item["case_id"]: item["error"] for item in json.loads((out / "failed_cases.json").read_text())}
    assert "is not read" in failed["c"]
    assert "can't name a folder" in failed["bad name"]
    assert {row["case_id"]: bool(row["error"]) for row in table(out / "metadata.csv")} == {
        "a": False, "b": False, "c": True, "bad name": True,
    }  # fmt: skip


def test_a_second_run_goes_on_and_another_setting_starts_again(tmp_path, caplog):
    root, out = write_dataset(tmp_path / "0042"), tmp_path / "out"
    arguments = ["--data_root", str(root), "--output_dir", str(out), "--use_mask", "--compute_sdf", *SMALL]
    assert main([*arguments, "--max_cases", "1"]) == 0
    record = out / "processed" / "a" / "info.json"
    first = record.stat().st_mtime_ns
    assert main(arguments) == 0
    assert record.stat().st_mtime_ns == first
    assert len(FieldFolder(out / "organs", 32)) == 6
    tables = [(out / name).read_bytes() for name in ("metadata.csv", "organs/metadata.csv")]
    next((out / "organs").glob("*.npz")).unlink()  # a lost field is made again
    assert main(arguments) == 0
    assert len(FieldFolder(out / "organs", 32)) == 6
    assert (out / "organs/metadata.csv").read_bytes() == tables[1]
    before = record.stat().st_mtime_ns
    assert main([*arguments, "--no_skip"]) == 0
    assert record.stat().st_mtime_ns > before
    assert main([*arguments, "--spacing", "3,3,3"]) == 0
    assert len(list((out / "organs").glob("*.npz"))) == 6  # those of the other spacing are gone
    assert len(FieldFolder(out / "organs", 32)) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data_root, or --image and --label"),
        (["--data_root", "absent"], "is not a folder"),
        (["--image", "x.nii", "--data_root", "y"], "not both"),
        (["--image", "x.png"], "NIfTI files"),
        (["--image", "absent.nii.gz"], "does not exist"),
        (["--data_root", ".", "--replace_npy"], "needs --compute_sdf"),
    ],
)
def test_what_can_t_be_done_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    if "absent.nii.gz" in arguments:
        pytest.importorskip("nibabel")
    assert main([*arguments, "--output_dir", "out", "--num_workers", "1"]) == 2
    found = capsys.readouterr()
    assert message in found.err + found.out


@pytest.mark.parametrize("spacing", ["1,2", "0,1,1", "1,1,1000", "a,b,c", "nan,1,1"])
def test_a_spacing_that_no_scan_has_is_a_usage_error(capsys, spacing):
    with pytest.raises(SystemExit) as stop:
        main(["--data_root", ".", "--output_dir", "out", "--spacing", spacing])
    assert stop.value.code == 2


# -- what is paired, chosen and said -----------------------------------------------------------------------------


def write_nifti(root, *, images=("x",), labels=("x",), names=None, affine=True):
    """Write NIfTI folders whose scans all have the same two labels, 1 and 2."""
    nibabel = pytest.importorskip("nibabel")
    voxels = np.where(labels_of() == 3, 0, labels_of())
    image = np.where(voxels > 0, 60, -1000).astype(np.int16) + (voxels == 2) * np.int16(500)
    for folder, stems, array in (("imagesTr", images, image), ("labelsTr", labels, voxels.astype(np.uint8))):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for stem in stems:
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine else None), root / folder / f"{stem}.nii.gz")
    if names is not None:
        (root / "dataset.json").write_text(json.dumps({"labels": names}, ensure_ascii=False))
    return root


def test_a_folder_of_several_datasets_becomes_as_many_folders(tmp_path, capsys):
    for name, cases in (("0000", ("a", "b")), ("0001", ("a",))):
        write_dataset(tmp_path / "root" / name, cases)
    arguments = ["--output_dir", str(tmp_path / "out"), "--use_mask", "--compute_sdf", *SMALL]
    assert main(["--data_root", str(tmp_path / "root"), *arguments]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["0000", "0001"]
    for name, cases in (("0000", ["a", "b"]), ("0001", ["a"])):
        out = tmp_path / "out" / name
        assert json.loads((out / "dataset_config.json").read_text())["dataset_name"] == name
        assert [row["case_id"] for row in table(out / "metadata.csv")] == cases
        assert sorted(p.name for p in (out / "processed").iterdir()) == cases
        assert len(FieldFolder(out / "organs", 32)) == 3 * len(cases)
    assert main(["--data_root", str(tmp_path / "root"), *arguments, "--max_cases", "3", "--organs", "liver"]) == 0
    capsys.readouterr()
    # One of them alone is written as before.
    assert main(["--data_root", str(tmp_path / "root" / "0001"), "--output_dir", str(tmp_path / "one"), *SMALL]) == 0
    assert {p.name for p in (tmp_path / "one").iterdir()} >= {"metadata.csv", "dataset_config.json", "processed"}


def test_what_has_no_partner_is_in_the_log_in_the_summary_and_in_the_exit_code(tmp_path, capsys, caplog):
    root = write_nifti(
        tmp_path / "set", images=("x", "anna"), labels=("x", "berta"), names={"1": "liver", "2": "rib"}
    )
    out = tmp_path / "out"
    assert main(["--data_root", str(root), "--output_dir", str(out), *SMALL]) == INCOMPLETE
    said = capsys.readouterr().out
    assert "cases: 3 done, 0 failed, 2 unpaired" in said
    for line in ("anna: no label goes with the image", "berta: no image goes with the label"):
        assert line in said
        assert line in caplog.text
    assert list(json.loads((out / "dataset_config.json").read_text())["unpaired"]) == ["anna", "berta"]
    assert {row["case_id"]: row["organs_present"] for row in table(out / "metadata.csv")} == {
        "anna": "[]", "berta": '["liver", "rib"]', "x": '["liver", "rib"]',
    }  # fmt: skip
    few = ["--data_root", str(root), "--output_dir", str(tmp_path / "few"), *SMALL, "--max_cases", "1"]
    assert main(few) == INCOMPLETE
    assert "cases: 1 done, 0 failed, 1 unpaired" in capsys.readouterr().out
    # With masks alone a label needs no image, and an image without a label is nothing to go on.
    assert main(["--data_root", str(root), "--output_dir", str(tmp_path / "m"), "--use_mask", *SMALL]) == INCOMPLETE
    assert "cases: 2 done, 0 failed, 1 unpaired" in capsys.readouterr().out
    assert main(["--label", str(root / "labelsTr/x.nii.gz"), "--output_dir", str(tmp_path / "l"), *SMALL]) == 0


def test_an_unknown_organ_is_an_error_and_nothing_is_written(tmp_path, capsys):
    root, out = write_nifti(tmp_path / "set", names={"1": "肝", "2": "左肾"}), tmp_path / "out"
    arguments = ["--data_root", str(root), "--output_dir", str(out), "--compute_sdf", *SMALL]
    assert main([*arguments, "--organs", "肝,肾"]) == 2
    assert "no label is called '肾'; there are 左肾, 肝" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(SystemExit):
        main([*arguments, "--organs", " , "])
    (tmp_path / "damaged.json").write_text("{")
    assert main([*arguments, "--organs", "肝", "--organ_labels", str(tmp_path / "damaged.json")]) == 2
    assert "damaged.json: Expecting" in capsys.readouterr().err
    assert main([*arguments, "--organs", "肝"]) == 0
    assert [row["organ"] for row in FieldFolder(out / "organs", 32).rows] == ["肝"]
    assert (out / "processed/x/meshes/1_肝.ply").is_file()
    assert (out / "processed/x/organs/1_肝/mask.npy").is_file()


def test_regions_are_organs_and_labels_without_a_name_have_no_caption(tmp_path, capsys):
    names = {"background": 0, "both": [1, 2], "spleen": 5}
    root, out = write_nifti(tmp_path / "set", names=names), tmp_path / "out"
    assert main(["--data_root", str(root), "--output_dir", str(out), "--use_mask", "--compute_sdf", *SMALL]) == 0
    (row,) = FieldFolder(out / "organs", 32).rows
    assert (row["organ"], row["label"]) == ("both", "1+2")
    assert int(row["voxels"]) == int(np.isin(labels_of(), (1, 2)).sum())
    assert (out / "processed/x/meshes/1+2_both.ply").is_file()
    assert (out / "processed/x/masks/1+2_binary.npy").is_file()
    (case,) = table(out / "metadata.csv")
    assert case["organs_absent"] == '["spleen (5)"]'
    assert "no voxel of spleen (5)" in (out / "debug_logs/x.log").read_text()
    write_nifti(tmp_path / "set", names={"1": "liver", "2": "label_2"})
    capsys.readouterr()
    assert main(["--data_root", str(root), "--output_dir", str(out), "--use_mask", "--compute_sdf", *SMALL]) == 0
    assert "trainable samples: 1 in" in capsys.readouterr().out
    rows = {row["label"]: row for row in FieldFolder(out / "organs", 32).rows}
    assert json.loads(rows["1"]["captions"])[-1] == "liver"
    assert rows["2"]["captions"] == ""
    assert len(SDF3DCaptionDataset(out / "organs", 32)) == 1


def test_a_scan_without_a_form_is_named(tmp_path, capsys, caplog):
    root, out = write_nifti(tmp_path / "set", affine=False, names={"1": "liver", "2": "rib"}), tmp_path / "out"
    assert main(["--data_root", str(root), "--output_dir", str(out), "--use_mask", *SMALL]) == 0
    (row,) = table(out / "metadata.csv")
    assert (row["spacing_known"], row["orientation_known"]) == ("True", "False")
    for text in (capsys.readouterr().out, caplog.text, row["notes"], (out / "debug_logs/x.log").read_text()):
        assert "no file has a qform or sform" in text
    mask = np.load(out / "processed/x/masks/1_binary.npy")
    assert np.array_equal(mask[:24, :20, :16], labels_of() == 1)  # as it stands in the file


# -- on to codes -------------------------------------------------------------------------------------------------


def write_thin_organ(folder):
    """Write `ct.nii.gz` and `organs.nii.gz` with one thin organ, whose field is small at any resolution."""
    nibabel = pytest.importorskip("nibabel")
    labels = np.zeros((24, 8, 8), np.uint8)
    labels[2:22, 3:5, 3:5] = 1
    image = np.where(labels > 0, 400, -1000).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "organs.nii.gz")


def run(line):
    """Run a command line of the documents in this process, and return its exit code."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        return main([*arguments[1:], "--num_workers", "1"])
    return command_line([*arguments, "--device", "cpu"] if arguments[0] == "encode" else arguments)


def test_the_readme_s_lines_lead_from_a_scan_to_codes(tmp_path, monkeypatch, repository):
    lines = (repository / "README.md").read_text(encoding="utf-8").splitlines()
    (process,) = (line for line in lines if "process_m3d_seg_format.py --image" in line)
    (encode,) = (line for line in lines if line.startswith("vae-qwen3vl encode M3D_Seg_processed"))
    write_thin_organ(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(process) == 0
    assert run(encode) == 0
    assert [int(row["codes"]) > 0 for row in table(tmp_path / "organ_codes/metadata.csv")] == [True]


def test_the_documented_lines_are_understood(repository):
    text = (repository / "docs/ct.md").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^python dataset_toolkits/process_m3d_seg_format.py (.*)", text, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        assert make_parser().parse_args(shlex.split(line)).sdf_resolution == 256


def test_fields_of_another_grid_are_named_and_what_is_advised_works(tmp_path, monkeypatch, capsys):
    write_thin_organ(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["--image", "ct.nii.gz", "--label", "organs.nii.gz", "--output_dir", "out", "--use_mask",
                 "--compute_sdf", *SMALL]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "the shipped tokenizer reads fields of 256^3 and band 3, these have 32^3 and 3" in said
    advised = re.search(r"`(vae-qwen3vl convert .*)`", said)[1]
    assert run("vae-qwen3vl encode out/organs -o codes") == 2
    error = capsys.readouterr().err
    assert "its fields are of 32^3. Make them with --sdf_resolution 256 (CT scans)" in error
    assert "`vae-qwen3vl convert out/organs -o OUT`" in error
    assert run(advised) == 0
    assert run("vae-qwen3vl encode out/organs_r256 -o codes") == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_nothing_half(tmp_path, repository):
    root, out = write_dataset(tmp_path / "0042", [f"case{i}" for i in range(6)]), tmp_path / "out"
    arguments = ["--data_root", str(root), "--output_dir", str(out), "--use_mask", "--compute_sdf", *SMALL]
    program = [sys.executable, "dataset_toolkits/process_m3d_seg_format.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(program, cwd=repository, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and not list(out.glob("processed/case*/info.json")):
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("processed/case*/info.json")}
    assert 0 < len(done) < 6
    for left in ("organs/.x.0123.tmp.npz", "processed/.case9.0123.tmp/masks/1_binary.npy", ".metadata.0123.tmp.csv"):
        (out / left).parent.mkdir(parents=True, exist_ok=True)
        (out / left).write_bytes(b"half")
    assert main(arguments) == 0
    assert not list(out.rglob("*.tmp*"))
    again = {p.parent.name: p.stat().st_mtime_ns for p in out.glob("processed/case*/info.json")}
    assert {name: again[name] for name in done} == done  # nothing twice
    assert len(again) == 6
    organs = FieldFolder(out / "organs", 32)
    assert len(organs) == 18 == len(list((out / "organs").glob("*.npz")))
    for number in range(len(organs)):
        assert len(organs[number].sdf) > 0


@pytest.mark.slow
def test_organs_of_a_real_scan_pass_through_the_tokenizer_from_both_layouts(tmp_path, reference_data):
    pytest.importorskip("nibabel")
    from sdf_vqvae.model.checkpoint import load_vae_from_config

    data = reference_data / "ct"
    common = [
        "--use_mask",
        "--compute_sdf",
        "--sdf_resolution",
        "64",
        "--default_resolution",
        "128",
        "--num_workers",
        "1",
    ]
    sources = {
        "m3d": ["--data_root", str(data / "m3d_seg/0999"), "--spacing", "3,3,3",
                "--organs", "spleen,vertebrae L5,rib right 7"],
        "nifti": ["--image", str(data / "nifti/ct.nii.gz"), "--label", str(data / "nifti/organs.nii.gz"),
                  "--organs", "spleen,vertebrae_L5,rib_right_7"],
    }  # fmt: skip
    found = {}
    for name, source in sources.items():
        assert main([*source, "--output_dir", str(tmp_path / name), *common]) == 0
        found[name] = FieldFolder(tmp_path / name / "organs", 64)
    assert len(found["m3d"]) == len(found["nifti"]) == 3
    nifti = {row["organ"].replace("_", " "): i for i, row in enumerate(found["nifti"].rows)}
    for i, row in enumerate(found["m3d"].rows):
        first, second = found["m3d"][i], found["nifti"][nifti[row["organ"]]]
        assert np.array_equal(first.index, second.index)
        assert float((first.sdf - second.sdf).abs().max()) < 1e-3
        offset = np.array(second.center) - np.array(first.center)
        assert offset == pytest.approx([-177.956, 11.319, 94.302], abs=1e-2)
    vae = load_vae_from_config()
    codes = vae.Encode(found["m3d"][0].to_batch())
    assert len(codes) > 0
