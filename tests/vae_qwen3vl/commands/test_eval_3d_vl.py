"""The program: a run is evaluated from its folder alone, and files hold what was said."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.eval_3d_vl import main
from vae_qwen3vl.evaluation.objects import random_batch
from vae_qwen3vl.train_finetune import main as train

pytest.importorskip("nltk")
pytest.importorskip("accelerate")


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
