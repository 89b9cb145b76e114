"""The evaluation: candidates' likelihoods are the model's own, controls don't see, files hold what was said."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.evaluation.shapes import list_shapes
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.eval_3d_vl import main
from vae_qwen3vl.evaluation import answer_scores as candidate_scores
from vae_qwen3vl.evaluation.answer_scores import answer_scores
from vae_qwen3vl.evaluation.closed_sets import closed_questions, closed_sets, group_of
from vae_qwen3vl.evaluation.controls import OWN, most_frequent, nearest_by_codes, other_objects, scattered
from vae_qwen3vl.evaluation.interview import Answered
from vae_qwen3vl.evaluation.meshes import true_shapes
from vae_qwen3vl.evaluation.objects import EvalData, EvalObject, from_codes, random_batch
from vae_qwen3vl.evaluation.summary import summarize_closed
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import IGNORED_LABEL, Processor3D
from vae_qwen3vl.train_finetune import main as train

pytest.importorskip("nltk")
pytest.importorskip("accelerate")
SIDE = 8
ANSWERS = ["A red robot.", "A chair.", "Yes.", "A chair with four legs and a red robot in one sentence."]


def shape(name: str, count: int, seed: int, **about) -> EvalObject:
    random = torch.Generator().manual_seed(seed)
    cells = torch.randperm(SIDE**3, generator=random)[:count]
    coords = torch.stack([cells // SIDE**2, cells // SIDE % SIDE, cells % SIDE], dim=1).int()
    return EvalObject(name=name, codes=torch.randint(0, 32, (count,), generator=random), coords=coords, **about)


def test_true_shapes_are_found_by_id_contents_or_file_and_never_by_a_name_alone(tmp_path, caplog) -> None:
    for name in ("one.glb", "sub/two.glb", "three.glb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    shapes = list_shapes(tmp_path)
    digest = hashlib.sha256(b"one.glb").hexdigest()
    objects = [
        shape(digest, 5, 0, row={"file": "elsewhere/renamed.glb"}),
        shape("custom", 5, 1, row={"glb_file": "two.glb"}),
        shape("0" * 64, 5, 2, row={"file": "three.glb"}),
        shape("three.glb", 5, 3),
        shape("unknown", 5, 4),
    ]
    with caplog.at_level("INFO"):
        found = true_shapes(objects, shapes)
    assert {name: one.id for name, one in found.items()} == {
        digest: "one.glb",
        "custom": "sub/two.glb",
        "three.glb": "three.glb",
    }
    assert "3 of 5 objects have their true shape there (1 by id, 1 by contents, 1 by file name)" in caplog.text
    assert "1 more have a file of their name, with other contents" in caplog.text
    with pytest.raises(ValueError, match=r"--shapes: none of the 3 shapes is one of the 1 objects"):
        true_shapes(objects[-1:], shapes)


def data_of(objects: list[EvalObject]) -> EvalData:
    codebook = torch.randn(32, 8, generator=torch.Generator().manual_seed(3))
    return EvalData(objects=objects, codebook=codebook, latent_side=SIDE, vae_hash="x")


@pytest.mark.parametrize(("kind", "most"), [("qwen2_vl", 1024), ("qwen3_vl", 1024), ("qwen2_vl", 1), ("qwen3_vl", 7)])
def test_likelihoods_behind_a_cache_are_those_of_whole_sequences(
    kind: str, most: int, vl_models, tokenizer, monkeypatch
) -> None:
    monkeypatch.setattr(candidate_scores, "_MOST_TOKENS", most)
    model = Qwen3VLWith3DBranch(use_vl_model=vl_models[kind], latent_dim=8, merge=2, max_3d_tokens=0).eval()
    processor = Processor3D(tokenizer)
    objects = [shape("a", 5, 0), None, shape("b", 40, 1), shape("c", 17, 2)]
    prompts = ["What is it?", "Describe this 3D shape in one sentence:", "Is it a chair?", "What is it?"]
    data = data_of([one for one in objects if one is not None])
    found = answer_scores(model, processor, data, objects, prompts, ANSWERS, batch_size=2)
    for row, (one, prompt) in enumerate(zip(objects, prompts, strict=True)):
        feats, coords = (None, None) if one is None else data.batch([one])
        for column, answer in enumerate(ANSWERS):
            text = processor(prompt, answer, objects=int(one is not None))
            with torch.no_grad():
                loss = model(**text, feats_3d=feats, coords_3d=coords)["loss"]
            expected = -float(loss) * int((text["labels"] != IGNORED_LABEL).sum())
            assert found[row, column] == pytest.approx(expected, rel=1e-4, abs=1e-3)


@given(st.integers(2, 60), st.integers(0, 5))
def test_another_object_is_never_the_same_and_each_is_used_once(count: int, seed: int) -> None:
    others = other_objects(count, seed)
    assert sorted(others) == list(range(count))
    assert all(other != own for own, other in enumerate(others))


def test_scattered_objects_keep_their_codes_at_other_cells() -> None:
    one = shape("a", 60, 9)
    (moved,) = scattered([one], SIDE)
    assert torch.equal(moved.codes, one.codes)
    assert len(torch.unique(moved.coords, dim=0)) == 60
    assert 0 <= int(moved.coords.min()) <= int(moved.coords.max()) < SIDE
    assert not torch.equal(moved.coords, one.coords)


def test_the_nearest_object_has_the_most_alike_codes() -> None:
    known = [shape("a", 30, 1), shape("b", 30, 2), shape("c", 30, 3)]
    asked = [EvalObject(name="x", codes=known[2].codes.flip(0), coords=known[2].coords)]
    assert nearest_by_codes(asked, known, 32) == [2]
    assert most_frequent(["b", "a", "b", "a", "c"]) == "a"


def records(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = [
        json.dumps({"sample_id": name, "kind": kind, "language": "en", "question": f"{kind}?", "answer": answer})
        for name, kind, answer in rows
    ]
    path.write_text("\n".join([*lines, '{"sample_id": "o1", "kind": "describe", "question": "?", "answer": "x"}']))
    return path


def test_an_organ_counts_without_its_side_and_unseen_names_are_listed(tmp_path: Path) -> None:
    names = [f"o{n}" for n in range(6)]
    answers = ["Left kidney.", "Right kidney.", "Liver.", "Liver.", "Spleen.", "Left kidney."]
    asked = records(tmp_path / "asked.jsonl", [(n, "organ", a) for n, a in zip(names, answers, strict=True)])
    known = records(tmp_path / "known.jsonl", [("t1", "organ", "Right kidney."), ("t2", "organ", "Liver.")])
    (found,) = closed_sets(closed_questions(asked), names, closed_questions(known))
    assert found.kind == "organ"
    assert found.candidates == ("Left kidney.", "Liver.", "Right kidney.", "Spleen.")
    assert [group_of("organ", c) for c in found.candidates] == ["Kidney.", "Liver.", "Kidney.", "Spleen."]
    scores = np.zeros((6, 4))
    scores[:, 0] = 1.0  # always says left kidney
    summary = summarize_closed(Answered(asked=found, scores={OWN: scores, "no 3D": np.zeros((6, 4))}), None)
    assert summary["not_in_training"] == {"objects": 1, "answers": ["Spleen."]}
    assert summary["objects"] == 5
    assert summary["rows"][OWN]["top_1"]["mean"] == pytest.approx(3 / 5)
    assert summary["rows"]["no 3D"]["top_1"]["mean"] == pytest.approx(1 / 3, rel=1e-4)
    assert summary["gaps"]["top_1"]["control"] == "most frequent answer"


def test_objects_are_the_test_split_or_what_training_kept_apart(codes: Path) -> None:
    found = from_codes(CodeFolder(codes), split=None, most=0)
    assert (found.split, [one.name for one in found.objects]) == ("test", ["object4"])
    with pytest.raises(ValueError, match="no object of the split 'new' \\(it has test, train, val\\)"):
        from_codes(CodeFolder(codes), split="new", most=0)


@pytest.fixture
def vae_files(tmp_path: Path, small_vae) -> list[str]:
    """Flags that name the tokenizer of `codes`."""
    save_vae(small_vae, tmp_path / "vae")
    return ["--vae_config", str(tmp_path / "vae/config.json"), "--vae_ckpt", str(tmp_path / "vae/model.safetensors")]


@pytest.fixture
def run(place: Path, vl: str, codes: Path, capsys) -> Path:
    """A trained run with its config file."""
    table = list(csv.reader((codes / "metadata.csv").open(encoding="utf-8")))
    table[-1][1] = "<script>alert(1)</script> A chair."
    with (codes / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(table)
    settings = {"vl_model": vl, "data_dir": str(codes), "output_dir": "runs", "merge": 2, "projector_layers": 2}
    (place / "c.yaml").write_text(json.dumps(settings | {"use_lora": True, "use_3d_pos": True, "prompt": "So?"}))
    assert train(["--config", "c.yaml", "--epochs", "1", "--device", "cpu"]) == 0
    return Path(capsys.readouterr().out.strip())


def results(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "eval_results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_is_evaluated_from_its_folder_alone(run: Path, vae_files: list[str], capsys) -> None:
    asked = ["--max_new_tokens", "4", "--device", "cpu", "--measures", "captions"]
    # the file says less than what was trained: the run knows the rest
    Path("c.yaml").write_text(json.dumps({"output_dir": "runs", "output_run": run.name}))
    Path("c.yaml").write_text(Path("c.yaml").read_text()[:-1] + f', "data_dir": "{run.parent.parent / "codes"}"}}')
    assert main(["--config", "c.yaml", *asked]) == 0
    (record,) = results(run / "eval_out")
    assert record["prompt"] == "So?"
    assert set(record["controls"]) >= {"no 3D", "shuffled coordinates", "nearest neighbor by codes"}
    assert (run / "eval_out" / "generated.txt").read_text(encoding="utf-8") == record["generated"] + "\n"
    page = (run / "eval_out" / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    summary = json.loads((run / "eval_out" / "eval_summary.json").read_text(encoding="utf-8"))
    assert summary["settings"]["projector"]["num_layers"] == 2
    assert summary["settings"]["projector"]["use_3d_pos"] is True

    out = ["--output_dir", "meshes", "--save_mesh", "--split", "train", *vae_files]
    assert main(["--config", "c.yaml", *asked, *out]) == 0
    made = results(Path("meshes"))
    assert len(made) == 3
    for number, record in enumerate(made):
        assert (Path("meshes") / f"recon_mesh_{number}.obj").is_file() == (record["mesh"] is not None)
        assert ("mesh_error" in record) == (record["mesh"] is None)
    capsys.readouterr()
    assert main(["--config", "c.yaml", *asked, "--no-use_3d_pos"]) == 2
    assert "--no-use_3d_pos: the projector was trained with --use_3d_pos" in capsys.readouterr().err
    assert main(["--config", "c.yaml", *asked, "--output_run", "other"]) == 2
    assert "output_run: 'other' is no run in runs" in capsys.readouterr().err


def test_a_batch_file_and_a_random_shape_need_no_data_set(run: Path, vl: str, vae_files: list[str], capsys) -> None:
    field = VAEConfig.from_json(vae_files[1]).field
    torch.save({"inputs_3d": random_batch(field, seed=1)}, "batch.pt")
    trained = ["--projector_ckpt", str(run / "projector_final.pt"), "--lora_dir", str(run / "lora_final")]
    common = [*vae_files, *trained, "--vl_model", vl, "--max_new_tokens", "3", "--device", "cpu"]
    assert main([*common, "--data_path", "batch.pt", "--output_dir", "one", "--prompt", "What?", "--save_mesh"]) == 0
    (record,) = results(Path("one"))
    assert (record["prompt"], record["sample_id"]) == ("What?", "batch_0")
    assert main([*common, "--output_dir", "two"]) == 0
    assert "one random shape" in capsys.readouterr().err
    assert len((Path("two") / "generated.txt").read_text(encoding="utf-8").splitlines()) == 1
    assert main([*common, "--data_path", "none.pt"]) == 2
    assert "data_path: there is no file none.pt" in capsys.readouterr().err
    Path("bad.pt").write_bytes(b"nothing")
    assert main([*common, "--data_path", "bad.pt"]) == 2


def test_codes_of_another_tokenizer_are_refused(run: Path, vae_files: list[str], capsys, codes: Path) -> None:
    torch.manual_seed(5)
    save_vae(SparseSDFVQVAE(VAEConfig.from_json(vae_files[1])), Path("other"))
    arguments = ["--projector_ckpt", str(run / "projector_final.pt"), "--vl_model", "vl", "--device", "cpu"]
    other = ["--vae_config", "other/config.json", "--vae_ckpt", "other/model.safetensors"]
    assert main([*arguments, *other]) == 2
    assert "was trained on codes of the VAE" in capsys.readouterr().err
    assert main([*arguments, "--data_dir", str(codes), "--save_mesh", "--max_new_tokens", "2", *other]) == 2
    assert "are of the VAE" in capsys.readouterr().err
