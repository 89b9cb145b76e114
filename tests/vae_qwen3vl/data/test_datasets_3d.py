"""Datasets with words: which objects are in them, what is said of each, and what a batch holds."""

from __future__ import annotations

import collections
import csv
import json
import re
from pathlib import Path

import pytest
import torch
import trimesh

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from vae_qwen3vl import (
    Dummy3DTextDataset,
    Processor3D,
    Qwen3VLWith3DBranch,
    SDF3DCaptionDataset,
    collate_3d_text,
    collate_codes_caption,
    collate_sdf_caption,
)
from vae_qwen3vl.data.augmentation import CodeAugmentation
from vae_qwen3vl.data.datasets_3d import KINDS_OF_THE_BOX, CachedCodesDataset
from vae_qwen3vl.data.loading import worker_options
from vae_qwen3vl.data.texts import Text, choose, read_records
from vae_qwen3vl.synthetic.questions import KINDS

R = 32
SHAPES = {
    "a": trimesh.creation.box(),
    "b": trimesh.creation.icosphere(subdivisions=2),
    "c": trimesh.creation.cone(1, 2),
    "d": trimesh.creation.torus(1, 0.3),
}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Four objects with captions, and rows that can't be used."""
    rows = []
    for name, mesh in SHAPES.items():
        field = SparseSDF.from_mesh(mesh, R, device="cpu")
        field.save(tmp_path / f"{name}_r{R}.npz")
        captions = json.dumps([f"{name} one", f"{name} two", f"{name} three"])
        rows.append({"sha256": name, "captions": captions, "sdf_computed": "True", "points": len(field.sdf)})
    (tmp_path / f"mute_r{R}.npz").write_bytes((tmp_path / f"a_r{R}.npz").read_bytes())
    few, computed = {"points": 99}, {"sdf_computed": "True", "captions": "text", "points": 5000}
    rows += [
        {"sha256": "mute", "sdf_computed": "True", "captions": "", "points": 5000},
        {"sha256": "failed", "sdf_computed": "False", "captions": "text", "points": ""},
        {**computed, "sha256": "few", **few},
        {**computed, "sha256": "gone"},
        {**computed, "sha256": "../../x"},
        {**computed, "sha256": "a"},
    ]
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sha256", "captions", "sdf_computed", f"r{R}_num_points"])
        writer.writerows([[r["sha256"], r["captions"], r["sdf_computed"], r["points"]] for r in rows])
    return tmp_path


def test_usable_rows_are_the_items_and_the_others_have_reasons(dataset):
    items = SDF3DCaptionDataset(dataset, R)
    assert items.names == ["a", "b", "c", "d"] and len(items) == 4
    assert set(items.left_out) >= {"mute", "failed", "few", "gone", "../../x"}
    assert "captions" in items.left_out["mute"] and "99" in items.left_out["few"]
    first = items[0]
    assert set(first) == {"inputs_3d", "caption", "sample_id"} and first["sample_id"] == "a"
    assert set(first["inputs_3d"]) == {"sparse_sdf", "sparse_index", "batch_idx"}
    assert SDF3DCaptionDataset(dataset, R, max_samples=2).names == ["a", "b"]
    assert len(SDF3DCaptionDataset(dataset, R, max_samples=0)) == 4


def test_a_large_object_is_left_out_whole_and_never_thinned(dataset):
    sizes = [len(item["inputs_3d"]["sparse_index"]) for item in SDF3DCaptionDataset(dataset, R)]
    cut = sorted(sizes)[1]
    some = SDF3DCaptionDataset(dataset, R, max_points=cut)
    assert [len(item["inputs_3d"]["sparse_index"]) for item in some] == [size for size in sizes if size <= cut]


