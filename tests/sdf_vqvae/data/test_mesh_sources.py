"""Rows and meshes of the four formats: what there is comes in order, what there isn't stays with its reason."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import trimesh

from sdf_vqvae.data.mesh_sources import Source
from sdf_vqvae.data.objects import StoredObject


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_box(path: Path, side: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    trimesh.creation.box((side, 1, 1)).export(path)
    return path


def read(source_format: str, folder: Path, **choice: Any) -> list[StoredObject]:
    return list(Source(source_format, folder, **choice))


@pytest.mark.parametrize("levels", [1, 2])
def test_objaverse_finds_meshes_by_object_paths_and_the_table_above(tmp_path, levels):
    folder = tmp_path.joinpath(*["raw", "hf-objaverse-v1"][:levels])
    write_box(folder / "glbs/000-000/8476c4.glb")
    (folder / "object-paths.json").write_text(json.dumps({"8476c4": "glbs/000-000/8476c4.glb"}))
    address = "https://sketchfab.com/3d-models/"
    rows = [
        {
            "sha256": "a1",
            "file_identifier": address + "8476c4",
            "aesthetic_score": 6.1,
            "captions": '["a box", "box"]',
        },
        {"sha256": "a2", "file_identifier": address + "000000", "aesthetic_score": 5, "captions": '["lost"]'},
    ]
    write_table(tmp_path / "metadata.csv", rows)
    for start in (folder, tmp_path) if levels == 2 else (folder,):
        found, lost = read("trellis500k", start)
        assert found.row == {**{k: str(v) for k, v in rows[0].items()}}
        assert found.place is not None and found.place.path == folder / "glbs/000-000/8476c4.glb"
        assert (lost.place, lost.error) == (None, f"object-paths.json has no path of '{address}000000'")


def test_hssd_identifiers_are_paths(tmp_path):
    write_box(tmp_path / "raw/objects/0/chair.glb")
    write_table(tmp_path / "metadata.csv", [{"sha256": "b1", "file_identifier": "objects/0/chair.glb"}])
    for start in (tmp_path, tmp_path / "raw"):
        (item,) = read("trellis500k", start)
        assert item.place is not None and item.place.path == tmp_path / "raw/objects/0/chair.glb"


def test_captions_of_custom_tables_survive(tmp_path):
    write_box(tmp_path / "robot.glb")
    given = {
        "sha256": "c1",
        "glb_file": "robot.glb",
        "overall_label": "red robot",
        "materials_captions": "['a robot of painted steel', 'red robot']",
        "image_dir_path": "renders/robot",
        "view_keys": '["front"]',
    }
    write_table(tmp_path / "metadata.csv", [given, {**given, "sha256": "c2", "captions": '["ours"]'}])
    first, second = read("custom", tmp_path)
    assert first.row == {**given, "captions": '["red robot", "a robot of painted steel"]'}
    assert second.row["captions"] == '["ours"]'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "../../x"}, "its id '../../x' is not a plain name"),
        ({"sha256": "/etc/passwd"}, "its id '/etc/passwd' is not a plain name"),
        ({"sha256": ""}, "its id '' is not a plain name"),
        ({"sha256": "x" * 300}, "is not a plain name"),
        ({"glb_file": "../secret.glb"}, "its glb_file '../secret.glb' leads out of the dataset's folder"),
        ({"glb_file": "/etc/passwd"}, "its glb_file '/etc/passwd' leads out of the dataset's folder"),
        ({"glb_file": "gone.glb"}, "its glb_file 'gone.glb' does not exist"),
        ({"glb_file": "x" * 5000}, "does not exist"),
        ({"glb_file": ""}, "its glb_file is empty"),
    ],
)
def test_a_row_that_names_no_usable_mesh_stays_with_its_reason(tmp_path, change, reason):
    write_box(tmp_path / "data/a.glb")
    write_box(tmp_path / "secret.glb")
    row = {"sha256": "good", "glb_file": "a.glb", "overall_label": "a box"}
    write_table(tmp_path / "data/metadata.csv", [row, {**row, "sha256": "other", **change}])
    first, second = read("custom", tmp_path / "data")
    assert first.place is not None and not first.error
    assert second.place is None and reason in second.error
    assert second.row["sha256"] == change.get("sha256", "other")


def test_an_absolute_path_into_the_dataset_is_fine(tmp_path):
    file = write_box(tmp_path / "meshes/a.glb")
    write_table(tmp_path / "metadata.csv", [{"sha256": "d1", "glb_file": str(file)}])
    (item,) = read("custom", tmp_path)
    assert item.place is not None and item.place.path == file


def test_a_folder_of_meshes_is_read_however_deep_with_what_its_table_says(tmp_path):
    a, b = write_box(tmp_path / "deep/er/a.PLY", 2), write_box(tmp_path / "b.obj", 3)
    copy = tmp_path / "copy.obj"
    copy.write_bytes(b.read_bytes())
    (tmp_path / "notes.txt").write_text("no mesh")
    write_box(tmp_path / ".hidden.glb")
    rows = [{"file": "deep/er/a.PLY", "caption": "a long box"}, {"file": "gone.glb", "caption": "lost"}]
    rows += [{"file": "copy.obj", "caption": "a box"}]  # the same mesh as b.obj: one object
    write_table(tmp_path / "metadata.csv", rows)
    items = read("folder", tmp_path)
    assert [item.row["file"] for item in items] == ["b.obj", "deep/er/a.PLY", "gone.glb"]
    assert items[1].row["sha256"] == hashlib.sha256(a.read_bytes()).hexdigest()
    assert [item.row["captions"] for item in items] == ['["a box"]', '["a long box"]', '["lost"]']
    assert [item.error for item in items] == ["", "", "its file 'gone.glb' does not exist"]


def test_packs_are_known_by_the_hashes_of_their_streams(reference_data):
    items = read("pack", reference_data / "shapes", split="val")
    assert len(items) == 201
    lines = [json.loads(line) for line in (reference_data / "shapes/meshes.jsonl").open(encoding="utf-8")]
    record = next(line for line in lines if line["split"] == "val")
    with (reference_data / "shapes/meshes.bin").open("rb") as blob:
        blob.seek(record["offset"])
        digest = hashlib.sha256(blob.read(record["size"])).hexdigest()
    row = items[0].row
    assert (row["sha256"], row["id"], row["split"]) == (digest, record["id"], "val")
    assert json.loads(row["captions"]) == record["captions"]
    assert {"source", "name", "category", "tags", "author", "license"} <= set(row)
    assert len(items[0].there.mesh().faces) == record["faces"]


@pytest.mark.parametrize(
    ("source_format", "message"),
    [
        ("trellis500k", "there is no metadata.csv"),
        ("custom", "metadata.csv does not exist"),
        ("folder", "holds no mesh file"),
        ("pack", "meshes.bin does not exist"),
        ("zip", "format 'zip' is unknown"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, source_format, message):
    with pytest.raises(ValueError, match=message):
        read(source_format, tmp_path)


def test_a_table_without_a_needed_column_is_refused(tmp_path):
    write_table(tmp_path / "metadata.csv", [{"sha256": "x", "where": "a.glb"}])
    with pytest.raises(ValueError, match="has no column 'glb_file'"):
        read("custom", tmp_path)
    with pytest.raises(ValueError, match="has no column 'file_identifier'"):
        read("trellis500k", tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', "{", "[" * 100_000])
def test_damaged_object_paths_are_refused(tmp_path, content):
    write_table(tmp_path / "metadata.csv", [{"sha256": "x", "file_identifier": "a"}])
    (tmp_path / "object-paths.json").write_text(content)
    with pytest.raises(ValueError, match=r"object-paths\.json"):
        read("trellis500k", tmp_path)
