"""`describe` over many objects: what is asked, what is kept, what goes wrong without stopping the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import trimesh

import tiny_search
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.utils.files import file_lock
from vae_qwen3vl.generation.answer import Answer
from vae_qwen3vl.generation.engine import Engine

pytest.importorskip("transformers")


@pytest.fixture
def flags(tokenizer_file, language_files) -> list[str]:
    return ["--vae_ckpt", str(tokenizer_file), *language_files, "--max_new_tokens", "4", "--device", "cpu"]


@pytest.fixture
def meshes(tmp_path, mesh_file) -> Path:
    """Three meshes in two folders, and a file that is none."""
    folder = tmp_path / "meshes"
    (folder / "more").mkdir(parents=True)
    shutil.copy(mesh_file, folder / "a.glb")
    (folder / "b.obj").write_text("this is no mesh")
    trimesh.creation.icosphere(2).export(folder / "c.ply")
    trimesh.creation.cylinder(0.3, 1.0).export(folder / "more" / "d.stl")
    return folder


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_is_described_and_what_cannot_be_read_costs_itself_alone(meshes, tmp_path, flags, run):
    out = tmp_path / "answers.jsonl"
    code, said, err = run("describe", meshes, "-o", out, "--up", "y", *flags)
    assert code == 0, err
    assert f"3 objects described, 0 kept, 1 failed; 3 answers added to {out}" in said
    found = {record["shape"]: record for record in records(out)}
    assert list(map(len, [found[f"{meshes}/b.obj"]])) == [2]
    assert "b.obj" in found[f"{meshes}/b.obj"]["error"]
    for name in ("a.glb", "c.ply", "more/d.stl"):
        record = found[f"{meshes}/{name}"]
        assert record["prompt"] == "What is it?"
        assert (record["up"], record["up_from"]) == ("y", "--up")
        assert 0 < record["tokens_3d"] <= record["codes"]
        alone = json.loads(run("describe", meshes / name, "--up", "y", "--json", *flags)[1])
        assert {key: alone[key] for key in ("text", "codes", "tokens_3d")} == {
            key: record[key] for key in ("text", "codes", "tokens_3d")
        }


def test_a_killed_run_goes_on_and_says_the_same(meshes, tmp_path, flags, run, monkeypatch):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    run("describe", meshes, "-o", whole, *flags)
    wait, calls = Answer.text, []

    def killed_at_the_second(self):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return wait(self)

    monkeypatch.setattr(Answer, "text", killed_at_the_second)
    assert run("describe", meshes, "-o", out, "--batch_size", "1", *flags)[0] == 130
    assert len([record for record in records(out) if "text" in record]) == 1
    with out.open("a") as file:
        file.write('{"shape": "half a li')  # as a process that was killed leaves it
    monkeypatch.undo()
    trimesh.creation.box().export(meshes / "b.obj")  # mended meanwhile
    _, said, _ = run("describe", meshes, "-o", out, *flags)
    assert "3 objects described, 1 kept, 0 failed" in said
    texts = {record["shape"]: record["text"] for record in records(out)}
    assert len(texts) == 4
    assert {name: texts[name] for name in texts if "b.obj" not in name} == {
        record["shape"]: record["text"] for record in records(whole) if "text" in record
    }
    _, said, _ = run("describe", meshes, "-o", out, *flags)
    assert "0 objects described, 4 kept, 0 failed; 0 answers" in said


def test_a_file_of_answers_is_gone_on_with_under_its_own_settings_alone(meshes, tmp_path, flags, run):
    out = tmp_path / "answers.jsonl"
    run("describe", meshes / "a.glb", "-o", out, *flags)
    before = out.read_bytes()
    code, _, err = run("describe", meshes, "-o", out, *flags, "--max_new_tokens", "3")
    assert (code, out.read_bytes()) == (2, before)
    assert "answers.jsonl was begun with" in err
    assert "another --output" in err
    notes = tmp_path / "notes.jsonl"
    notes.write_text("buy milk\n")
    assert "line 1, is no answer of this program" in run("describe", meshes, "-o", notes, *flags)[2]
    assert notes.read_text() == "buy milk\n"
    with file_lock(tmp_path / ".answers.jsonl.lock", wait=False):
        code, _, err = run("describe", meshes, "-o", out, *flags)
    assert code == 2
    assert "another program is writing" in err


def test_several_files_and_questions_are_a_line_each(meshes, codes_file, tmp_path, flags, run):
    questions = tmp_path / "questions.txt"
    questions.write_text("\ufeffHow many legs?\n\n  Is it tall? \nIs it tall?\n", encoding="utf-8")
    flags = [*flags, "--dtype", "float32"]
    asked = ["describe", meshes / "a.glb", codes_file, "--prompts", questions, *flags]
    code, said, err = run(*asked)
    assert code == 0, err
    lines = said.splitlines()
    assert [line.split("?")[0] for line in lines] == [
        f"{name}: {question}"
        for name in (meshes / "a.glb", codes_file)
        for question in ("How many legs", "Is it tall")
    ]
    _, said, _ = run(*asked, "--json")
    found = [json.loads(line) for line in said.splitlines()]
    assert {record["settings"]["dtype"] for record in found} == {"float32"}
    assert [f"{record['shape']}: {record['prompt']} {record['text']}" for record in found] == lines
    by_prompt = {record["prompt"]: record["text"] for record in found if record["shape"] == str(codes_file)}
    for prompt, text in by_prompt.items():  # a mesh and its codes, asked alone and together
        assert run("describe", codes_file, "--prompt", prompt, *flags)[1] == text + "\n"


def test_a_folder_of_codes_needs_no_tokenizer(meshes, tmp_path, tokenizer_file, language_files, flags, run):
    run("encode", meshes, "-o", tmp_path / "codes", "--vae_ckpt", tokenizer_file, "--device", "cpu")
    run("describe", meshes, "-o", tmp_path / "of_meshes.jsonl", *flags)
    code, said, err = run("describe", tmp_path / "codes", "--json", *language_files, "--max_new_tokens", "4")
    assert code == 0, err
    assert "loaded" not in [line.split()[1] for line in err.splitlines() if "model.safetensors" in line]
    of_codes = sorted((record["codes"], record["text"]) for record in map(json.loads, said.splitlines()))
    assert of_codes == sorted(
        (record["codes"], record["text"]) for record in records(tmp_path / "of_meshes.jsonl") if "text" in record
    )
    _, _, err = run("describe", tmp_path / "codes", meshes / "a.glb", *language_files)
    assert "were made by the VAE" in err  # the shipped one is another
    assert "can't be turned" in run("describe", tmp_path / "codes", "--up", "z", *language_files)[2]


def test_memory_that_runs_out_halves_the_batch(meshes, flags, run, monkeypatch, caplog):
    (meshes / "b.obj").unlink()
    _, whole, _ = run("describe", meshes, *flags)
    forward, sizes = Engine._forward, []

    def small(self, first, starts, *others):
        sizes.append(first + len(starts))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, first, starts, *others)

    monkeypatch.setattr(Engine, "_forward", small)
    code, said, err = run("describe", meshes, *flags)
    assert (code, said) == (0, whole)
    assert max(sizes) > 1 and sizes[-1] == 1
    assert "at most 1 at a time from now on" in caplog.text
    assert "Traceback" not in caplog.text + err
    monkeypatch.setattr(Engine, "_forward", lambda *_: small(None, 2, [0, 0]))
    with pytest.raises(torch.OutOfMemoryError):
        run("describe", meshes, *flags)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "a.glb"], "nowhere does not exist: give meshes, fields, codes, or a folder of them"),
        (["empty"], "empty holds no mesh (.glb, .gltf, .obj, .ply, .stl, .off), no pack and no field files"),
        (["full", "--split", "test"], "--split test: full is no pack and no dataset"),
        (["full", "-o", "answers.json"], "--output answers.json: a file of records ends in .jsonl"),
        (["full", "--prompts", "none.txt"], "--prompts none.txt cannot be read: No such file or directory"),
        (["full", "--prompts", "blank.txt"], "--prompts blank.txt has no question: write one a line"),
        (["full", "--batch_size", "0"], "--batch_size must be an integer of at least 1"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(place, run, mesh_file, arguments, says):
    (place / "empty").mkdir()
    (place / "full").mkdir()
    shutil.copy(mesh_file, place / "full" / "a.glb")
    (place / "blank.txt").write_text(" \n")
    code, out, err = run("describe", *arguments, "--device", "cpu")
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert "Traceback" not in err


def test_nothing_described_is_exit_code_2(tmp_path, flags, run):
    (tmp_path / "bad.glb").write_text("hello")
    code, said, _ = run("describe", tmp_path / "bad.glb", "-o", tmp_path / "out.jsonl", *flags)
    assert code == 2
    assert said.splitlines()[0].startswith("0 objects described, 0 kept, 1 failed")
    assert said.splitlines()[1].startswith(f"  {tmp_path}/bad.glb is not a readable GLB file")


def test_the_answer_is_chosen_among_several(codes_file, meshes, tmp_path, flags, run, minilm):
    flags = [*flags, "--dtype", "float32", "--candidates", "3", "--candidate_temperature", "2", "--shape_weight", "0"]
    code, said, err = run("describe", codes_file, "--json", *flags)
    assert code == 0, err
    one = json.loads(said)
    assert one["text"] == one["candidates"][0]["text"] and 1 < len(one["candidates"]) <= 4
    out = tmp_path / "answers.jsonl"
    assert run("describe", codes_file, meshes / "c.ply", "-o", out, *flags)[0] == 0
    by_shape = {record["shape"]: record for record in records(out)}
    assert by_shape[str(codes_file)]["candidates"] == one["candidates"]  # drawn alike, alone and beside others
    assert by_shape[str(codes_file)]["settings"]["candidates"] == 3
    code, _, err = run("describe", codes_file, "-o", out, *flags, "--candidates", "2")
    assert code == 2 and "was begun with" in err
    code, _, err = run("describe", codes_file, *flags, "--shape_weight", "1")
    assert code == 2 and "give --shape_weight 0, which chooses without it" in err  # the shipped head is another's


def test_the_words_of_the_nearest_objects_of_an_index_are_candidates(
    codes_file, meshes, tmp_path, tokenizer_file, flags, run, minilm
):
    (tmp_path / "parts").mkdir()
    parts = tiny_search.saved(tmp_path / "parts", ShapeCodes.load(codes_file).vae_hash)
    files = ["--vae_ckpt", tokenizer_file, "--device", "cpu", "--projector_ckpt", parts[0], "--search_head", parts[1]]
    code, _, err = run("index", meshes, "-o", tmp_path / "index", *files)
    assert code == 0, err
    index = ["--neighbors", tmp_path / "index", "--neighbor_count", "2"]
    code, said, err = run("describe", codes_file, "--json", *flags, *index)
    assert code == 0, err
    assert {row["text"] for row in json.loads(said)["candidates"]} & {"a", "c", "d"}
    code, said, err = run("describe", codes_file, "--json", *flags, "--look_up", tmp_path / "index")
    assert code == 0, err
    similar, question = json.loads(said)["prompt"].split("\n")
    assert similar.startswith("Similar objects: ") and question == "What is it?"
    _, said, err = run("describe", codes_file, codes_file, "--json", *flags, "--look_up", tmp_path / "index")
    record = json.loads(said)
    assert (record["similar"], record["prompt"]) == (similar, question), err


def test_who_is_not_sure_says_what_it_is_like(codes_file, tmp_path, flags, run):
    from vae_qwen3vl.answer_confidence import CALIBRATION, Calibration, file_hash

    code, _, err = run("describe", codes_file, "--abstain", "0.5", *flags)
    assert code == 2 and "has no confidence.json beside its projector" in err
    projector = tmp_path / "projector.safetensors"
    about = {"prompt": "What is it?", "right": "", "data": "", "projector": file_hash(projector)}
    known = Calibration(slope=1.0, intercept=0.0, **about)
    known.save(tmp_path / CALIBRATION)
    sure = json.loads(run("describe", codes_file, "--json", *flags)[1])
    assert sure["confidence"] == pytest.approx(known.probability(sure["mean_probability"]), abs=1e-3)
    assert not sure["abstained"]
    unsure = json.loads(run("describe", codes_file, "--json", "--abstain", "1", *flags)[1])
    assert unsure["abstained"] and unsure["text"].startswith("something ")
    kept = json.loads(run("describe", codes_file, "--json", "--abstain", "0", *flags)[1])
    assert (kept["text"], kept["abstained"]) == (sure["text"], False)
    out = tmp_path / "answers.jsonl"
    assert run("describe", codes_file, "-o", out, "--abstain", "1", *flags)[0] == 0
    (record,) = records(out)
    assert record["abstained"] and record["text"] == unsure["text"] and record["confidence"] == sure["confidence"]
    code, _, err = run("describe", codes_file, "--abstain", "0.5", "--prompt", "How many legs?", *flags)
    assert code == 2 and "nothing of 'How many legs?'" in err
    assert run("describe", codes_file, "--abstain", "2", *flags)[0] == 2
    code, _, err = run("describe", codes_file, "--abstain", "0.5", "--candidates", "2", *flags)
    assert code == 2 and "leave --candidates, --neighbors and --look_up out" in err