def test_no_object_is_too_large_unless_one_says_so_and_each_reason_is_a_line_of_the_log(dataset, caplog):
    table = (dataset / "metadata.csv").read_text().replace("b three", "b three, the largest of all")
    (dataset / "metadata.csv").write_text(re.sub(r"(?m)^(b,.*),\d+$", r"\1,90000000", table))
    assert SDF3DCaptionDataset(dataset, R).names == ["a", "b", "c", "d"]
    caplog.clear()
    assert SDF3DCaptionDataset(dataset, R, max_points=5_000_000).names == ["a", "c", "d"]
    lines = [record.message for record in caplog.records]
    assert any("1 of 9 objects left out, b: it has 90000000 voxels, more than 5000000" in line for line in lines)
    assert any("1 of 9 objects left out, few: it has 99 voxels, fewer than 100" in line for line in lines)
    assert any("1 of 4 objects left out, mute: it has no captions" in line for line in lines)


def test_rows_of_one_object_are_gathered_and_no_object_gets_anothers_words(dataset):
    with (dataset / "metadata.csv").open("w", newline="") as file:
        rows = [
            ["a", "a.glb", "A box."],
            ["b", "b.glb", "A ball."],
            ["a", "a.glb", "A cube."],
            ["b", "c.glb", "A cone."],
        ]
        csv.writer(file).writerows([["sha256", "file", "captions"], *rows, ["c", "", "A cone."], ["c", "", "N/A"]])
    items = SDF3DCaptionDataset(dataset, R)
    said = {name: {text.answer for text in items._texts[name]} for name in items.names}
    assert said == {"a": {"A box.", "A cube."}, "c": {"A cone."}}
    assert items.left_out == {"b": "its id 'b' stands for different files: b.glb (row 2), c.glb (row 4)"}


def test_a_table_that_names_field_files_otherwise_is_understood(dataset):
    with (dataset / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "text"], [f"a_r{R}.npz", "A box."], [f"data/c_r{R}.npz", "A cone."]])
    items = SDF3DCaptionDataset(dataset, R)
    assert [(item["sample_id"], item["caption"]) for item in items] == [("a", "A box."), ("c", "A cone.")]
    (dataset / "metadata.csv").write_text("filename,text\nx.npz,A box.\n")
    with pytest.raises(ValueError, match=r"no column 'sha256'.* no other that names field files.*filename"):
        SDF3DCaptionDataset(dataset, R)


def test_a_table_without_captions_is_blamed_with_the_columns_that_it_has(dataset):
    (dataset / "metadata.csv").write_text("sha256,captoins\na,A box.\n")
    with pytest.raises(ValueError, match=r"\['sha256', 'captoins'\].*did you mean 'captions' for 'captoins'"):
        SDF3DCaptionDataset(dataset, R)


def test_a_split_without_objects_is_not_blamed_on_captions(dataset):
    (dataset / "metadata.csv").write_text("sha256,captions,split\na,A box.,val\n")
    with pytest.raises(ValueError, match=r"none of 1 objects .* is of the split 'train': these are 'val'$"):
        SDF3DCaptionDataset(dataset, R, split="train")
    (dataset / "metadata.csv").write_text("sha256,captions\na,\n")
    with pytest.raises(ValueError, match=r"has captions: metadata\.csv has the columns .* of a JSONL$"):
        SDF3DCaptionDataset(dataset, R)


def test_a_table_of_fields_may_be_called_as_one_beside_meshes(dataset):
    (dataset / "metadata.csv").unlink()
    with pytest.raises(ValueError, match=r"has captions: there is no metadata\.csv"):
        SDF3DCaptionDataset(dataset, R)
    (dataset / "captions.jsonl").write_text('{"sha256": "a", "caption": "A box."}\n{"file": "b"}\n')
    assert [item["caption"] for item in SDF3DCaptionDataset(dataset, R)] == ["A box."]


def test_records_of_other_objects_are_said_and_records_of_none_are_refused(dataset, caplog):
    path = dataset / "conversations.jsonl"
    path.write_text(
        '{"id": "a", "caption": "A box."}\n{"id": "mute", "caption": "x"}\n{"id": "chair.glb", "caption": "x"}'
    )
    SDF3DCaptionDataset(dataset, R)
    assert "1 of the 3 objects that it tells of are not in" in caplog.text and "chair.glb" in caplog.text
    path.write_text('{"id": "chair.glb", "caption": "x"}')
    with pytest.raises(ValueError, match=r"tells of 1 objects, and none of them is in .*'chair\.glb'"):
        SDF3DCaptionDataset(dataset, R)


