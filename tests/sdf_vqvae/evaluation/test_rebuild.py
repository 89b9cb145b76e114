"""Promises of the evaluation: nothing is dropped, runs go on, folders don't mix, summaries are what they say."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from sdf_vqvae.codes.pipeline import voxelize_for
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.data.objects import Place, StoredObject
from sdf_vqvae.evaluation import run as evaluation_run
from sdf_vqvae.evaluation.objects import list_shapes
from sdf_vqvae.evaluation.rebuild import (
    ROWS,
    count_bits,
    describe_codes,
    failed_record,
    read_codes,
    rebuild,
    score_rebuilt,
)
from sdf_vqvae.evaluation.report import chosen_for_pictures, draw_objects, write_report
from sdf_vqvae.evaluation.run import evaluate_shapes, read_objects
from sdf_vqvae.evaluation.settings import EvaluationSettings
from sdf_vqvae.evaluation.summary import code_bin, subsets, summarize
from sdf_vqvae.evaluation.tables import summary_text
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from tiny_tokenizer import measured_args, saved_with_second_codes

SAMPLES = 500
QUICK = EvaluationSettings(samples=SAMPLES, shapes="tests")


def small_vae(side: int, seed: int = 0) -> SparseSDFVQVAE:
    """A small tokenizer of random weights."""
    torch.manual_seed(seed)
    vae = SparseSDFVQVAE(VAEConfig.from_args(measured_args(side))).eval()
    decode = vae.decode_latent

    def a_ball(latent):
        """Stand in for trained weights, whatever the latent is: a smaller ball than the one that was encoded."""
        field = decode(latent)
        place = (field.coords[:, 1:] + 0.5) / side - 0.5
        return field.replace((place.norm(dim=1, keepdim=True) - 0.46) * side / 3)

    vae.decode_latent = a_ball
    return vae


@pytest.fixture(scope="module")
def vae() -> SparseSDFVQVAE:
    return small_vae(64)


@pytest.fixture(scope="module")
def quick_vae() -> SparseSDFVQVAE:
    """For tests that ask not how good it is."""
    return small_vae(32)


def ball(subdivisions: int = 2) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InHand(Place):
    """A mesh that is there already, or one whose file is not."""

    given: trimesh.Trimesh | None

    def load(self) -> trimesh.Trimesh | SparseSDF:
        return super().load() if self.given is None else self.given


def in_hand(name: str, mesh: trimesh.Trimesh | None = None, source: str = "test") -> StoredObject:
    return StoredObject(id=name, source=source, place=InHand(path=Path("nowhere.ply"), name=name, given=mesh))


def record_of(name: str, **changes) -> dict:
    """A record as an evaluation writes it, scored by hand."""
    score = {"chamfer_l1": 0.01, "fscore@0.005": 0.9, "fscore@0.01": 0.95, "volume_iou": None, "samples": 1}
    made = {
        "id": name,
        "source": "test",
        "watertight": False,
        "truth_is_field": False,
        "faces": 12,
        "codes": 100,
        "bits": {"codes": 700.0, "total": 900.0},
        "warm_up": False,
        "errors": {},
        "seconds": {},
        "peak_bytes": 0,
    }
    return made | {row: {**score, "failed": False} for row in ROWS} | changes


# -- one object ----------------------------------------------------------------------------------------------------


def test_the_ceiling_of_a_ball_is_nearly_perfect_and_random_weights_are_not(vae):
    found = score_rebuilt(rebuild(vae, in_hand("ball", ball(3))), samples=5000, side=8)
    assert found["watertight"] and not found["errors"]
    assert found["ceiling"]["fscore@0.005"] > 0.99
    assert found["ceiling"]["volume_iou"] > 0.98
    assert found["discrete"]["fscore@0.005"] < found["ceiling"]["fscore@0.005"]
    assert found["area_cells"] == pytest.approx(math.pi * 0.95**2 * 8**2, rel=0.02)
    codes = read_codes(found)
    assert len(codes) == found["codes"] and codes.max() < 128
    encoded = vae.Encode(voxelize_for(vae, ball(3)).to_batch())
    assert np.array_equal(codes, encoded.feats[:, 0].numpy())


@pytest.mark.parametrize("band", [None, 1.0])
def test_a_known_ceiling_is_taken_over_where_the_field_is_the_same(quick_vae, band, monkeypatch):
    shape = in_hand("ball", ball(3))
    monkeypatch.setattr(quick_vae, "config", dataclasses.replace(quick_vae.config, input_band=band))
    found = score_rebuilt(rebuild(quick_vae, shape), samples=SAMPLES)
    known = found | {"ceiling": found["ceiling"] | {"chamfer_l1": 123.0}}
    taken = score_rebuilt(rebuild(quick_vae, shape, measured=known), samples=SAMPLES)
    assert taken["ceiling"] == known["ceiling"]
    assert taken["discrete"] == found["discrete"]
    other = score_rebuilt(rebuild(quick_vae, shape, measured=known | {"voxels": 5}), samples=SAMPLES)
    assert other["ceiling"] == found["ceiling"]


def test_a_field_is_its_own_ground_truth(vae, tmp_path):
    voxelize_for(vae, ball()).save(tmp_path / "ball_r64.npz")
    (shape,) = list_shapes(tmp_path, resolution=64)
    found = score_rebuilt(rebuild(vae, shape), samples=SAMPLES, side=8)
    assert found["truth_is_field"]
    assert found["ceiling"]["hausdorff"] < 1e-7
    assert (found["ceiling"]["volume_iou"], found["ceiling"]["voxel_iou"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    "broken", [trimesh.Trimesh(), trimesh.Trimesh([[0, 0, 0]] * 3, [[0, 1, 2]], process=False), None]
)
def test_a_shape_that_cannot_be_used_scores_the_worst_case_in_every_row(vae, broken):
    found = score_rebuilt(rebuild(vae, in_hand("bad", broken)), samples=SAMPLES)
    assert found["errors"]["all"]
    for row in ROWS:
        assert found[row]["failed"]
        assert found[row]["chamfer_l1"] == pytest.approx(math.sqrt(3))
        assert found[row]["fscore@0.01"] == found[row]["voxel_iou"] == 0.0


def test_a_network_without_a_surface_fails_its_own_rows_only(vae, monkeypatch):
    decode = vae.decode_latent

    def far_away(latent):
        field = decode(latent)
        return field.replace(torch.ones_like(field.feats))

    monkeypatch.setattr(vae, "decode_latent", far_away)
    found = score_rebuilt(rebuild(vae, in_hand("ball", ball())), samples=SAMPLES)
    assert not found["ceiling"]["failed"]
    assert found["continuous"]["failed"] and found["discrete"]["failed"]
    assert set(found["errors"]) == {"continuous", "discrete"}
    # A watertight truth has an inside, so the missing prediction scores 0 there as well.
    assert found["discrete"]["volume_iou"] == found["discrete"]["surface_iou"] == 0.0


def test_an_object_whose_scores_are_lost_with_their_process_is_the_worst_case(vae):
    made = rebuild(vae, in_hand("ball", ball()))
    found = failed_record(made.record, "the worker process died twice", samples=SAMPLES)
    assert found["errors"] == {"all": "the worker process died twice"}
    assert all(found[row]["failed"] and found[row]["volume_iou"] == 0.0 for row in ROWS)
    assert found["codes"] == made.record["codes"] > 0  # what is known stays


# -- bits ----------------------------------------------------------------------------------------------------------


def test_bits_of_one_cell_are_known_by_hand():
    bits = count_bits(1, np.array([[5, 0, 31]]), codebook=8192, side=32)
    assert bits["codes"] == 13
    assert bits["plain_coordinates"] == 15
    assert bits["total"] == bits["codes"] + bits["octree"]
    assert bits["octree"] <= 8 * (5 + 8 + 11)  # five levels, and what zlib adds


@settings(max_examples=30, deadline=None)
@given(radius=st.floats(2, 7.5), seed=st.integers(0, 1000))
def test_an_octree_of_a_surface_is_less_than_half_its_coordinates(radius, seed):
    cells = np.argwhere(np.abs(np.linalg.norm(np.indices((16, 16, 16)) - 7.6, axis=0) - radius) < 0.8)
    bits = count_bits(len(cells), np.random.default_rng(seed).permutation(cells), codebook=2, side=16)
    assert bits["octree"] < 0.5 * bits["plain_coordinates"]
    assert bits == count_bits(len(cells), cells, codebook=2, side=16)  # whatever the order


# -- the summary ---------------------------------------------------------------------------------------------------


def test_means_intervals_and_gaps_are_those_of_the_objects():
    rng = np.random.default_rng(1)
    values = rng.uniform(0.5, 1.0, 200)
    records = []
    for number, value in enumerate(values):
        record = record_of(str(number))
        for row, less in (("ceiling", 0.0), ("continuous", 0.01), ("discrete", 0.03)):
            record[row] = {**record[row], "fscore@0.01": value - less}
        records.append(record)
    found = summarize(records, codebook=128)["subsets"]["all"]
    measured = found["discrete"]["fscore@0.01"]
    assert measured["mean"] == pytest.approx(values.mean() - 0.03, abs=1e-5)
    assert measured["median"] == pytest.approx(np.median(values) - 0.03, abs=1e-5)
    spread = 1.96 * values.std() / math.sqrt(200)
    assert measured["low"] == pytest.approx(measured["mean"] - spread, abs=0.3 * spread)
    assert measured["high"] == pytest.approx(measured["mean"] + spread, abs=0.3 * spread)
    # The differences are the same for all objects: paired, they have no spread at all.
    gap = found["gaps"]["continuous - discrete"]["fscore@0.01"]
    assert (gap["low"], gap["mean"], gap["high"]) == pytest.approx((0.02, 0.02, 0.02))


def test_measures_that_do_not_apply_are_left_out_of_their_mean():
    closed = record_of("a", watertight=True)
    for row in ROWS:
        closed[row] = {**closed[row], "volume_iou": 0.8}
    found = summarize([closed, record_of("b"), record_of("c")], codebook=128)["subsets"]
    assert (
        found["all"]["discrete"]["volume_iou"] | {"objects": 1, "mean": 0.8} == found["all"]["discrete"]["volume_iou"]
    )
    assert found["watertight"]["objects"] == 1
    assert "volume_iou" not in found["not watertight"]["discrete"]


def test_second_codes_are_counted_and_told_apart(tmp_path):
    vae = load_vae_from_config(vae_ckpt=saved_with_second_codes(ball(), tmp_path), device="cpu")
    encoded = vae.Encode(voxelize_for(vae, ball()).to_batch())
    told = describe_codes(encoded.feats.numpy(), encoded.coords[:, 1:].numpy(), vae)
    second = int((encoded.feats[:, 1] >= 0).sum())
    assert told["second_codes"] == second > 0
    assert told["codes"] == len(encoded) + second
    summary = summarize([record_of("a", **told)], codebook=32) | {"device": "cpu"}
    assert summary["codes"]["second_share"] == pytest.approx(second / told["codes"])
    assert f"({100 * second / told['codes']:.1f} % second codes of a cell)" in summary_text(summary)


def test_failures_are_in_every_mean_and_listed():
    lost = record_of("lost", errors={"all": "no mesh"}, codes=0, bits=None)
    for row in ROWS:
        lost[row] = {**lost[row], "fscore@0.01": 0.0, "failed": True}
    found = summarize([record_of("a"), lost], codebook=128)
    assert found["subsets"]["all"]["discrete"]["fscore@0.01"]["mean"] == pytest.approx(0.475)
    assert found["subsets"]["all"]["discrete"]["failed"] == 1
    assert found["failures"] == [{"id": "lost", "rows": list(ROWS), "errors": {"all": "no mesh"}}]


def test_every_object_is_in_one_subset_of_each_kind():
    records = [record_of(str(n), source=s, codes=c, watertight=w) for n, (s, c, w) in enumerate(
        [("hubmap", 10, True), ("ldraw", 512, False), ("ldraw", 513, True), ("mmmm", 5000, False), ("aws", 0, False)]
    )]  # fmt: skip
    found = subsets(records)
    assert found["medical"] == [0, 3] and found["other"] == [1, 2, 4]
    assert found["source ldraw"] == [1, 2]
    assert found["codes 1-512"] == [0, 1] and found["codes 513-1024"] == [2]
    assert found["codes over 4096"] == [3] and found["no codes"] == [4]
    assert code_bin(4096) == "codes 2049-4096"
    for kind in ("source", "codes|no codes"):
        members = [i for name, rows in found.items() if re.match(kind, name) for i in rows]
        assert sorted(members) == list(range(5))


# -- the run -------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_stopped_and_changes_nothing(quick_vae, tmp_path, monkeypatch):
    shapes = [in_hand("a", ball()), in_hand("b", None), in_hand("c", trimesh.creation.box())]
    whole = evaluate_shapes(quick_vae, shapes, tmp_path / "whole", QUICK)
    evaluate_shapes(quick_vae, shapes[:1], tmp_path / "parts", QUICK)
    lines = tmp_path / "parts" / "objects.jsonl"
    with lines.open("a") as file:
        file.write('{"id": "b", "sour')  # killed in the middle of a line
    seen = []
    real = evaluation_run.rebuild
    monkeypatch.setattr(evaluation_run, "rebuild", lambda v, shape, **k: seen.append(shape.id) or real(v, shape, **k))
    again = evaluate_shapes(quick_vae, shapes, tmp_path / "parts", QUICK)
    assert seen == ["b", "c"]
    assert again["subsets"] == whole["subsets"]
    assert [f["id"] for f in again["failures"]] == ["b"]
    assert len(lines.read_text().splitlines()) == 3
    assert list(read_objects(tmp_path / "parts")) == ["a", "b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False], ids=["networks too", "scores alone, as beside a GPU"])
def test_scores_in_other_processes_are_the_same(whole, quick_vae, tmp_path, monkeypatch):
    if not whole:
        monkeypatch.setattr(evaluation_run, "networks_in_workers", lambda vae, workers: False)
    for number in range(1, 4):
        ball(number).export(tmp_path / f"{number}.ply")
    (tmp_path / "bad.ply").write_text("nothing")
    shapes = list_shapes(tmp_path)
    torch.manual_seed(0)
    plain = SparseSDFVQVAE(VAEConfig.from_args(measured_args(32))).eval()  # other processes get no stand-in
    one = evaluate_shapes(plain, shapes, tmp_path / "one", QUICK)
    two = evaluate_shapes(plain, shapes, tmp_path / "two", QUICK, workers=2)
    assert one["subsets"] == two["subsets"]
    assert one["codebook"] == two["codebook"]
    assert [failure["id"] for failure in two["failures"] if "all" in failure["errors"]] == ["bad.ply"]


@pytest.mark.parametrize("change", ["samples", "seed", "shapes", "tokenizer", "protocol"])
def test_results_of_different_evaluations_do_not_mix(quick_vae, tmp_path, change, monkeypatch):
    shapes = [in_hand("a", trimesh.creation.box())]
    evaluate_shapes(quick_vae, shapes, tmp_path, QUICK)
    changed, other = QUICK, quick_vae
    if change == "tokenizer":
        other = small_vae(32, seed=1)
    elif change == "protocol":
        monkeypatch.setattr(evaluation_run, "PROTOCOL", 99)
    else:
        changed = dataclasses.replace(QUICK, **{change: "elsewhere" if change == "shapes" else 123})
    with pytest.raises(ValueError, match=f"another {change}"):
        evaluate_shapes(other, shapes, tmp_path, changed)


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "objects.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"objects\.jsonl, line 1 is damaged"):
        read_objects(tmp_path)


# -- what is read --------------------------------------------------------------------------------------------------


def test_a_folder_of_meshes_is_listed_by_its_subfolders(tmp_path):
    for name in ("b/two.ply", "a/one.stl", "three.obj"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        trimesh.creation.box().export(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no mesh")
    found = list_shapes(tmp_path)
    assert [(s.id, s.source) for s in found] == [("a/one.stl", "a"), ("b/two.ply", "b"), ("three.obj", tmp_path.name)]
    assert [s.id for s in list_shapes(tmp_path / "three.obj")] == ["three.obj"]
    some, more = (list_shapes(tmp_path, max_samples=n, seed=3) for n in (1, 2))
    assert {s.id for s in some} < {s.id for s in more} < {s.id for s in found}
    with pytest.raises(ValueError, match="no split"):
        list_shapes(tmp_path, split="test")
    with pytest.raises(ValueError, match="does not exist"):
        list_shapes(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no mesh"):
        list_shapes(tmp_path / "empty")


def test_a_pack_is_listed_by_split(reference_data):
    pack = list_shapes(reference_data / "shapes", split="test")
    assert len(pack) == 568
    assert {"ldraw", "hubmap", "totalseg", "mmmm"} < {shape.source for shape in pack}
    assert len(pack[0].there.mesh().faces) > 0
    with pytest.raises(ValueError, match="no such split; it has test, train, val"):
        list_shapes(reference_data / "shapes", split="tset")


# -- the page ------------------------------------------------------------------------------------------------------


@given(count=st.integers(0, 12), objects=st.integers(1, 20))
def test_no_object_is_shown_twice(count, objects):
    records = []
    for number in range(objects):
        record = record_of(str(number))
        record["discrete"] = {**record["discrete"], "fscore@0.005": number % 7 / 7}
        records.append(record)
    chosen = chosen_for_pictures(records, count)
    assert len({name for _, name in chosen}) == len(chosen) == min(objects, 3 * count)
    scores = [next(r for r in records if r["id"] == name)["discrete"]["fscore@0.005"] for _, name in chosen]
    assert scores == sorted(scores, reverse=True)


def test_the_page_is_small_whole_and_escaped(quick_vae, tmp_path):
    hostile = "<script>alert('x')</script>&\"'"
    shapes = [in_hand(hostile, ball(), source=hostile), in_hand("lost", None)]
    settings_ = dataclasses.replace(QUICK, shapes=hostile)
    summary = evaluate_shapes(quick_vae, shapes, tmp_path, settings_)
    records = read_objects(tmp_path)
    chosen = chosen_for_pictures(list(records.values()), 3)
    write_report(tmp_path / "report.html", summary, records, chosen, draw_objects(quick_vae, shapes))
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert page.count("data:image/") == 4  # truth and three rows; the lost one has none
    assert not re.search(r"(?:src|href)='(?!data:)", page)
    assert len(page) < 1_500_000
    assert "None" not in re.sub(r"base64,[^']+", "", page)
