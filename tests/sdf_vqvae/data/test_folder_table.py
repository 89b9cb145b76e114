"""Tables beside mesh files, as their writers wrote them: every row gets to its file, or one is told why not."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from pathlib import Path

import pytest

from sdf_vqvae.data.mesh_sources import Source
from sdf_vqvae.data.object_rows import OneRowAnObject
from sdf_vqvae.data.objects import StoredObject

CHAIR, LAMP = "abc123.glb", "sub/x1.glb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files that are not opened, and whose contents differ."""
    for number, name in enumerate((CHAIR, LAMP)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"mesh {number}")
    return tmp_path


def read(folder: Path, source_format: str = "folder") -> tuple[dict[str, list[str]], Source, list[StoredObject]]:
    """Return the captions by file, the source, and its items."""
    source = Source(source_format, folder)
    items = list(source)
    return {item.row["file"]: json.loads(item.row["captions"] or "[]") for item in items}, source, items


TABLES = {
    "a row a caption": "file,caption\nabc123.glb,a red chair\nsub/x1.glb,a lamp\n",
    "spaces after commas": "file, caption\nabc123.glb, a red chair\nsub/x1.glb, a lamp\n",
    "spaces before quotes": 'file, caption\nabc123.glb, "a red chair"\nsub/x1.glb, "a lamp"\n',
    "capitals": "File Name,Caption\nABC123.GLB,a red chair\nSub/X1.glb,a lamp\n",
    "semicolons": "file;caption\nabc123.glb;a red chair\nsub/x1.glb;a lamp\n",
    "quotes round all cells": '"file","caption"\n"abc123.glb","a red chair"\n"sub/x1.glb","a lamp"\n',
    "quotes and semicolons": '"uid";"caption"\n"abc123";"a red chair"\n"x1";"a lamp"\n',
    "bars": "file|caption\nabc123.glb|a red chair\nsub/x1.glb|a lamp\n",
    "the index of pandas": ",file,caption\n0,abc123.glb,a red chair\n1,sub/x1.glb,a lamp\n",
    "tabs": "file\tcaption\nabc123.glb\ta red chair\nsub/x1.glb\ta lamp\n",
    "a byte order mark": "\ufefffile,caption\nabc123.glb,a red chair\nsub/x1.glb,a lamp\n",
    "filename and description": "filename,description\nabc123.glb,a red chair\nsub/x1.glb,a lamp\n",
    "uid": "uid,caption\nabc123,a red chair\nx1,a lamp\nelsewhere,a boat\n",
    "model_id with other columns": "number,model_id,split,text\n1,abc123,train,a red chair\n2,x1,val,a lamp\n",
    "without a header": "abc123,a red chair\nx1,a lamp\n",
    "without a header, of more objects": "ffff,a boat on a lake\nabc123,a red chair\nx1,a lamp\n",
    "backslashes": "file,caption\n.\\abc123.glb,a red chair\nsub\\x1.glb,a lamp\n",
    "without endings": "file,caption\nabc123,a red chair\nsub/x1,a lamp\n",
    "names alone": "file,caption\nabc123.glb,a red chair\nx1.glb,a lamp\n",
    "paths of another machine": "path,caption\n/home/me/data/abc123.glb,a red chair\nC:\\data\\sub\\x1.glb,a lamp\n",
    "paths of pictures beside ids": "path,uid,caption\np/1.png,abc123,a red chair\np/2.png,x1,a lamp\n",
    "addresses": "file_identifier,captions\nhttps://a.b/3d/abc123,\"['a red chair']\"\nhttps://a.b/3d/x1,a lamp\n",
    "columns of spreadsheets that are empty": "file,caption,,\nabc123.glb,a red chair,,\n,,,\nsub/x1.glb,a lamp,,\n",
    "Excel's line of the separator": "sep=;\r\nfile;caption\r\nabc123.glb;a red chair\r\nsub/x1.glb;a lamp\r\n",
    "line ends of Windows": "file,caption\r\nabc123.glb,a red chair\r\nsub/x1.glb,a lamp\r\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_words_get_to_the_files_that_a_table_means(folder, text):
    (folder / "metadata.csv").write_text(text, encoding="utf-8", newline="")
    captions, source, _ = read(folder)
    assert captions == {CHAIR: ["a red chair"], LAMP: ["a lamp"]}
    assert source.table is not None and source.table.files_matched == source.table.files == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", TABLES["a row a caption"].encode("utf-16")),
        # without a time: names of tests are the same in every process
        ("metadata.csv.gz", gzip.compress(TABLES["a row a caption"].encode(), mtime=0)),
        ("metadata.tsv", TABLES["tabs"].encode()),
        ("captions.csv", TABLES["without a header"].encode()),
        ("metadata.jsonl", b'{"file": "abc123.glb", "text": ["a red chair"]}\n\n{"file": "x1", "text": "a lamp"}'),
        ("metadata.jsonl", b'{"file": "abc123.glb", "text": "a red chair"}\n{"uid": "x1", "caption": "a lamp"}'),
        ("metadata.json", b'[{"id": "abc123", "captions": ["a red chair"]}, {"id": "x1", "caption": "a lamp"}]'),
        ("captions.json.gz", gzip.compress(b'{"abc123": ["a red chair"], "x1": "a lamp"}', mtime=0)),
    ],
)  # fmt: skip
def test_tables_of_other_names_and_encodings_are_read(folder, name, content):
    (folder / name).write_bytes(content)
    assert read(folder)[0] == {CHAIR: ["a red chair"], LAMP: ["a lamp"]}