def test_captions_are_chosen_by_seed_and_epoch_alone(dataset):
    def said(seed: int, epoch: int) -> list[str]:
        items = SDF3DCaptionDataset(dataset, R, seed=seed)
        items.set_epoch(epoch)
        return [items[i]["caption"] for i in range(len(items))]

    assert said(0, 0) == said(0, 0)
    assert len({tuple(said(0, epoch)) for epoch in range(8)}) > 1
    assert {text for epoch in range(40) for text in said(0, epoch)} == {
        "text",  # of the second row of a
        *(f"{name} {number}" for name in SHAPES for number in ("one", "two", "three")),
    }


def test_questions_and_chats_come_from_records(dataset):
    chat = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A ball."},
        {"role": "user", "content": "Is it red?"},
        {"role": "assistant", "content": "One cannot tell."},
    ]
    lines = [
        {"sample_id": "a", "question": "How many corners?", "answer": "Eight."},
        {"sha256": "b", "messages": chat},
        {"id": "c", "caption": "A fourth caption."},
        {"sample_id": "unknown", "caption": "Nobody's."},
    ]
    (dataset / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    items = SDF3DCaptionDataset(dataset, R)
    seen = {}
    for epoch in range(60):
        items.set_epoch(epoch)
        seen |= {item["caption"]: item.get("conversation") for item in items}
    assert seen["Eight."] == [{"role": "user", "content": "How many corners?"}]
    assert seen["One cannot tell."] == chat[:-1] and seen["A fourth caption."] is None and "Nobody's." not in seen


def test_captions_keep_their_share_beside_many_questions_and_kinds_share_the_rest(dataset):
    kinds = ["is_red"] * 40 + ["name"]
    lines = [{"sample_id": "a", "kind": kind, "question": f"{n}?", "answer": kind} for n, kind in enumerate(kinds)]
    (dataset / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def counts(share: float) -> dict[str, int]:
        items = SDF3DCaptionDataset(dataset, R, caption_share=share)
        (place,) = [n for n, name in enumerate(items.names) if name == "a"]
        found = {"is_red": 0, "name": 0, "caption": 0}
        for epoch in range(400):
            items.set_epoch(epoch)
            said = items[place]["caption"]
            found[said if said in found else "caption"] += 1
        return found

    some = counts(0.25)
    assert 60 < some["caption"] < 140
    assert 110 < some["is_red"] < 190
    assert 110 < some["name"] < 190
    assert counts(1.0)["caption"] == 400
    assert counts(0.0)["caption"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "JSON object"),
        ("{", "line 2"),
        ('{"caption": "x"}', "needs an id"),
        ('{"sample_id": "a"}', "a record holds"),
        ('{"sample_id": "a", "question": "x"}', "'answer' must be text"),
        ('{"sample_id": "a", "caption": "  "}', "must be text"),
        ('{"sample_id": "a", "messages": [{"role": "user", "content": "x"}]}', "at least two"),
        ('{"sample_id": "a", "messages": [{"role": "robot"}, {"role": "user"}]}', "role"),
        ('{"sample_id": "a", "messages": [{"role": "assistant", "content": "x"}, '
         '{"role": "user", "content": "y"}]}', "end with the assistant"),
    ],
)  # fmt: skip
def test_a_bad_record_names_its_line(tmp_path, line, message):
    path = tmp_path / "records.jsonl"
    path.write_text('{"sample_id": "a", "caption": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message) as error:
        read_records(path)
    assert "line 2" in str(error.value)


def test_training_says_the_captions_that_other_writers_of_tables_meant(dataset):
    cells = {"a": "['A box.', \"It's a cuboid.\"]", "b": "['A ball.'\n 'Round.']", "c": "N/A", "d": "('A ring.',)"}
    with (dataset / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["sha256", "captions"], *cells.items()])
    items = SDF3DCaptionDataset(dataset, R)
    said = collections.defaultdict(set)
    for epoch in range(12):
        items.set_epoch(epoch)
        for item in items:
            said[item["sample_id"]].add(item["caption"])
    assert said == {"a": {"A box.", "It's a cuboid."}, "b": {"A ball.", "Round."}, "d": {"A ring."}}
    assert items.left_out == {"c": "it has no captions"}


