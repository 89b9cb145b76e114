"""Meshes to a dataset of fields: every format, every failure, and runs that were cut off."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from dataset_toolkits.sdf_voxelize import main
from sdf_vqvae.data.field_folder import FieldFolder
from sdf_vqvae.data.tables import read_table
from sdf_vqvae.fields.sparse_sdf import SparseSDF

RESOLUTION = 32


def run(folder: Path, output: Path, *options: str, source_format: str = "folder", resolutions: str = "32") -> int:
    command = ["--format", source_format, "--input_dir", str(folder), "--output_dir", str(output)]
    command += ["--resolutions", resolutions, "--max_workers", "1", "--device", "cpu"]
    return main([*command, *options])


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def make_meshes(folder: Path, count: int, subdivisions: int = 1) -> Path:
    """Write ellipsoids of different lengths, and a table with a caption for each."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
        mesh.apply_scale((1, 1 + number / 10, 1))
        mesh.export(folder / f"{number:03}.ply")
        rows.append({"file": f"{number:03}.ply", "up": "y", "captions": json.dumps([f"ellipsoid {number}"])})
    write_table(folder / "metadata.csv", rows)
    return folder


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    return make_meshes(tmp_path / "meshes", 3)


def table_of(output: Path) -> list[dict[str, str]]:
    return list(read_table(output / "metadata.csv"))


def summary_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "voxelize_summary.json").read_bytes())


def fields_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.glob("[!.]*.npz"))}


