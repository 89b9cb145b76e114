"""Making an index: what it takes in, what it leaves, where it goes on, what it refuses."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.codes.folder import CodeFolder, CodeFolderWriter
from sdf_vqvae.model.checkpoint import save_vae
from vae_qwen3vl.search import ShapeIndex, store
from vae_qwen3vl.search.indexing import ERRORS
from vae_qwen3vl.search.vectors import ShapeVectors


def vectors_by_id(index: Path) -> dict[str, np.ndarray]:
    """Return what an index holds, and check that its rows are numbered without gaps."""
    table = store.read_objects(index)
    rows = table.execute("SELECT place, id FROM objects ORDER BY place").fetchall()
    assert [place for place, _ in rows] == list(range(len(rows)))
    vectors = store.read_vectors(index, store.IndexManifest.load(index).width, len(rows))
    assert (index / store.VECTORS).stat().st_size == vectors.nbytes
    return {name: np.array(vectors[place]) for place, name in rows}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.abs(first[k] - second[k]).max() < 2e-3 for k in first)


def table_of(codes: Path, *left_out: str) -> None:
    """Write the table of a folder of codes again, without some objects."""
    rows = list(csv.reader((codes / "metadata.csv").open()))
    with (codes / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(row for row in rows if row[0] not in left_out)


def test_an_index_of_codes_has_every_object_with_its_words_and_vector(codes, make_index, weights, tmp_path):
    report = make_index(codes, tmp_path / "index")
    assert (report.objects, report.added, report.kept, report.failed) == (5, 5, 0, {})
    folder = CodeFolder(codes)
    vectors = ShapeVectors.load(*weights, folder.codebook)
    held = vectors_by_id(tmp_path / "index")
    for name in folder:
        (expected,) = vectors(*[[part] for part in folder[name]])
        assert np.abs(held[name] - expected.numpy()).max() < 2e-3
        assert abs(float(expected.norm()) - 1) < 1e-5
    (hit,) = [hit for hit in ShapeIndex.open(tmp_path / "index").nearest(expected, 5) if hit.id == name]
    assert (hit.about, round(hit.score, 2)) == ("One.", 1.0)


def test_a_second_run_does_nothing_again_takes_in_what_is_new_and_drops_what_is_gone(
    codes, small_vae, make_index, tmp_path, monkeypatch
):
    make_index(codes, tmp_path / "index")
    read = []
    monkeypatch.setattr(ShapeVectors, "__call__", lambda *_: read.append(1))
    again = make_index(codes, tmp_path / "index")
    assert (again.added, again.kept, again.dropped, read) == (0, 5, 0, [])
    monkeypatch.undo()
    writer = CodeFolderWriter(codes, small_vae)
    writer.add("new", torch.tensor([3, 4], dtype=torch.int32), torch.tensor([[0, 0, 0], [1, 2, 3]]).short())
    writer.add("object4", torch.tensor([7], dtype=torch.int32), torch.tensor([[5, 5, 5]]).short())  # encoded anew
    writer.flush()
    with (codes / "metadata.csv").open("a") as file:
        file.write("new,A new one.,train\nnew,It has two rows.,train\n")
    table_of(codes, "object0", "object2")
    last = make_index(codes, tmp_path / "index")
    assert (last.objects, last.added, last.kept, last.dropped) == (4, 1, 2, 2)
    make_index(codes, tmp_path / "afresh")
    assert same(vectors_by_id(tmp_path / "index"), vectors_by_id(tmp_path / "afresh"))
    about = {hit.id: hit.about for hit in ShapeIndex.open(tmp_path / "index").nearest(torch.ones(384), 9)}
    assert about["new"] == "A new one. / It has two rows."


@pytest.mark.parametrize(
    "gone", [["object0"], ["object4"], ["object3", "object4"], ["object0", "object3", "object4"]]
)
def test_whichever_objects_go_the_others_keep_their_vectors(codes, make_index, tmp_path, gone):
    make_index(codes, tmp_path / "index")
    before = vectors_by_id(tmp_path / "index")
    table_of(codes, *gone)
    assert make_index(codes, tmp_path / "index").dropped == len(gone)
    assert same(vectors_by_id(tmp_path / "index"), {k: v for k, v in before.items() if k not in gone})
    shutil.copy(codes / "metadata.csv", tmp_path / "short.csv")
    with (codes / "metadata.csv").open("a") as file:
        file.writelines(f"{name},It is back.,train\n" for name in gone)
    assert make_index(codes, tmp_path / "index").added == len(gone)
    assert same(vectors_by_id(tmp_path / "index"), before)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_was_killed_is_gone_on_with(codes, make_index, tmp_path, monkeypatch, after):
    make_index(codes, tmp_path / "whole")
    monkeypatch.setattr("vae_qwen3vl.search.indexing._OBJECTS_AT_ONCE", 2)
    put, calls = store.IndexWriter.put, []

    def killed(self, ids, shard, vectors):
        if len(calls) == after:
            for place in range(len(self), len(self) + len(ids)):
                self._write(place, vectors[0].tobytes())  # vectors without their rows
            raise KeyboardInterrupt
        calls.append(ids)
        put(self, ids, shard, vectors)

    monkeypatch.setattr(store.IndexWriter, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        make_index(codes, tmp_path / "index")
    monkeypatch.setattr(store.IndexWriter, "put", put)
    report = make_index(codes, tmp_path / "index")
    assert (report.kept, report.added) == (2 * after, 5 - 2 * after)
    assert same(vectors_by_id(tmp_path / "index"), vectors_by_id(tmp_path / "whole"))


def test_only_one_split_is_indexed_where_it_is_asked_for(codes, make_index, tmp_path):
    assert make_index(codes, tmp_path / "index", split="train").objects == 3
    assert set(vectors_by_id(tmp_path / "index")) == {"object0", "object1", "object2"}
    assert make_index(codes, tmp_path / "index").objects == 5


def test_codes_of_a_run_that_has_not_ended_are_indexed_without_words(codes, make_index, tmp_path):
    (codes / "metadata.csv").unlink()
    assert make_index(codes, tmp_path / "index").objects == 5
    with pytest.raises(ValueError, match=r"no metadata.csv yet"):
        make_index(codes, tmp_path / "other", split="train")


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    folder = tmp_path / "meshes"
    (folder / "below").mkdir(parents=True)
    trimesh.creation.box((1, 2, 1)).export(folder / "box.obj")
    trimesh.creation.icosphere(2).export(folder / "below" / "ball.ply")
    (folder / "broken.stl").write_bytes(b"solid nothing")
    (folder / "metadata.csv").write_text("file,caption\nbox.obj,a tall box\n")
    return folder


@pytest.fixture
def program(weights, small_vae, tmp_path, place):
    """Run a program on the small tokenizer; its exit code."""
    from vae_qwen3vl.commands.main import main

    save_vae(small_vae, tmp_path / "vae")

    def run(*words: str | Path) -> int:
        vae = ["--vae_ckpt", str(tmp_path / "vae" / "model.safetensors")]
        return main([*map(str, words), *vae, "--device", "cpu"])

    def index(*words: str | Path) -> int:
        projector, head = map(str, weights)
        return run("index", *words, "--projector_ckpt", projector, "--search_head", head)

    run.index = index
    return run


def test_a_folder_of_meshes_is_encoded_and_indexed_and_what_cannot_be_is_told_with_its_reason(
    meshes, program, capsys
):
    assert program.index(meshes, "-o", "index") == 0
    out = capsys.readouterr().out
    assert out.startswith("index: 2 objects (2 new, 0 kept, 0 dropped, 1 failed)") and "broken.stl" in out
    (error,) = map(json.loads, (Path("index") / ERRORS).read_text().splitlines())
    assert error["reason"]
    index = ShapeIndex.open("index")
    hits = {hit.name: hit for hit in index.nearest(torch.ones(384))}
    assert set(hits) == {"box", "ball"}
    assert (hits["box"].about, hits["box"].source) == ("a tall box", str(meshes / "box.obj"))
    assert index.codes_of(hits["box"].id).vae_hash == index.manifest.vae_hash


def test_a_mesh_that_changed_is_encoded_anew_and_the_others_are_not(meshes, program, capsys):
    program.index(meshes, "-o", "index")
    before = vectors_by_id(Path("index"))
    trimesh.creation.cylinder(0.2, 3).export(meshes / "box.obj")
    capsys.readouterr()
    assert program.index(meshes, "-o", "index", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [report[key] for key in ("objects", "added", "kept", "dropped")] == [2, 1, 1, 1]
    assert len(before.keys() & vectors_by_id(Path("index")).keys()) == 1
    (meshes / "below" / "ball.ply").unlink()
    (meshes / "metadata.csv").unlink()
    assert program.index(meshes, "-o", "index") == 0
    assert len(ShapeIndex.open("index")) == 1


def test_a_shape_finds_itself_and_a_page_shows_what_was_found(meshes, program, capsys):
    program.index(meshes, "-o", "index")
    capsys.readouterr()
    assert program("search", "index", meshes / "below" / "ball.ply", "--page", "found.html", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objects"] == 2 and found["hits"][0]["name"] == "ball" and found["hits"][0]["score"] > 0.99
    page = Path("found.html").read_text()
    assert page.count("<img") == 2 and "<script" not in page and "src='http" not in page
    (meshes / "box.obj").unlink()  # then it is drawn from its codes
    (meshes / "below" / "ball.ply").rename("ball.ply")
    assert program("search", "index", "ball.ply", "-k", "1") == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 2 and "ball" in table[1]


def test_what_does_not_fit_is_refused_in_one_line(meshes, codes, program, make_index, capsys, tmp_path):
    make_index(codes, tmp_path / "index")

    def refused(*words: object) -> str:
        capsys.readouterr()
        assert program(*words) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        return line

    assert "is no index" in refused("search", meshes, "a chair")
    assert "does not exist" in refused("search", "index", "nowhere.glb")
    assert "a page ends in .html" in refused("search", "index", "a chair", "--page", "found.png")
    assert program.index(meshes, "-o", tmp_path / "index") == 2
    assert f"an index of {codes}" in capsys.readouterr().err
    assert program.index(meshes, "-o", meshes) == 2
    assert "not empty and no index" in capsys.readouterr().err
    assert program.index(tmp_path / "nowhere", "-o", "other") == 2
    (tmp_path / "index" / store.VECTORS).write_bytes(b"short")
    assert "fewer than the 5 vectors" in refused("search", tmp_path / "index", "a chair")
    (tmp_path / "index" / store.OBJECTS).write_bytes(b"no table at all" * 100)
    assert "objects.sqlite" in refused("search", tmp_path / "index", "a chair")
    (tmp_path / "index" / store.MANIFEST).write_text('{"format": "vae-qwen3vl-index/1", "width": "x"}')
    assert "not a readable manifest" in refused("search", tmp_path / "index", "a chair")


def test_a_head_of_another_projector_is_refused(codes, weights, make_index, tmp_path):
    projector, _ = weights
    projector.write_bytes(projector.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="trained on the tokens of another projector"):
        make_index(codes, tmp_path / "index")


def test_a_new_head_makes_all_vectors_anew(codes, weights, make_index, tmp_path):
    import dataclasses

    from vae_qwen3vl.search.head import SearchHead

    make_index(codes, tmp_path / "index")
    before = vectors_by_id(tmp_path / "index")
    head = SearchHead.load(weights[1])
    dataclasses.replace(head, weight=-head.weight).save(weights[1])
    report = make_index(codes, tmp_path / "index")
    assert (report.added, report.kept) == (5, 0)
    after = vectors_by_id(tmp_path / "index")
    assert all(np.allclose(after[name], -before[name], atol=2e-3) for name in before)