def test_a_table_by_contents_needs_no_names(folder):
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CHAIR, LAMP)]
    (folder / "metadata.csv").write_text(f"sha256,caption\n{hashes[0]},a red chair\n{hashes[1].upper()},a lamp\n")
    assert read(folder)[0] == {CHAIR: ["a red chair"], LAMP: ["a lamp"]}


def test_a_folder_that_holds_one_mesh_is_called_by_its_name(folder):
    for name in ("chair", "lamp"):
        (folder / f"scans/{name}").mkdir(parents=True)
        (folder / f"scans/{name}/scene.gltf").write_text(name)
    (folder / "metadata.csv").write_text("uid,caption\nchair,a red chair\nlamp,a lamp\nscans,both\n")
    captions, source, items = read(folder)
    assert captions["scans/chair/scene.gltf"] == ["a red chair"] and captions["scans/lamp/scene.gltf"] == ["a lamp"]
    assert "its uid 'scans' fits 2 files" in items[-1].error and source.table.files_matched == 2


def test_a_folder_and_a_name_together_say_which_file_is_meant(folder):
    (folder / "other").mkdir()
    (folder / "other/x1.glb").write_text("of the same name")
    (folder / "other/x2.glb").write_text("more in the folder")
    rows = ["path,filename,caption", "other,x1.glb,a boat", "sub,x1.glb,a lamp", "sub,gone.glb,a bus"]
    (folder / "metadata.csv").write_text("\n".join(rows))
    captions, _, items = read(folder)
    assert captions["other/x1.glb"] == ["a boat"] and captions["other/x2.glb"] == []
    assert [item.error for item in items if "bus" in item.row["captions"]] == [
        "its filename 'gone.glb' does not exist"  # the one mesh in the folder is not the one that is gone
    ]
    assert captions[LAMP] == ["a lamp"]


def test_what_was_understood_of_a_table_is_said_once(folder, caplog):
    (folder / "metadata.csv").write_text("uid,caption\nabc123,a red chair\nelsewhere,a boat\n")
    with caplog.at_level(logging.INFO):
        _, source, _ = read(folder)
    line = "metadata.csv: files by uid, captions by caption; 1 of 2 rows are about 1 of 2 files"
    assert [record.message for record in caplog.records].count(line) == 1
    assert source.table.notes == ["1 of 2 rows are about files that are not there"]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("uid,caption\nxyz,a chair\n", ["none of its 1 rows is about a file that is there", "uid 'xyz'", CHAIR]),
        ("file,caption\nxyz.glb,a chair\n", ["none of its 1 rows", "'xyz.glb'"]),
        ("filname,captoin\nabc123.glb,x\n", ["['filname', 'captoin']", "'filename' for 'filname'", "known: file"]),
        ("a,b,c\nabc123,x,y\n", ["['a', 'b', 'c'], none of which says which file"]),
        ("abc123,a chair,red\n", ["none of which says which file", "it needs a header"]),
        ("uid,caption\nboth,a chair\n", ["its uid 'both' fits 2 files: both/1.glb, both/2.glb"]),
        ("file,caption\nabc123.glb,a red, wooden chair\n", ["line 2", "3 cells for 2 columns", "double quotes"]),
        ("", ["is empty"]),
        ("file,text;file\nabc123.glb,a;b\n", ["separate the cells by commas alone"]),
        ("id,uid,caption\nabc123,x1,a chair\nx1,abc123,a lamp\n", ["'id' and 'uid' both name 2 files"]),
    ],
)
def test_a_table_of_which_nothing_can_be_used_is_refused_with_what_it_has(folder, text, messages):
    (folder / "both").mkdir()
    for number in (1, 2):
        (folder / f"both/{number}.glb").write_text(f"one of two: {number}")
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=r"metadata\.csv") as error:
        read(folder)
    assert all(message in str(error.value) for message in messages), error.value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,caption\nabc123.glb,un café\n".encode("cp1252"), r"not UTF-8: the byte 0xe9 in .*café.*Windows-1252"),
        ("file,caption\nabc123.glb,x\n".encode("utf-16-le"), r"metadata\.csv .*if it is UTF-16, save it as UTF-8"),
        (b"\x1f\x8b\x08\x00 not text", "UTF-8"),
        (b'file,caption\nabc123.glb,"no end\n', "not a readable table"),
    ],
)
def test_a_table_that_cannot_be_read_says_what_its_encoding_may_be(folder, content, message):
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_a_metadata_json_that_is_no_table_is_named_and_left(folder, caplog):
    (folder / "metadata.json").write_text('{"license": "CC0", "objects": 2}')
    assert read(folder)[0] == {CHAIR: [], LAMP: []}
    assert "not read as a table" in caplog.text and "none of its 2 rows" in caplog.text