def test_an_empty_or_mute_folder_says_so(tmp_path, dataset):
    with pytest.raises(ValueError, match="does not exist"):
        SDF3DCaptionDataset(tmp_path / "nowhere", R)
    with (dataset / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["sha256"], ["a"]])
    with pytest.raises(ValueError, match="captions"):
        SDF3DCaptionDataset(dataset, R)


def test_way_b_a_batch_of_fields_and_words_trains(dataset, tokenizer, make_vl, vae):
    items = SDF3DCaptionDataset(dataset, R)
    batch = collate_sdf_caption([items[0], items[1]], tokenizer, "What is this?")
    sizes = [len(items[i]["inputs_3d"]["sparse_index"]) for i in (0, 1)]
    assert torch.bincount(batch["inputs_3d"]["batch_idx"]).tolist() == sizes
    supervised = [tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert supervised == [items[i]["caption"] + "<|im_end|>" for i in (0, 1)]
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), vae_model=vae)
    loss = model.forward_with_3d(**batch).loss
    loss.backward()
    assert torch.isfinite(loss) and model.projector.output_gain.grad is not None


def test_an_answer_is_never_cut(dataset, tokenizer):
    items = SDF3DCaptionDataset(dataset, R)
    long = {**items[0], "caption": "word " * 300}
    with pytest.raises(ValueError, match=r"a: its text has .* over max_length=256"):
        collate_sdf_caption([items[1], long], tokenizer, "What?")
    labels = collate_sdf_caption([long], tokenizer, "What?", max_length=None)["labels"]
    assert tokenizer.decode(labels[labels != -100]).count("word") == 300


def dummies(*sizes: int) -> list[dict[str, torch.Tensor]]:
    made = [Dummy3DTextDataset(8, size, seq_len=6 + size % 3, vocab_size=300, latent_dim=8)[i] for i, size in
            enumerate(sizes)]  # fmt: skip
    return made


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_way_a_padding_never_becomes_a_token(make_vl, kind):
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl(kind), latent_dim=8).eval()
    items = dummies(40, 7)
    together = collate_3d_text(items, latent_dim=8)
    assert together["mask_3d"].sum(1).tolist() == [len(item["feats_3d"]) for item in items]
    with torch.no_grad():
        both = model.forward_with_3d(**together)
        inputs = model.build_inputs(**{k: v for k, v in together.items() if k != "labels"})
        lengths = inputs.attention_mask.sum(1).tolist()
        for row, item in enumerate(items):
            alone = model.forward_with_3d(**collate_3d_text([item], latent_dim=8))
            assert alone.logits.shape[1] == lengths[row]
            torch.testing.assert_close(both.logits[row, : lengths[row]], alone.logits[0], atol=1e-4, rtol=1e-4)


def test_way_a_takes_tuples_and_refuses_other_shapes():
    item = dummies(30)[0]
    keys = ("feats_3d", "coords_3d", "input_ids", "attention_mask", "labels")
    as_tuple = collate_3d_text([tuple(item[key] for key in keys)], latent_dim=8)
    as_dict = collate_3d_text([item], latent_dim=8)
    assert all(torch.equal(as_tuple[key], as_dict[key]) for key in as_dict)
    with pytest.raises(ValueError, match=r"\[N, 16\]"):
        collate_3d_text([item])
    with pytest.raises(ValueError, match="labels is missing"):
        collate_3d_text([{key: item[key] for key in keys[:-1]}], latent_dim=8)
    with pytest.raises(ValueError, match="different lengths"):
        collate_3d_text([{**item, "labels": item["labels"][:-1]}], latent_dim=8)
    with pytest.raises(ValueError, match="at least one"):
        collate_3d_text([])