def test_a_folder_of_meshes_becomes_a_dataset(meshes, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(meshes, output, resolutions="32,48") == 0
    rows = table_of(output)
    assert [row["file"] for row in rows] == ["000.ply", "001.ply", "002.ply"]
    for row in rows:
        assert (row["sdf_computed"], row["watertight"], row["sign_method"], row["error"]) == (
            "True",
            "True",
            "winding",
            "",
        )
        for resolution in (32, 48):
            field = SparseSDF.load(output / f"{row['sha256']}_r{resolution}.npz")
            assert str(len(field.sdf)) == row[f"r{resolution}_num_points"] and not row[f"r{resolution}_error"]
            expected = SparseSDF.from_mesh(meshes / row["file"], resolution, device="cpu")
            assert (field.field, field.center, field.scale) == (expected.field, expected.center, expected.scale)
            assert field.sdf.equal(expected.sdf) and field.index.equal(expected.index)
    summary = summary_of(output)
    assert summary["trainable"] == {"32": 3, "48": 3} and summary["sign_methods"] == {"winding": 6}
    assert summary["bytes"] == sum(path.stat().st_size for path in output.glob("*.npz"))
    assert "32^3: 3 fields, 3 trainable samples" in capsys.readouterr().out


def test_what_is_read_is_what_the_folder_of_fields_offers(meshes, tmp_path):
    run(meshes, tmp_path / "out")
    fields = FieldFolder(tmp_path / "out", RESOLUTION)
    assert len(fields) == 3 and json.loads(fields.rows[1]["captions"]) == ["ellipsoid 1"]


def test_bad_rows_and_meshes_stay_with_their_reasons_and_the_rest_goes_on(tmp_path, capsys):
    data = make_meshes(tmp_path / "data", 2)
    (data / "broken.glb").write_bytes(b"glTF" + bytes(50))
    (data / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n")
    label = {"overall_label": "a thing"}
    rows = [
        {"sha256": "good", "glb_file": "000.ply", **label},
        {"sha256": "../../x", "glb_file": "001.ply", **label},
        {"sha256": "two", "glb_file": "000.ply", **label},
        {"sha256": "two", "glb_file": "001.ply", **label},
        {"sha256": "unreadable", "glb_file": "broken.glb", **label},
        {"sha256": "flat", "glb_file": "flat.obj", **label},
        {"sha256": "gone", "glb_file": "gone.glb", **label},
        {"sha256": "silent", "glb_file": "001.ply"},
    ]
    write_table(data / "metadata.csv", rows)
    output = tmp_path / "deep/out"
    assert run(data, output, source_format="custom") == 0
    found = table_of(output)
    assert [row["sha256"] for row in found] == [row["sha256"] for row in rows]
    assert [row["sdf_computed"] for row in found] == ["True", *["False"] * 6, "True"]
    reasons = [
        "",
        "plain name",
        "its id 'two' stands for different files: 000.ply (row 3), 001.ply (row 4)",
        "its id 'two' stands for different files",
        "readable",
        "no face of the mesh has an area",
        "exist",
        "",
    ]
    for row, reason in zip(found, reasons, strict=True):
        assert reason in row["error"] and row["error"] == row["r32_error"] and bool(row["error"]) == bool(reason)
    assert set(fields_of(output)) == {"good_r32.npz", "silent_r32.npz"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "deep"]
    summary = summary_of(output)
    assert (summary["failed_rows"], summary["trainable"], sum(summary["failures"].values())) == (6, {"32": 1}, 6)
    assert "failed: 1 × its id … is not a plain name" in capsys.readouterr().out


def test_a_finished_run_does_nothing_again_and_says_the_same(meshes, tmp_path):
    output = tmp_path / "out"
    run(meshes, output)
    before = {path: path.stat().st_mtime_ns for path in output.glob("*.npz")}
    table = (output / "metadata.csv").read_bytes()
    assert run(meshes, output) == 0
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.npz")} == before
    assert (output / "metadata.csv").read_bytes() == table
    assert (summary_of(output)["computed"], summary_of(output)["kept"]) == (0, 3)
    assert run(meshes, output, "--no_skip") == 0
    assert (summary_of(output)["computed"], summary_of(output)["kept"]) == (3, 0)


def test_damaged_files_are_made_again(meshes, tmp_path):
    output = tmp_path / "out"
    run(meshes, output)
    whole = fields_of(output)
    victim = output / next(iter(whole))
    victim.write_bytes(victim.read_bytes()[:-100])
    run(meshes, output)
    assert fields_of(output) == whole and summary_of(output)["computed"] == 1


@pytest.mark.parametrize("options", [["--threshold_factor", "2"], ["--unsigned"]])
def test_fields_of_another_kind_are_not_mixed(meshes, tmp_path, capsys, options):
    output = tmp_path / "out"
    run(meshes, output)
    whole = fields_of(output)
    assert run(meshes, output, *options) == 2
    assert "is there already" in (error := capsys.readouterr().err) and "--no_skip" in error
    assert fields_of(output) == whole
    assert run(meshes, output, *options, "--no_skip") == 0


def test_unsigned_files_are_the_originals(tmp_path, capsys):
    meshes, output = make_meshes(tmp_path / "meshes", 1, subdivisions=3), tmp_path / "out"
    assert run(meshes, output, "--unsigned", "--threshold_factor", "0.5") == 0
    with np.load(next(output.glob("*.npz"))) as file:
        sdf, index, resolution = file["sparse_sdf"], file["sparse_index"], file["resolution"]
    assert (sdf.dtype, index.dtype, resolution.shape, int(resolution)) == (np.float32, np.int32, (), RESOLUTION)
    assert sdf.shape == (len(index), 1) and sdf.min() >= 0 and sdf.max() <= 0.5 / RESOLUTION
    # The sphere of diameter 0.95 stands in the middle of a grid whose samples are i / (R - 1) - 0.5.
    first = table_of(output)[0]
    field = SparseSDF.load(output / f"{first['sha256']}_r32.npz")
    assert (field.field.kind, field.field.unit, field.field.sampling, field.field.band) == (
        "udf",
        "world",
        "corner",
        None,
    )
    radii = (field.index.double() / (RESOLUTION - 1) - 0.5).norm(dim=1)
    assert abs(float(radii.mean()) - 0.475) < 0.005
    assert run(meshes, output, "--unsigned") == 2
    assert "holds fields of --threshold_factor 0.5, not 3" in capsys.readouterr().err


def test_other_rows_and_resolutions_of_an_earlier_run_stay(meshes, tmp_path):
    output = tmp_path / "out"
    run(meshes, output, "--max_samples", "2")
    other = make_meshes(tmp_path / "other", 1, subdivisions=2)
    assert run(other, output, resolutions="48") == 0
    assert run(meshes, output, resolutions="24") == 0
    rows = table_of(output)
    assert [row["file"] for row in rows] == ["000.ply", "000.ply", "001.ply", "002.ply"]
    assert [bool(row["r48_num_points"]) for row in rows] == [True, False, False, False]
    assert [bool(row["r32_num_points"]) for row in rows] == [False, True, True, False]
    assert [bool(row["r24_num_points"]) for row in rows] == [False, True, True, True]
    assert len(FieldFolder(output, 32)) == 2


def test_a_row_that_named_no_mesh_is_gone_when_the_table_is_right(meshes, tmp_path):
    table = (meshes / "metadata.csv").read_text()
    (meshes / "metadata.csv").write_text(table.replace("001.ply", "gone.ply"))
    run(meshes, tmp_path / "out")
    assert [row["error"] for row in table_of(tmp_path / "out") if row["error"]] == [
        "its file 'gone.ply' does not exist"
    ]
    (meshes / "metadata.csv").write_text(table)  # which also says how 001.ply stands
    assert run(meshes, tmp_path / "out", "--no_skip") == 0
    assert [(row["file"], row["error"]) for row in table_of(tmp_path / "out")] == [
        ("000.ply", ""), ("001.ply", ""), ("002.ply", ""),
    ]  # fmt: skip


def test_rows_are_chosen_by_split_score_and_number(tmp_path):
    data = make_meshes(tmp_path / "data", 4)
    rows = [
        {"sha256": f"s{n}", "file_identifier": f"{n:03}.ply", "aesthetic_score": score, "split": split}
        for n, (score, split) in enumerate([("6.5", "train"), ("4", "train"), ("7", "val"), ("", "train")])
    ]
    write_table(data / "metadata.csv", [*rows, {**rows[0], "sha256": "s4"}])
    choice = ["--filter_aesthetic_score", "5", "--split", "train"]
    assert run(data, tmp_path / "out", *choice, source_format="trellis500k") == 0
    assert [row["sha256"] for row in table_of(tmp_path / "out")] == ["s0", "s4"]
    assert summary_of(tmp_path / "out")["left_out"] == 2
    assert run(data, tmp_path / "one", *choice, "--max_samples", "1", source_format="trellis500k") == 0
    assert [row["sha256"] for row in table_of(tmp_path / "one")] == ["s0"]


def test_a_pack_becomes_a_dataset(reference_data, tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    with (
        (reference_data / "shapes/meshes.bin").open("rb") as streams,
        (reference_data / "shapes/meshes.jsonl").open(encoding="utf-8") as lines,
        (pack / "meshes.bin").open("wb") as blob,
        (pack / "meshes.jsonl").open("w", encoding="utf-8") as manifest,
    ):
        small = (record for line in lines if (record := json.loads(line))["faces"] < 100)
        for record, split in zip(small, ["train", "val", "val"], strict=False):
            streams.seek(record["offset"])
            manifest.write(json.dumps({**record, "split": split, "offset": blob.tell()}) + "\n")
            blob.write(streams.read(record["size"]))
    assert run(pack, tmp_path / "out", "--split", "val", source_format="pack") == 0
    assert summary_of(tmp_path / "out")["trainable"] == {"32": 2}
    assert {row["split"] for row in table_of(tmp_path / "out")} == {"val"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolutions", "2048"], "--resolutions must lie in 8..1024, got 2048"),
        (["--resolutions", "32,32"], "--resolutions must be different"),
        (["--threshold_factor", "0"], "--threshold_factor is a number of voxels, more than 0"),
        (["--threshold_factor", "nan"], "--threshold_factor is a number of voxels, more than 0"),
        (["--max_samples", "-1"], "--max_samples must be 0"),
        (["--gpu_nums", "1"], "give --device or --gpu_nums, not both"),
        (["--split", "test"], "has no object of the split 'test'"),
        (["--input_dir", "nowhere"], "--input_dir nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line(meshes, tmp_path, capsys, options, message):
    assert run(meshes, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_the_input_is_never_overwritten(meshes, capsys):
    table = (meshes / "metadata.csv").read_bytes()
    assert run(meshes, meshes) == 2
    assert "holds the input's metadata.csv" in capsys.readouterr().err
    assert (meshes / "metadata.csv").read_bytes() == table


def test_nothing_usable_is_exit_code_2(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.glb").write_bytes(b"glTF")
    assert run(tmp_path / "in", tmp_path / "out") == 2
    assert "no object has a field" in capsys.readouterr().err
    assert table_of(tmp_path / "out")[0]["sdf_computed"] == "False"


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(meshes, tmp_path, capsys, monkeypatch):
    from sdf_vqvae.fields import sparse_sdf

    writes = []

    def full(file: Any, arrays: Any) -> None:
        writes.append(file.name)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, arrays)

    write = sparse_sdf.write_npz
    output = tmp_path / "out"
    monkeypatch.setattr(sparse_sdf, "write_npz", full)
    assert run(meshes, output) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error and "goes on from there" in error and error.count("\n") == 1
    assert len(writes) == 2 and len(fields_of(output)) == 1
    assert [row["sdf_computed"] for row in table_of(output)] == ["True", "False", "False"]
    assert not [path for path in output.iterdir() if ".tmp" in path.name]
    monkeypatch.undo()
    assert run(meshes, output) == 0
    assert (summary_of(output)["kept"], summary_of(output)["computed"]) == (1, 2)


def test_two_programs_do_not_write_to_one_folder(meshes, tmp_path, capsys):
    from sdf_vqvae.utils.files import only_writer

    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"):
        assert run(meshes, tmp_path / "out") == 2
    assert "another program is writing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_documented_command_makes_five_trainable_samples(repository, tmp_path):
    text = (repository / "docs/datasets.md").read_text(encoding="utf-8")
    command = next(line for line in text.splitlines() if line.startswith("python dataset_toolkits/sdf_voxelize.py"))
    for name in ("examples", "dataset_toolkits"):
        (tmp_path / name).symlink_to(repository / name)
    words = [sys.executable, *command.replace(" 256", " 64").split()[1:], "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "64^3: 5 fields, 5 trainable samples" in done.stdout


# -- runs that are killed ----------------------------------------------------------------------------------------


def start(repository: Path, folder: Path, output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "dataset_toolkits/sdf_voxelize.py", "--format", "folder", "--device", "cpu"]
    command += ["--input_dir", str(folder), "--output_dir", str(output), "--resolutions", "96", *options]
    return subprocess.Popen(
        command,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(repository: Path, folder: Path, output: Path, *options: str) -> dict[str, Any]:
    process = start(repository, folder, output, "--json", *options)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def wait_for_files(process: subprocess.Popen, output: Path, count: int) -> None:
    deadline = time.monotonic() + 180  # a busy machine starts workers slowly
    while len(list(output.glob("[!.]*.npz"))) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of twelve meshes, and the dataset that one process makes of it in one go."""
    folder = make_meshes(tmp_path_factory.mktemp("twelve") / "meshes", 12, subdivisions=3)
    assert run(folder, folder.with_name("whole"), resolutions="96") == 0
    return folder, folder.with_name("whole")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_loses_nothing_and_does_nothing_twice(repository, tmp_path, twelve, workers):
    folder, whole = twelve
    output = tmp_path / "killed"
    process = start(repository, folder, output, "--max_workers", str(workers))
    wait_for_files(process, output, 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(2 * (workers - 1))  # workers end with what they have in hand
    kept = fields_of(output)
    assert 3 <= len(kept) < 12 and not summary_of(output)["finished"]
    (output / f".{'0' * 64}_r96.{'0' * 16}.tmp.npz").write_bytes(b"half")
    summary = finish(repository, folder, output, "--max_workers", str(workers))
    assert summary["finished"]
    assert (summary["kept"], summary["computed"]) == (len(kept), 12 - len(kept))
    assert not [path for path in output.iterdir() if ".tmp" in path.name]
    # What several workers made in parts is what one makes in one go.
    assert fields_of(output) == fields_of(whole)
    assert (output / "metadata.csv").read_bytes() == (whole / "metadata.csv").read_bytes()


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_worker_finishes(repository, tmp_path, twelve):
    pytest.importorskip("ray")
    folder, whole = twelve
    output = tmp_path / "ray"
    process = start(repository, folder, output, "--engine", "ray", "--max_workers", "2", "--json")
    wait_for_files(process, output, 2)
    victim = next(
        pid for pid in descendants(process.pid) if "ray::" in command_of(pid) and "Worker" in command_of(pid)
    )
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "its actor was lost" in err, err
    assert json.loads(out)["computed"] == 12 and json.loads(out)["failed_rows"] == 0
    assert fields_of(output) == fields_of(whole)


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they did."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for parent in found:
        found += [child for child, its_parent in parents.items() if its_parent == parent]
    return found[1:]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
