"""A visit without a browser: what a person does, as calls."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.geometry.mesh import load_mesh
from vae_qwen3vl.page.guide import (
    Guide,
    Visit,
    facts_html,
    hits_html,
    links_html,
    reason_of,
    scores_html,
    status_html,
)
from vae_qwen3vl.page.hosting import example_meshes, listen
from vae_qwen3vl.page.store import FileStore
from vae_qwen3vl.page.workbench import Workbench
from vae_qwen3vl.search.shape_index import Hit


@pytest.fixture
def guide(bench) -> Guide:
    return Guide(bench, FileStore())


@pytest.fixture
def visit(guide, meshes) -> Visit:
    """A visit with a ball that has its codes."""
    made = Visit()
    guide.open(made, [meshes / "ball.glb"])
    guide.encode(made)
    return made


def stored(guide: Guide, path: str) -> bytes:
    _, token, name = path.split("/")
    data = guide.store.get(token, name)
    assert data is not None
    return data


def scan(folder: Path) -> list[Path]:
    nibabel = pytest.importorskip("nibabel")
    labels = np.zeros((16, 16, 16), np.uint8)
    labels[3:12, 3:12, 3:13] = 1
    labels[13:15, 13:15, 13:15] = 5
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([2.0, 2.0, 3.0, 1.0])), folder / "organs.nii.gz")
    (folder / "labels.json").write_text(json.dumps({"1": "liver", "5": "gallbladder"}))
    return [folder / "labels.json", folder / "organs.nii.gz"]


def test_a_mesh_becomes_codes_words_and_a_mesh_again(guide, visit):
    assert visit.shape is not None
    assert visit.views["input_note"] == "ball"
    assert visit.views["codes_note"] == f"{len(visit.shape.codes.codes)} codes"
    pieces = list(guide.ask(visit, "Describe it."))
    assert visit.turns == [("Describe it.", pieces[-1])]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pieces))
    rebuilt = guide.rebuild(visit)
    assert rebuilt is not None
    assert len(rebuilt.distance) == len(rebuilt.mesh.vertices)
    assert rebuilt.score.chamfer_l1 == pytest.approx(rebuilt.distance.mean(), rel=1)  # the same measure, sampled
    for name in ("input", "codes", "rebuilt"):
        assert stored(guide, visit.views[name])[:4] == b"glTF"
    assert "F-score" in scores_html(rebuilt, visit.shape.source)
    assert f"{rebuilt.score.fscore[0.01]:.3f}" in scores_html(rebuilt, visit.shape.source)
    assert "1,280 triangles, closed" in facts_html(visit.shape, rebuilt)


def test_an_answer_is_the_one_of_the_engine_and_earlier_turns_are_read_again(guide, visit):
    from vae_qwen3vl.generation.engine import Sampling

    (*_, first) = guide.ask(visit, "Describe it.")
    (*_, second) = guide.ask(visit, "And now?")
    shape = {"type": "3d"}
    chat = [
        {"role": "user", "content": [shape, {"type": "text", "text": "Describe it."}]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
    ]
    answer = guide.bench.engine.submit(chat, [visit.shape.codes], Sampling(max_new_tokens=12))
    assert answer.text() == second


def test_what_can_be_taken_along_opens_again_in_the_units_of_the_source(guide, visit, tmp_path):
    rebuilt = guide.rebuild(visit)
    (mesh_words, mesh_path), (_, codes_path) = guide.links(visit, rebuilt)
    (tmp_path / "mesh.glb").write_bytes(stored(guide, mesh_path))
    again = load_mesh(tmp_path / "mesh.glb")
    assert np.allclose(np.ptp(again.vertices, axis=0), np.ptp(rebuilt.mesh.vertices, axis=0), rtol=1e-5)
    (tmp_path / "codes.safetensors").write_bytes(stored(guide, codes_path))
    assert torch.equal(ShapeCodes.load(tmp_path / "codes.safetensors").codes, visit.shape.codes.codes)
    assert mesh_words in links_html([(mesh_words, mesh_path)])


def test_all_views_share_one_cube_with_y_up(guide, meshes):
    visit = Visit()
    guide.open(visit, [meshes / "tall block.obj"], up="z")
    assert visit.source.up.axis == "z"
    size = np.ptp(visit.source.normalized.vertices.numpy(), axis=0)
    assert size.argmax() == 1 and size[1] == pytest.approx(0.95)
    guide.encode(visit)
    cells = visit.shape.codes.coords.numpy()
    assert np.ptp(cells, axis=0).argmax() == 1
    assert visit.shape.codes.up == "z"


def test_an_organ_of_a_scan_is_a_shape_in_millimetres(guide, tmp_path):
    visit = Visit()
    guide.open(visit, scan(tmp_path))
    assert visit.source is None and list(visit.scan.organs) == ["liver", "gallbladder"]
    guide.choose(visit, "liver")
    assert visit.source.unit == "mm" and visit.source.up.axis == "z"
    assert np.ptp(visit.source.mesh.vertices, axis=0) == pytest.approx([18, 18, 30], abs=2)
    guide.encode(visit)
    rebuilt = guide.rebuild(visit)
    assert " mm)" in scores_html(rebuilt, visit.source) and " mm)" in visit.views["scale"]["top"]
    with pytest.raises(ValueError, match="the scan has no 'spleen'"):
        guide.choose(visit, "spleen")


def test_bad_files_are_refused_in_words_and_leave_nothing_behind(guide, visit, tmp_path):
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"no mesh at all")
    with pytest.raises(ValueError, match="not a readable GLB file") as told:
        guide.open(visit, [broken])
    assert str(tmp_path) not in reason_of(told.value) and "broken.glb" in reason_of(told.value)
    assert visit.shape is None and not visit.views
    (tmp_path / "notes.txt").write_text("no mesh")
    with pytest.raises(ValueError, match=r"notes\.txt is neither a mesh .* nor a scan"):
        guide.open(visit, [tmp_path / "notes.txt"])
    large = tmp_path / "large.ply"
    trimesh.creation.icosphere(subdivisions=6).export(large)
    with pytest.raises(ValueError, match="81,920 faces; this page takes up to 60,000"):
        guide.open(visit, [large])


def test_what_was_computed_for_an_object_that_is_gone_is_not_shown(guide, visit, meshes, monkeypatch):
    rebuild = guide.bench.rebuild

    def slowly(shape, resolution):
        guide.open(visit, [meshes / "tall block.obj"])  # another one is opened meanwhile
        return rebuild(shape, resolution)

    monkeypatch.setattr(guide.bench, "rebuild", slowly)
    assert guide.rebuild(visit) is None
    assert "rebuilt" not in visit.views and visit.views["name"] == "tall block"


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(guide, visit):
    writing = guide.ask(visit, "Describe it.")
    begun = next(writing)
    assert not visit.is_answered
    writing.close()
    assert visit.is_answered and visit.turns == [("Describe it.", begun)]


def test_a_grid_that_is_too_fine_is_refused(guide, visit):
    with pytest.raises(ValueError, match="64"):
        guide.rebuild(visit, 64)


def test_files_are_read_in_a_process_of_their_own_to_the_same_codes(bench, meshes, visit, tmp_path):
    from vae_qwen3vl.serving.shapes import ShapeReader

    reader = ShapeReader(bench.vae)
    try:
        guarded, read = Guide(Workbench(bench.vae, bench.engine, bench.limits, reader=reader), FileStore()), Visit()
        guarded.open(read, [meshes / "ball.glb"])
        guarded.encode(read)
        assert torch.equal(read.shape.codes.codes, visit.shape.codes.codes)
        assert read.source.up == visit.source.up
        (tmp_path / "broken.ply").write_bytes(b"ply\nno more")
        with pytest.raises(ValueError, match="PLY"):
            guarded.open(read, [tmp_path / "broken.ply"])
        guarded.open(read, scan(tmp_path))
        guarded.choose(read, "gallbladder")
        assert read.source.unit == "mm" and read.source.codes is not None, "encoded where it was read"
    finally:
        reader.close()


def test_like_objects_are_those_of_the_index(bench, visit):
    class Index:
        def by_shape(self, codes, k):
            assert codes is visit.shape.codes
            return [Hit(id="7", name="<ball>", score=0.91, source="", about="round & red")][:k]

    found = Workbench(bench.vae, bench.engine, index=Index()).similar(visit.shape)
    assert "&lt;ball&gt;" in hits_html(found) and "0.91" in hits_html(found) and "round &amp; red" in hits_html(found)
    assert Workbench(bench.vae, bench.engine).similar(visit.shape) == [] and "nothing" in hits_html([])


def test_names_are_escaped():
    assert status_html("<script>") == "<p class='status-line done'>&lt;script&gt;</p>"
    assert "&#x27;" in links_html([("a", "files/x/it's.glb")])


def test_a_store_forgets_the_oldest_and_keeps_the_newest():
    store = FileStore(most_bytes=10)
    first, second = store.put("a b.glb", b"12345678"), store.put("two.glb", b"1234")
    token, name = first.split("/")
    assert name == "a%20b.glb" and len(token) > 16
    assert store.get(token, "a b.glb") is None
    assert store.get(*second.split("/")) == b"1234"
    third = store.put("large.glb", b"x" * 100)
    assert store.get(*third.split("/")) == b"x" * 100


def test_examples_and_ports_that_are_not_there_are_named(tmp_path):
    assert [path.stem for path in example_meshes()] == ["chair", "lamp", "mug", "plane", "rocket"]
    with pytest.raises(ValueError, match="is not a folder"):
        example_meshes(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no mesh"):
        example_meshes(tmp_path)
    with listen("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_the_documents_lines_run(bench, repository, monkeypatch, capsys):
    text = (repository / "docs" / "page.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(repository)
    monkeypatch.setattr("sdf_vqvae.model.checkpoint.load_vae_from_config", lambda: bench.vae)
    monkeypatch.setattr("vae_qwen3vl.describer.load_describer", lambda _: bench.engine.model)
    monkeypatch.setattr("vae_qwen3vl.processor.Processor3D.from_pretrained", lambda _: bench.engine.processor)
    exec(code, {})
    assert len(capsys.readouterr().out.splitlines()) >= 2