def test_dummies_are_the_same_every_time():
    items = Dummy3DTextDataset(num_samples=3)
    one, again = items[1], Dummy3DTextDataset(num_samples=3)[1]
    assert all(torch.equal(one[key], again[key]) for key in one) and len(items) == 3
    assert not torch.equal(items[0]["input_ids"], one["input_ids"])
    assert 100 <= len(one["feats_3d"]) <= 512 and one["feats_3d"].shape[1] == 16
    assert len(torch.unique(one["coords_3d"], dim=0)) == len(one["coords_3d"])
    assert (one["labels"][:-1] == -100).all() and one["labels"][-1] == one["input_ids"][-1]
    with pytest.raises(IndexError):
        items[3]


def test_dummies_are_as_compact_as_real_objects():
    for item in (Dummy3DTextDataset(30, max_3d_tokens=2048)[number] for number in range(30)):
        xyz = item["coords_3d"][:, 1:]
        assert len(torch.unique(xyz, dim=0)) == len(xyz) and 0 <= int(xyz.min()) <= int(xyz.max()) < 64
        blocks = len(torch.unique(xyz // 4, dim=0))  # what the language model reads, with blocks of 4 cells
        assert blocks < len(xyz) / 6  # scattered cells would have a block each


def test_shifts_move_an_object_as_a_whole_and_anew_each_epoch(codes):
    plain = CachedCodesDataset(codes, split="train")
    moved = CachedCodesDataset(codes, split="train", augmentation=CodeAugmentation(shift_cells=3))
    seen = set()
    for epoch in range(6):
        moved.set_epoch(epoch)
        step = moved[0]["coords"] - plain[0]["coords"]
        assert (step == step[0]).all()
        assert 0 <= int(step.min()) <= int(step.max()) <= 3
        seen.add(tuple(step[0].tolist()))
        assert torch.equal(moved[0]["coords"], moved[0]["coords"])
    assert len(seen) > 2


def test_kinds_are_drawn_as_often_as_they_weigh(codes):
    texts = [
        Text(answer=f"{kind} {n}", kind=kind) for kind in ("organ en", "organ zh", "side en", "size en") for n in "ab"
    ]
    drawn = collections.Counter(
        choose(texts, "x", seed=1, epoch=epoch, kind_weights={"organ": 4, "side": 0}).kind for epoch in range(3000)
    )
    assert drawn["side en"] == 0
    for kind, weight in (("organ en", 4), ("organ zh", 4), ("size en", 1)):
        assert drawn[kind] / 3000 == pytest.approx(weight / 9, abs=0.03)
    even = [choose(texts, "x", seed=1, epoch=epoch) for epoch in range(50)]
    assert even == [choose(texts, "x", seed=1, epoch=epoch, kind_weights={"organ": 1}) for epoch in range(50)]
    assert choose(texts[4:6], "x", seed=1, epoch=0, kind_weights={"side": 0}).kind == "side en"
    with pytest.raises(ValueError, match="kind_weights: no text is of the kind 'organ' \\(there are captions alone"):
        CachedCodesDataset(codes, split="train", kind_weights={"organ": 2})


def test_dropped_cells_leave_a_part_of_an_object_anew_each_epoch_and_nothing_out_of_validation(codes):
    plain = CachedCodesDataset(codes, split="train")
    thinned = CachedCodesDataset(codes, split="train", augmentation=CodeAugmentation(drop_cells=0.6))
    whole = dict(zip(map(tuple, plain[0]["coords"].tolist()), plain[0]["codes"].tolist(), strict=True))
    seen = set()
    for epoch in range(20):
        thinned.set_epoch(epoch)
        item = thinned[0]
        left = dict(zip(map(tuple, item["coords"].tolist()), item["codes"].tolist(), strict=True))
        assert left.items() <= whole.items() and left
        assert torch.equal(item["feats_3d"], thinned.codes.codebook[item["codes"]])
        assert torch.equal(item["coords"], thinned[0]["coords"])
        seen.add(len(left))
    assert len(seen) > 2
    assert torch.equal(thinned.for_validation()[0]["coords"], plain[0]["coords"])
    everything = CachedCodesDataset(codes, split="train", augmentation=CodeAugmentation(drop_cells=1.0))
    for epoch in range(20):
        everything.set_epoch(epoch)
        assert min(len(everything[n]["codes"]) for n in range(len(everything))) >= 1


def test_without_vectors_a_batch_has_codes_that_the_codebook_turns_into_the_same_vectors(codes, tokenizer):
    changed = CodeAugmentation(shift_cells=3, turn_degrees=8, drop_cells=0.5)
    whole = CachedCodesDataset(codes, split="train", augmentation=changed)
    bare = CachedCodesDataset(codes, split="train", augmentation=changed, vectors=False)
    text = {"caption": "A number.", "conversation": [{"role": "user", "content": "Say a number."}]}
    batches = [collate_codes_caption([data[0], text, data[1]], tokenizer) for data in (whole, bare)]
    found = batches[1].pop("codes_3d")
    assert found.dtype == torch.int32
    assert torch.equal(bare.codes.codebook[found], batches[0].pop("feats_3d"))
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in batches[0] | batches[1])
    assert set(collate_codes_caption([text], tokenizer)) == {"input_ids", "attention_mask", "labels"}


def test_titles_are_joined_where_they_are_asked_for_and_all_objects_have_one(codes, tokenizer):
    data = CachedCodesDataset(codes, split="train", caption_share=1.0)
    items = [{**data[0], "title": "A chair."}, {**data[1], "title": "A red robot."}]
    assert "title_ids" not in collate_codes_caption(items, tokenizer)  # so that the model takes the batch as it is
    found = collate_codes_caption(items, tokenizer, titles=True)["title_ids"]
    names = [[token for token in row if token >= 0] for row in found.tolist()]
    assert Processor3D(tokenizer).decode(names) == ["A chair.", "A red robot."]
    del items[1]["title"]
    assert "title_ids" not in collate_codes_caption(items, tokenizer, titles=True)


def test_an_object_is_turned_anew_each_epoch_within_its_grid(codes):
    plain = CachedCodesDataset(codes, split="train")
    moved = CachedCodesDataset(codes, split="train", augmentation=CodeAugmentation(turn_degrees=20))
    whole = collections.Counter(plain[0]["codes"].tolist())
    seen = set()
    for epoch in range(8):
        moved.set_epoch(epoch)
        item, again = moved[0], moved[0]
        assert torch.equal(item["coords"], again["coords"]) and torch.equal(item["codes"], again["codes"])
        assert 0 <= int(item["coords"].min()) <= int(item["coords"].max()) < moved.codes.manifest.latent_resolution
        assert collections.Counter(item["codes"].tolist()) <= whole
        seen.add(tuple(item["coords"].flatten().tolist()))
    assert len(seen) > 5
    assert torch.equal(moved.for_validation()[0]["coords"], plain[0]["coords"])


def test_an_object_is_not_turned_where_its_bounding_box_is_spoken_of(codes):
    plain = CachedCodesDataset(codes, split="train")
    records = codes / "conversations.jsonl"
    for kind, turned in (("shape", False), ("organ", True), ("longest_side", False)):
        record = {"sample_id": plain.names[0], "kind": kind, "language": "en", "question": "Q?", "answer": "A."}
        records.write_text(json.dumps(record) + "\n")
        augmentation = CodeAugmentation(turn_degrees=20)
        moved = CachedCodesDataset(codes, split="train", augmentation=augmentation, caption_share=0.0)
        assert moved[0]["caption"] == "A."
        assert torch.equal(moved[0]["coords"], plain[0]["coords"]) != turned
    assert set(KINDS_OF_THE_BOX) <= set(KINDS)


@pytest.mark.slow
def test_a_worker_that_lives_on_hears_of_the_next_epoch(codes):
    items = CachedCodesDataset(codes, split="train", augmentation=CodeAugmentation(shift_cells=3))
    loader = torch.utils.data.DataLoader(items, batch_size=None, **worker_options(1))
    seen = []
    for epoch in range(3):
        items.set_epoch(epoch)
        moved = [item["coords"] for item in loader]
        assert all(torch.equal(found, items[n]["coords"]) for n, found in enumerate(moved))
        seen.append(torch.cat(moved))
    assert not torch.equal(seen[0], seen[1]) or not torch.equal(seen[1], seen[2])
