"""From meshes to words and back with a tokenizer whose cells may have two codes, by the programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trimesh

from sdf_vqvae.codes.folder import CodeFolder
from tiny_tokenizer import saved_with_second_codes
from vae_qwen3vl.eval_3d_vl import main as evaluate
from vae_qwen3vl.train_finetune import main as train

pytest.importorskip("nltk")
pytest.importorskip("accelerate")

BOX = trimesh.creation.box((1, 0.6, 0.4))


def test_meshes_to_words_and_meshes_with_two_codes_a_cell(place: Path, vl: str, run, capsys) -> None:
    weights = saved_with_second_codes(BOX, place / "vae")
    vae = ["--vae_config", str(weights.with_name("config.json")), "--vae_ckpt", str(weights)]
    meshes = place / "meshes"
    meshes.mkdir()
    BOX.export(meshes / "box.ply")
    trimesh.creation.icosphere(2).export(meshes / "ball.ply")
    (meshes / "metadata.csv").write_text("file,up,captions\nbox.ply,y,A box.\nball.ply,y,A ball.\n")
    assert run("encode", meshes, "-o", "codes", "--device", "cpu", *vae)[0] == 0
    folder = CodeFolder("codes")
    counts = {row["file"]: int(row["codes"]) for row in folder.table()}
    assert any(bool((folder[name][0][:, 1] >= 0).any()) for name in folder)

    learn = ["--data_dir", "codes", "--vl_model", vl, "--output_dir", "runs", "--epochs", "1", "--batch_size", "2"]
    mixed = ["--shift_cells", "1", "--drop_cells", "0.2", "--merge", "2", "--val_samples", "0"]
    assert train([*learn, *mixed, "--device", "cpu", "--num_workers", "0"]) == 0
    trained = Path(capsys.readouterr().out.strip()) / "projector_final.pt"

    short = ["--max_new_tokens", "3", "--measures", "captions", "--output_dir", "answers", "--save_mesh"]
    asked = ["--projector_ckpt", str(trained), "--vl_model", vl, "--data_dir", "codes", "--device", "cpu"]
    assert evaluate([*vae, *asked, *short]) == 0
    said = [json.loads(line) for line in (place / "answers/eval_results.jsonl").read_text().splitlines()]
    assert sorted(one["codes"] for one in said) == sorted(counts.values())
    assert all(one["mesh"] for one in said)

    flags = [*vae, "--projector_ckpt", str(trained), "--vl_model", vl, "--device", "cpu", "--max_new_tokens", "3"]
    assert run("encode", meshes / "box.ply", "-o", "box.safetensors", "--up", "y", "--device", "cpu", *vae)[0] == 0
    shapes = (meshes / "box.ply", "box.safetensors")
    answers = [json.loads(run("describe", shape, "--up", "y", "--json", *flags)[1]) for shape in shapes]
    assert answers[0]["text"] == answers[1]["text"]
    assert answers[0]["codes"] == answers[1]["codes"] == counts["box.ply"]

    assert run("decode", "box.safetensors", "-o", "box.obj", "--device", "cpu", *vae)[0] == 0
    (number,) = (n for n, one in enumerate(said) if one["codes"] == counts["box.ply"])
    faces = [len(trimesh.load(path, process=False).faces) for path in (f"answers/recon_mesh_{number}.obj", "box.obj")]
    assert faces[0] == faces[1] > 0