def test_tables_that_are_not_read_are_named(folder, caplog):
    (folder / "Cap3D_automated.csv").write_text("abc123,a chair\n")
    read(folder)
    assert "Cap3D_automated.csv: a table is called metadata.csv" in caplog.text.replace(" not read", "")
    caplog.clear()
    for name in ("metadata.csv", "captions.csv"):
        (folder / name).write_text(TABLES["uid"])
    read(folder)
    assert "captions.csv not read: metadata.csv is" in caplog.text
    caplog.clear()
    for name in ("sub/metadata.jsonl", "abc123.txt", "license.txt"):
        (folder / name).write_text("a chair")
    read(folder)
    assert "abc123.txt, sub/metadata.jsonl not read: words come from a table in the folder itself" in caplog.text


def test_a_key_that_stands_twice_in_json_is_refused(folder):
    (folder / "captions.json").write_text('{"abc123": "a chair", "x1": "a lamp", "abc123": "a seat"}')
    with pytest.raises(ValueError, match="'abc123' is given twice"):
        read(folder)
    (folder / "captions.json").unlink()
    (folder / "metadata.jsonl").write_text('{"file": "abc123.glb", "text": "a chair", "text": "a seat"}')
    with pytest.raises(ValueError, match="line 1: 'text' is given twice"):
        read(folder)


def test_a_table_without_a_column_of_captions_says_so_and_names_the_nearest(folder):
    (folder / "metadata.csv").write_text("file,captoin\nabc123.glb,a chair\n")
    captions, source, _ = read(folder)
    assert captions == {CHAIR: [], LAMP: []}
    assert "did you mean 'caption' for 'captoin'?" in source.table.notes[0]


def test_columns_that_are_numbered_or_repeated_are_one(folder):
    (folder / "metadata.csv").write_text("file,caption,caption\nabc123.glb,a,b\n")
    assert read(folder)[0][CHAIR] == ["a", "b"]


# -- rows of the same object --------------------------------------------------------------------------------------


def test_rows_of_one_file_are_one_object_with_all_captions(folder):
    rows = [
        "file,caption,license",
        "abc123.glb,a chair,CC0",
        "sub/x1.glb,a lamp,",
        "ABC123,\"['a seat', 'a chair']\",MIT",
    ]
    (folder / "metadata.csv").write_text("\n".join(rows))
    captions, source, items = read(folder)
    assert captions == {CHAIR: ["a chair", "a seat"], LAMP: ["a lamp"]}
    assert items[0].row["license"] == "CC0" and items[0].row["file"] == CHAIR
    assert source.repeated == ["abc123.glb: rows 1, 3 differ in license: the first value counts"]


def test_rows_that_mean_different_files_never_share_one(folder):
    (folder / "a").mkdir()
    (folder / "a/x1.glb").write_text("another mesh")
    rows = [
        "file,caption",
        "train/abc123.glb,a chair",
        "val/abc123.glb,a boat",
        "x1.glb,which lamp",
        "sub/x1.glb,a lamp",
    ]
    (folder / "metadata.csv").write_text("\n".join(rows))
    captions, _, items = read(folder)
    assert (captions[CHAIR], captions[LAMP], captions["a/x1.glb"]) == ([], ["a lamp"], [])
    errors = [item.error for item in items if item.error]
    assert errors[0] == "its file 'x1.glb' fits 2 files: a/x1.glb, sub/x1.glb"
    assert len(errors) == 3 and all("train/abc123.glb (row 1), val/abc123.glb (row 2)" in e for e in errors[1:])


