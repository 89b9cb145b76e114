"""Which way is up, in datasets of meshes and of scans: from the table, the format or the scan, and never mixed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import trimesh

from dataset_toolkits import process_m3d_seg_format
from dataset_toolkits.sdf_voxelize import main
from sdf_vqvae.codes import pipeline
from sdf_vqvae.data.tables import read_table
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import load_mesh
from sdf_vqvae.geometry.up import lay_back, up_of
from sdf_vqvae.geometry.upright_network import UpGuess


@pytest.fixture(autouse=True)
def looks_like_z(monkeypatch):
    """Whoever looks at a shape finds z up."""
    for name in ("guess_up", "usual_up"):
        monkeypatch.setattr(pipeline, name, lambda _: UpGuess(up="z", probability=0.9))


def tall(up: str, size: float = 1.0) -> trimesh.Trimesh:
    box = trimesh.creation.box((2 * size, 4 * size, size))
    return trimesh.Trimesh(lay_back(np.asarray(box.vertices), up), box.faces, process=False)


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    folder.mkdir()
    says = {"said.ply": "-x", "bad.obj": "north", "plain.stl": "", "known.glb": ""}
    for number, name in enumerate(says):
        tall({"said.ply": "-x", "plain.stl": "z"}.get(name, "y"), 1 + number).export(folder / name)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "up", "captions"])
        writer.writerows([name, up, "A box."] for name, up in says.items())
    return folder


def voxelize(folder: Path, output: Path, *options: str) -> int:
    command = ["--format", "folder", "--input_dir", str(folder), "--output_dir", str(output), "--resolutions", "32"]
    return main([*command, "--max_workers", "1", "--device", "cpu", *options])


def rows_of(output: Path) -> dict[str, dict[str, str]]:
    return {row["file"]: row for row in read_table(output / "metadata.csv")}


def test_each_object_stands_as_its_table_its_format_or_its_shape_says(tmp_path, meshes, capsys):
    assert voxelize(meshes, tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert {name: (row["up"], row["up_from"]) for name, row in rows.items() if row["sdf_computed"] == "True"} == {
        "said.ply": ("-x", "column up"),
        "plain.stl": ("z", "y or z by the shape, 90 % sure"),
        "known.glb": ("y", "glTF files stand along y"),
    }
    assert rows["bad.obj"]["error"].endswith("or auto; got 'north'")
    for name, row in rows.items():
        if name != "bad.obj":
            field = SparseSDF.load(tmp_path / "out" / f"{row['sha256']}_r32.npz")
            assert (field.up, field.up_from) == (row["up"], row["up_from"])
            sides = (field.index.amax(0) - field.index.amin(0)).tolist()
            assert sides[1] > sides[0] > sides[2]
    out = capsys.readouterr().out
    assert all(part in out for part in ("1 × z (y or z by the shape)", "1 × y (glTF files", "1 × -x (column up)"))
    assert json.loads((tmp_path / "out" / "voxelize_summary.json").read_text())["settings"]["up"] is None


def test_the_command_line_counts_before_the_table(tmp_path, meshes):
    assert voxelize(meshes, tmp_path / "out", "--up", "-z") == 0
    assert {row["up"] for row in rows_of(tmp_path / "out").values()} == {"-z"}


def test_a_second_run_keeps_what_stands_as_it_is_wanted_and_mixes_nothing(tmp_path, meshes, capsys):
    assert voxelize(meshes, tmp_path / "out") == 0
    before = rows_of(tmp_path / "out")
    assert voxelize(meshes, tmp_path / "out") == 0
    assert "0 fields computed, 3 kept" in capsys.readouterr().out
    assert rows_of(tmp_path / "out") == before
    for up in ("x", "auto"):
        assert voxelize(meshes, tmp_path / "out", "--up", up) == 2
        err = capsys.readouterr().err
        assert f"not {up} (--up): choose another --output_dir, or --no_skip to replace the files" in err
    assert voxelize(meshes, tmp_path / "out", "--up", "x", "--no_skip") == 0
    assert {row["up"] for row in rows_of(tmp_path / "out").values()} == {"x"}


def test_fields_of_an_earlier_version_are_kept_only_where_up_is_known_to_be_y(tmp_path, meshes, capsys):
    assert voxelize(meshes, tmp_path / "out", "--up", "y") == 0
    for path in (tmp_path / "out").glob("*.npz"):
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files if key not in ("up", "up_from")}
        np.savez(path, **arrays)
    capsys.readouterr()
    assert voxelize(meshes, tmp_path / "out", "--up", "y") == 0
    assert "0 fields computed, 4 kept" in capsys.readouterr().out
    assert voxelize(meshes, tmp_path / "out") == 2
    assert "with y up (which way is up was not asked then), not" in capsys.readouterr().err


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A case in M3D-Seg's layout with one organ that is long along z, its front end thinner."""
    folder = tmp_path / "0042" / "case"
    folder.mkdir(parents=True)
    labels = np.zeros((1, 16, 18, 24), dtype=np.int32)
    labels[0, 4:12, 5:11, 3:21] = 1
    (tmp_path / "0042" / "0042.json").write_text(json.dumps({"labels": {"1": "liver"}}))
    np.save(folder / "image.npy", labels.astype(np.float32))
    scipy.sparse.save_npz(folder / f"mask_{labels.shape}.npz", scipy.sparse.csr_matrix(labels.reshape(1, -1)))
    return tmp_path / "0042"


