"""A whole dataset to a folder of codes: from meshes, fields and packs; runs that were cut off; stale folders."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

from sdf_vqvae.codes import cache as code_cache
from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.pipeline import voxelize_for
from sdf_vqvae.geometry.turns import UNTURNED, Turn
from sdf_vqvae.geometry.up import rotation
from sdf_vqvae.model.checkpoint import load_vae_from_config, shipped_config
from vae_qwen3vl.__main__ import main
from vae_qwen3vl.data.datasets_3d import CachedCodesDataset


@pytest.fixture(scope="module")
def vae_config(tmp_path_factory) -> Path:
    """A tokenizer of the shipped kind, small: fields of 64^3, random weights."""
    document = json.loads(shipped_config().read_text())
    args = document["models"]["vqvae"]["args"]
    args |= {"resolution": 8, "model_channels": 64, "level_channels": [32, 32], "num_blocks": 1}
    args |= {"num_embeddings": 128}
    args["field"]["resolution"] = 64
    path = tmp_path_factory.mktemp("vae") / "config.json"
    path.write_text(json.dumps(document))
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def make_meshes(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        mesh = trimesh.creation.icosphere(subdivisions=2)
        mesh.apply_scale((1, 1 + number / 10, 1))
        mesh.export(folder / f"{number:03}.ply")
        rows.append({"file": f"{number:03}.ply", "up": "y", "captions": json.dumps([f"ellipsoid {number}"])})
    write_table(folder / "metadata.csv", rows)
    return folder


def encode(source: Path, output: Path, vae_config: Path, *options: str) -> int:
    command = ["encode", str(source), "-o", str(output), "--vae_config", str(vae_config), "--device", "cpu"]
    return main([*command, *options])


def codes_of(folder: Path) -> dict[str, tuple[list[int], list[list[int]]]]:
    found = CodeFolder(folder)
    return {name: (found[name][0].tolist(), found[name][1].tolist()) for name in found}


def test_a_folder_of_meshes_becomes_the_codes_of_each(tmp_path, vae_config):
    folder = make_meshes(tmp_path / "meshes", 4)
    (folder / "broken.ply").write_bytes(b"ply\nno mesh")
    assert encode(folder, tmp_path / "codes", vae_config) == 0
    vae = load_vae_from_config(vae_config, device="cpu")
    found = CodeFolder(tmp_path / "codes")
    rows = {row["file"]: row for row in found.table()}
    assert len(found) == 4 and "not a readable PLY" in rows["broken.ply"]["codes_error"]
    for number in range(4):  # encoded together or alone: the same
        codes = vae.Encode(voxelize_for(vae, folder / f"{number:03}.ply").to_batch())
        own, coords = found[rows[f"{number:03}.ply"]["sha256"]]
        assert torch.equal(own.long(), codes.feats[:, 0].cpu()) and torch.equal(coords.int(), codes.coords[:, 1:])
        assert rows[f"{number:03}.ply"]["codes"] == str(len(own))
    torch.testing.assert_close(found.codebook, vae.vq.embeddings.weight)
    assert [item["caption"] for item in CachedCodesDataset(tmp_path / "codes")] == [
        f"ellipsoid {n}" for n in range(4)
    ]


def test_fields_and_meshes_of_a_dataset_have_the_same_codes(tmp_path, vae_config):
    from dataset_toolkits.sdf_voxelize import main as voxelize

    folder = make_meshes(tmp_path / "meshes", 3)
    command = ["--format", "folder", "--input_dir", str(folder), "--output_dir", str(tmp_path / "fields")]
    assert voxelize([*command, "--resolutions", "64", "--max_workers", "1", "--device", "cpu"]) == 0
    assert encode(tmp_path / "fields", tmp_path / "one", vae_config) == 0
    assert encode(folder, tmp_path / "other", vae_config) == 0
    assert codes_of(tmp_path / "one") == codes_of(tmp_path / "other") != {}


def test_rows_of_one_object_share_its_codes_and_all_words(tmp_path, vae_config, capsys):
    """As tables written before rows were gathered have them: a row again, and a row of another file that failed."""
    from dataset_toolkits.sdf_voxelize import main as voxelize

    folder = make_meshes(tmp_path / "meshes", 3)
    command = ["--format", "folder", "--input_dir", str(folder), "--output_dir", str(tmp_path / "fields")]
    assert voxelize([*command, "--resolutions", "64", "--max_workers", "1", "--device", "cpu"]) == 0
    table = tmp_path / "fields/metadata.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    again = {**rows[0], "captions": "['a ball', 'round']"}
    failed = {**rows[1], "captions": "another's", "sdf_computed": "False", "error": "its id occurs twice"}
    write_table(table, [*rows, again, failed, {**rows[2], "captions": "N/A"}])
    assert encode(tmp_path / "fields", tmp_path / "codes", vae_config, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["failed"] == {}
    found = {row["sha256"]: row for row in csv.DictReader((tmp_path / "codes/metadata.csv").open(encoding="utf-8"))}
    words = [["ellipsoid 0", "a ball", "round"], ["ellipsoid 1"], ["ellipsoid 2"]]
    assert [json.loads(found[row["sha256"]]["captions"]) for row in rows] == words
    assert all(row["codes"] and not row["codes_error"] for row in found.values()) and len(found) == 3
    items = CachedCodesDataset(tmp_path / "codes")
    assert sorted([text.answer for text in items._texts[name]] for name in items.names) == sorted(words)


def test_several_workers_and_small_batches_change_nothing(tmp_path, vae_config):
    folder = make_meshes(tmp_path / "meshes", 5)
    assert encode(folder, tmp_path / "one", vae_config) == 0
    assert encode(folder, tmp_path / "two", vae_config, "--workers", "2", "--batch_voxels", "1") == 0
    assert codes_of(tmp_path / "one") == codes_of(tmp_path / "two")


def test_hostile_ids_are_listed_and_never_become_files(tmp_path, vae_config):
    folder = make_meshes(tmp_path / "fields", 0)
    vae = load_vae_from_config(vae_config, device="cpu")
    field = voxelize_for(vae, trimesh.creation.box())
    field.save(folder / "good_r64.npz")
    (folder / "half_r64.npz").write_bytes((folder / "good_r64.npz").read_bytes()[:500])
    ids = ["../../x", "good", "good", "half", "missing"]
    write_table(folder / "metadata.csv", [{"sha256": name, "captions": "a box"} for name in ids])
    assert encode(folder, tmp_path / "out" / "codes", vae_config) == 0
    found = CodeFolder(tmp_path / "out" / "codes")
    assert set(found) == {"good"}
    why = {row["sha256"]: row["codes_error"] for row in found.table()}
    assert "not a plain name" in why["../../x"] and "does not exist" in why["missing"] and "half_r64" in why["half"]
    assert len(list(tmp_path.rglob("x*"))) == 0


def test_codes_of_another_tokenizer_are_refused(tmp_path, vae_config, capsys):
    folder = make_meshes(tmp_path / "meshes", 1)
    assert encode(folder, tmp_path / "codes", vae_config) == 0
    document = json.loads(vae_config.read_text())
    document["models"]["vqvae"]["args"]["num_embeddings"] = 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document))
    assert encode(folder, tmp_path / "codes", other) == 2
    error = capsys.readouterr().err
    assert "stale" in error and "give another --output" in error
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    assert encode(folder, tmp_path / "mine", vae_config) == 2
    assert "not empty" in capsys.readouterr().err


def test_mirror_images_have_a_folder_of_their_own(tmp_path, vae_config, capsys):
    folder = tmp_path / "meshes"
    folder.mkdir()
    wedge = trimesh.creation.box(extents=[2, 1, 1])
    wedge.vertices[wedge.vertices[:, 0] > 0] *= [1, 0.3, 0.6]
    wedge.export(folder / "wedge.ply")
    write_table(folder / "metadata.csv", [{"file": "wedge.ply", "captions": "wedge with the right side low"}])
    plain, mirrored = tmp_path / "codes", tmp_path / "mirrored"
    assert encode(folder, plain, vae_config) == 0
    assert encode(folder, mirrored, vae_config, "--mirror") == 0
    name, there = next(iter(CodeFolder(plain))), CodeFolder(mirrored, mirrored=True)
    coords, turned = CodeFolder(plain)[name][1].tolist(), there[name][1].tolist()
    assert sorted([7 - x, y, z] for x, y, z in coords) == sorted(turned) != sorted(coords)
    with pytest.raises(ValueError, match="of mirror images: they go into mirrored_dir"):
        CodeFolder(mirrored)
    with pytest.raises(ValueError, match="are not of mirror images"):
        CodeFolder(plain, mirrored=True)
    capsys.readouterr()
    assert encode(folder, plain, vae_config, "--mirror") == 2
    assert "holds codes of objects as they are, not of mirror images: give another" in capsys.readouterr().err
    assert encode(folder, mirrored, vae_config) == 2
    assert "holds codes of mirror images, not of objects as they are" in capsys.readouterr().err

    mesh = str(folder / "wedge.ply")
    assert main(["encode", mesh, "-o", str(tmp_path / "x.safetensors"), "--device", "cpu", "--mirror"]) == 2
    assert "--mirror is for datasets" in capsys.readouterr().err

    both = CachedCodesDataset(plain, mirrored=mirrored)
    said = set()
    for epoch in range(20):
        both.set_epoch(epoch)
        item = both[0]
        is_mirrored = "left" in item["caption"]
        assert ("left" in item["title"]) == is_mirrored
        assert item["coords"].tolist() == (turned if is_mirrored else coords)
        said.add(item["caption"])
    assert said == {"wedge with the right side low", "wedge with the left side low"}
    checked = both.for_validation()
    for epoch in range(20):
        checked.set_epoch(epoch)
        assert checked[0]["coords"].tolist() == coords and "right" in checked[0]["caption"]


def test_a_field_that_cannot_be_read_is_listed(tmp_path, vae_config):
    folder = make_meshes(tmp_path / "fields", 0)
    vae = load_vae_from_config(vae_config, device="cpu")
    field = voxelize_for(vae, trimesh.creation.box())
    unsigned = dataclasses.replace(field.field, kind="udf")
    field.save(folder / "good_r64.npz")
    dataclasses.replace(field, sdf=field.sdf.abs(), field=unsigned).save(folder / "old_r64.npz")
    write_table(folder / "metadata.csv", [{"sha256": name, "captions": "a box"} for name in ("good", "old")])
    assert encode(folder, tmp_path / "codes", vae_config, "--mirror") == 0
    found = CodeFolder(tmp_path / "codes", mirrored=True)
    assert set(found) == {"good"}
    assert {row["sha256"]: row["codes_error"] for row in found.table()}["old"]


def test_a_full_disk_stops_the_run_and_the_same_command_goes_on(tmp_path, vae_config, capsys, monkeypatch):
    folder = make_meshes(tmp_path / "meshes", 40)
    write, shards = code_cache.write_safetensors, []

    def full(path: Any, *rest: Any) -> None:
        shards.append(path)
        if len(shards) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, *rest)

    monkeypatch.setattr(code_cache, "write_safetensors", full)
    assert encode(folder, tmp_path / "codes", vae_config, "--shard_seconds", "0") == 2
    assert "the disk is full" in capsys.readouterr().err
    monkeypatch.undo()
    before = set(codes_of(tmp_path / "codes"))
    assert 0 < len(before) < 40
    assert encode(folder, tmp_path / "codes", vae_config, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["kept"], summary["encoded"]) == (len(before), 40 - len(before))


def start(source: Path, output: Path, vae_config: Path, repository: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "vae_qwen3vl", "encode", str(source), "-o", str(output), "--device", "cpu"]
    command += ["--vae_config", str(vae_config), "--shard_seconds", "0", "--json"]
    return subprocess.Popen(
        command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_loses_no_shard_and_does_nothing_twice(tmp_path, vae_config, repository):
    folder, output = make_meshes(tmp_path / "meshes", 60), tmp_path / "codes"
    process = start(folder, output, vae_config, repository)
    deadline = time.monotonic() + 180
    while len(list(output.glob("codes-*.safetensors"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = codes_of(output)
    assert 0 < len(before) < 60
    process = start(folder, output, vae_config, repository)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    summary = json.loads(out)
    assert (summary["kept"], summary["encoded"], summary["failed"]) == (len(before), 60 - len(before), {})
    ids = [name for path in output.glob("codes-*") for name in code_cache.CodeCache.load(path).ids]
    assert len(ids) == len(set(ids)) == 60
    assert encode(folder, tmp_path / "whole", vae_config) == 0
    assert codes_of(output) == codes_of(tmp_path / "whole")


def wedge_of(folder: Path) -> Path:
    """Write a mesh that equals none of its turned selves; it lies, its z pointing up."""
    folder.mkdir()
    wedge = trimesh.creation.box(extents=[2, 1, 0.7])
    wedge.vertices[wedge.vertices[:, 0] > 0] *= [1, 0.3, 0.6]
    wedge.export(folder / "wedge.ply")
    write_table(folder / "metadata.csv", [{"file": "wedge.ply", "up": "z", "captions": "wedge"}])
    return folder


def test_turned_objects_are_those_of_turned_meshes_and_stand_beside_the_unturned(tmp_path, vae_config, capsys):
    folder, output = wedge_of(tmp_path / "meshes"), tmp_path / "codes"
    assert encode(folder, output, vae_config) == 0
    plain = codes_of(output)
    assert encode(folder, output, vae_config, "--turns", "yaw,-x0,y45", "--json") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["encoded"], report["kept"], report["failed"]) == (5, 1, {})
    found = CodeFolder(output)
    (name,) = found
    assert codes_of(output) == plain and len(found) == 1
    assert [row["turns"] for row in found.table()] == ["-x0 y45 y90 y180 y270"]
    assert [turn.name for turn in found.turns(name)] == ["-x0", "y45", "y90", "y180", "y270"]
    vae = load_vae_from_config(vae_config, device="cpu")
    upright = trimesh.load(folder / "wedge.ply", process=False)
    upright.vertices = upright.vertices @ rotation("z").T
    for turn in found.turns(name):
        mesh = trimesh.Trimesh(upright.vertices @ turn.rotation().T, upright.faces, process=False)
        codes = vae.Encode(voxelize_for(vae, mesh).to_batch())
        own, coords = found.turned(name, turn)
        assert torch.equal(coords.int(), codes.coords[:, 1:].cpu()), turn
        assert float((own.long() == codes.feats[:, 0].cpu()).float().mean()) > 0.9, (
            turn
        )  # rounding of the mesh's turn
    assert torch.equal(found.turned(name, UNTURNED)[0], found[name][0])
    with pytest.raises(KeyError):
        found.turned(name, Turn(up="x", degrees=0))


def test_mirror_images_are_turned_after_they_were_mirrored(tmp_path, vae_config):
    folder, output = wedge_of(tmp_path / "meshes"), tmp_path / "mirrored"
    assert encode(folder, output, vae_config, "--mirror", "--turns", "y90,y30") == 0
    found = CodeFolder(output, mirrored=True)
    vae = load_vae_from_config(vae_config, device="cpu")
    mesh = trimesh.load(folder / "wedge.ply", process=False)
    mesh.vertices = mesh.vertices @ rotation("z").T * (-1, 1, 1)
    mesh.invert()
    (name,) = found
    for turn in found.turns(name):
        turned = trimesh.Trimesh(mesh.vertices @ turn.rotation().T, mesh.faces, process=False)
        codes = vae.Encode(voxelize_for(vae, turned).to_batch())
        assert torch.equal(found.turned(name, turn)[1].int(), codes.coords[:, 1:].cpu()), turn


def test_what_cannot_be_turned_is_listed_and_the_rest_is_encoded(tmp_path, vae_config, capsys):
    folder = make_meshes(tmp_path / "fields", 0)
    vae = load_vae_from_config(vae_config, device="cpu")
    voxelize_for(vae, trimesh.creation.box()).save(folder / "good_r64.npz")
    write_table(folder / "metadata.csv", [{"sha256": "good", "captions": "a box"}])
    assert encode(folder, tmp_path / "codes", vae_config, "--turns", "x0,y45", "--json") == 0
    failed = json.loads(capsys.readouterr().out.splitlines()[-1])["failed"]
    assert set(failed) == {"good@y45"} and "turns by quarters alone" in failed["good@y45"]
    found = CodeFolder(tmp_path / "codes")
    assert [turn.name for turn in found.turns("good")] == ["x0"] and set(found) == {"good"}
    assert encode(folder, tmp_path / "codes", vae_config, "--turns", "left") == 2
    assert "--turns: a turn is named by the axis" in capsys.readouterr().err
    assert (
        main(["encode", str(folder / "good_r64.npz"), "-o", str(tmp_path / "x.safetensors"), "--turns", "yaw"]) == 2
    )
    assert "--turns is for datasets" in capsys.readouterr().err
