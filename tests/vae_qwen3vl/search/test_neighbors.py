"""Who is near an object: never itself, nor its copies."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sdf_vqvae.codes.folder import CodeFolder
from vae_qwen3vl.search import ShapeIndex
from vae_qwen3vl.search.neighbors import neighbors_but, neighbors_of_folder, neighbors_of_shape


@pytest.fixture
def index(codes, make_index, tmp_path):
    make_index(codes, tmp_path / "index")
    return ShapeIndex.open(tmp_path / "index")


def test_an_object_is_not_among_its_own_neighbors(codes, index):
    found = neighbors_of_folder(CodeFolder(codes), index)
    assert set(found) == set(CodeFolder(codes))
    for name, near in found.items():
        vector = index.shapes(*([part] for part in CodeFolder(codes)[name]))[0]
        hits = [hit for hit in index.nearest(vector, 9) if hit.id != name]
        assert [one.likeness for one in near] == sorted((one.likeness for one in near), reverse=True)
        assert near[0].words == hits[0].about.partition(" / ")[0] and near[0].likeness == pytest.approx(
            hits[0].score, abs=1e-4
        )


def test_they_are_found_once_and_kept_beside_the_codes(codes, index, monkeypatch):
    folder = CodeFolder(codes)
    found = neighbors_of_folder(folder, index)
    monkeypatch.setattr(index, "nearest", lambda *_: pytest.fail("looked again"))
    again = neighbors_of_folder(folder, index)
    assert {name: [one.words for one in near] for name, near in again.items()} == {
        name: [one.words for one in near] for name, near in found.items()
    }
    monkeypatch.undo()
    lines = (codes / "neighbors.jsonl").read_text().splitlines()
    about = json.loads(lines[0])
    (codes / "neighbors.jsonl").write_text("\n".join([json.dumps({**about, "indexed": 1}), *lines[1:]]) + "\n")
    assert neighbors_of_folder(folder, index) == found  # of another index: found anew


def test_copies_of_an_object_are_passed_over(codes, index):
    folder = CodeFolder(codes)
    ids = list(folder)
    vector = index.shapes(*([part] for part in folder[ids[0]]))[0]
    second = next(hit.id for hit in index.nearest(vector, 9) if hit.id != ids[0])
    free = neighbors_but(index, vector, ids[0], {})
    grouped = neighbors_but(index, vector, ids[0], {ids[0]: "a", second: "a"})
    assert grouped == free[1:] or len(grouped) == len(free)
    assert free[0] not in grouped
    assert neighbors_but(index, vector, ids[0], {ids[0]: "a", second: "b"}) == free
    assert all(one.likeness < 0.999 for one in neighbors_but(index, vector, "a copy of it", {}))


def test_a_shape_from_elsewhere_may_find_itself(index):
    codes = index.codes_of(index.ids()[0])
    near = neighbors_of_shape(index, codes)
    assert near[0].likeness == pytest.approx(1, abs=2e-3)


def test_an_index_of_another_tokenizer_is_refused(codes, index):
    folder = CodeFolder(codes)
    folder.manifest = replace(folder.manifest, vae_hash="0" * 64)
    with pytest.raises(ValueError, match="make one with `vae-qwen3vl index"):
        neighbors_of_folder(folder, index)