def test_columns_that_name_different_files_are_not_weighed_against_each_other(folder):
    (folder / "metadata.csv").write_text("file,path,caption\nabc123.glb,sub/x1.glb,a chair\nx1.glb,,a lamp\n")
    chair, lamp, neither = read(folder)[2]
    assert (chair.row["captions"], lamp.row["captions"]) == ("", '["a lamp"]')
    assert neither.place is None and neither.error.endswith("are different files (row 1)")


def test_copies_of_a_file_are_one_object_with_the_words_of_all(folder):
    (folder / "copy.glb").write_bytes((folder / CHAIR).read_bytes())
    (folder / "metadata.csv").write_text("uid,caption\ncopy,a seat\nabc123,a chair\n")
    captions, source, _ = read(folder)
    assert captions == {CHAIR: ["a seat", "a chair"], LAMP: []}
    assert source.repeated == ["abc123.glb, copy.glb: the same mesh, and one object with the words of all"]


def custom(folder: Path, *rows: str) -> tuple[list[tuple[str, list[str], str]], Source]:
    (folder / "metadata.csv").write_text("\n".join(["sha256,glb_file,captions,split", *rows]))
    source = Source("custom", folder)
    return [(i.row["sha256"], json.loads(i.row["captions"] or "[]"), i.error) for i in source], source


def test_rows_of_an_id_are_gathered_where_they_are_of_one_mesh(folder):
    (folder / "same.glb").write_bytes((folder / CHAIR).read_bytes())
    found, source = custom(
        folder, "a,abc123.glb,a chair,", "b,sub/x1.glb,a lamp,val", "a,same.glb,a seat,train", "a,,a stool,val"
    )
    assert found == [("a", ["a chair", "a seat", "a stool"], ""), ("b", ["a lamp"], "")]
    assert source.repeated == ["a: rows 1, 3, 4 differ in glb_file, split: the first value counts"]


@pytest.mark.parametrize("other", ["sub/x1.glb", "gone.glb"])
def test_an_id_of_different_meshes_is_named_and_neither_is_guessed(folder, other):
    found, _ = custom(folder, "a,abc123.glb,a chair,", f"a,{other},a lamp,", "b,sub/x1.glb,a lamp,")
    reason = f"its id 'a' stands for different files: abc123.glb (row 1), {other} (row 2)"
    assert found == [("a", ["a chair"], reason), ("a", ["a lamp"], reason), ("b", ["a lamp"], "")]


def test_trellis_tables_of_its_own_tools_are_understood(folder):
    rows = [
        "sha256,file_identifier,captions,local_path",
        "a,https://a.b/abc,a chair,abc123.glb",
        "b,https://a.b/x1,a lamp,",
        "b,https://a.b/x1,a light,",
    ]
    (folder / "metadata.csv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    (folder / "object-paths.json.gz").write_bytes(gzip.compress(json.dumps({"x1": LAMP}).encode()))
    items = list(Source("trellis500k", folder))
    assert [(i.row["sha256"], i.row["captions"], i.place.name) for i in items] == [
        ("a", '["a chair"]', CHAIR),
        ("b", '["a lamp", "a light"]', LAMP),
    ]


def test_a_packed_table_that_unpacks_without_end_is_refused(folder):
    (folder / "metadata.csv").write_text("sha256,file_identifier\na,b\n")
    (folder / "object-paths.json.gz").write_bytes(gzip.compress(b" " * 50_000_000))
    with pytest.raises(ValueError, match="unpacks to more than"):
        list(Source("trellis500k", folder))


def test_rows_of_our_own_tables_are_gathered_by_ids_that_say_the_same():
    table = [
        {"sha256": "a", "file": "a.glb", "captions": '["x"]', "sdf_computed": "True"},
        {"sha256": "b", "file": "b.glb", "captions": '["y"]', "sdf_computed": "True"},
        {"sha256": "a", "file": "sub/a.glb", "caption": "z", "captions": "", "sdf_computed": ""},
        {"sha256": "a", "file": "other.glb", "captions": '["another\'s"]', "sdf_computed": "False"},
        {"sha256": "b", "file": "c.glb", "captions": '["w"]', "sdf_computed": "True"},
    ]
    found = OneRowAnObject.of(table, "table")
    assert [(row["sha256"], row["captions"]) for row in found.rows] == [("a", '["x", "z"]')]
    assert found.contradicting == {"b": "its id 'b' stands for different files: b.glb (row 2), c.glb (row 5)"}