def organs(root: Path, out: Path, *options: str) -> int:
    arguments = ["--data_root", str(root), "--output_dir", str(out), "--use_mask", "--compute_sdf", *options]
    small = ["--default_resolution", "32", "--sdf_resolution", "32", "--num_workers", "1", "--spacing", "2,2,2"]
    return process_m3d_seg_format.main([*arguments, *small])


@pytest.mark.parametrize("suffix", ["ply", "obj", "stl", "glb", "off"])
def test_organs_stand_in_their_fields_and_lie_in_their_meshes_as_in_the_scanner(tmp_path, scan, suffix, capsys):
    assert organs(scan, tmp_path / "out", "--mesh_format", suffix) == 0
    assert "up: z (superior in the scan's millimetres)" in capsys.readouterr().out
    (row,) = read_table(tmp_path / "out" / "organs" / "metadata.csv")
    assert (row["up"], row["up_from"]) == ("z", "superior in the scan's millimetres")
    field = SparseSDF.load(tmp_path / "out" / "organs" / f"{row['sha256']}_r32.npz")
    assert (field.up, field.up_from) == (row["up"], row["up_from"])
    assert (field.index.amax(0) - field.index.amin(0)).argmax() == 1
    (file,) = (tmp_path / "out" / "processed" / "case" / "meshes").iterdir()
    mesh = load_mesh(file)
    assert np.ptp(mesh.vertices, axis=0).argmax() == 2
    assert field.center == pytest.approx(mesh.bounds.mean(axis=0), abs=1e-3)
    assert up_of(file).axis == "z" and up_of(file).known_from == "the file says so"
    again = SparseSDF.from_mesh(file, 32, up="z", device="cpu")
    assert again.index.float().mean(0).tolist() == pytest.approx(field.index.float().mean(0).tolist(), abs=0.1)


def test_a_scan_that_lies_otherwise_is_told_so(tmp_path, scan, capsys):
    assert organs(scan, tmp_path / "out", "--up", "-z") == 0
    (row,) = read_table(tmp_path / "out" / "organs" / "metadata.csv")
    assert (row["up"], row["up_from"]) == ("-z", "--up")
    assert organs(scan, tmp_path / "out", "--up", "auto") == 2
    assert "--up auto: organs stand as their scan does" in capsys.readouterr().err
