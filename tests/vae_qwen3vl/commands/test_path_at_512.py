"""From meshes to words and back at 512^3, beside fields of 256^3, by the commands as they are documented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import trimesh

from dataset_toolkits.sdf_voxelize import main as voxelize
from sdf_vqvae.codes.pipeline import _say_resampled, voxelize_for
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.data.field_file import grid_sides
from sdf_vqvae.model.checkpoint import save_vae
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.commands.main import main as program
from vae_qwen3vl.eval_3d_vl import main as evaluate
from vae_qwen3vl.train_finetune import main as train

pytest.importorskip("nltk")
pytest.importorskip("accelerate")

ROD = trimesh.creation.cylinder(radius=0.05, height=1.0, sections=12)
BAR = trimesh.creation.box((0.1, 1.0, 0.1))


def narrow(folder: Path, repository: Path) -> list[str]:
    """Save a narrow tokenizer of the 512^3 config whose codes decode to a surface; return the flags that name it."""
    document = json.loads((repository / "configs/vae/sdf_vqvae_512.json").read_text())
    args = document["models"]["vqvae"]["args"]
    args |= {"model_channels": 32, "num_head_channels": 16, "num_blocks": 1, "num_embeddings": 64}
    args |= {"level_channels": [16] * len(args["level_channels"]), "level_blocks": [1] * len(args["level_channels"])}
    torch.manual_seed(0)
    vae = SparseSDFVQVAE(VAEConfig.from_args(args)).eval()
    decoded = vae.Decode(vae.Encode(voxelize_for(vae, ROD).to_batch()))
    with torch.no_grad():
        vae.decoder.out_layer.bias -= torch.atanh(decoded.feats.median())
    save_vae(vae, folder)
    return ["--vae_config", str(folder / "config.json"), "--vae_ckpt", str(folder / "model.safetensors")]


@pytest.mark.slow
def test_meshes_to_words_and_meshes_with_fields_of_both_grids(place, vl, repository, capsys, caplog):
    _say_resampled.cache_clear()
    flags = [*narrow(place / "vae", repository), "--device", "cpu"]
    for side, mesh, words in ((512, ROD, "A long rod."), (256, BAR, "A bar.")):
        folder = place / f"meshes{side}"
        folder.mkdir()
        mesh.export(folder / "shape.glb")
        (folder / "metadata.csv").write_text(f'file,captions\nshape.glb,"{words}"\n')
        command = ["--format", "folder", "--input_dir", str(folder), "--output_dir", "train_sdf_dataset"]
        assert voxelize([*command, "--resolutions", str(side), "--max_workers", "1", "--device", "cpu"]) == 0
    assert sorted(map(sorted, grid_sides(place / "train_sdf_dataset").values())) == [[256], [512]]
    capsys.readouterr()

    learn = ["--vl_model", vl, "--data_dir", "train_sdf_dataset", "--output_dir", "out", "--batch_size", "2"]
    assert train([*flags, *learn, "--epochs", "1", "--val_samples", "0", "--num_workers", "0"]) == 0
    run = Path(capsys.readouterr().out.strip())
    assert any("no detail below 1/256" in message for message in caplog.messages)

    asked = ["--projector_ckpt", str(run / "projector_final.pt"), "--vl_model", vl, "--data_dir", "train_sdf_dataset"]
    short = ["--max_new_tokens", "3", "--measures", "captions", "--output_dir", "eval_out"]
    assert evaluate([*flags, *asked, *short, "--save_mesh", "--voxel_resolution", "256"]) == 0
    lines = (place / "eval_out" / "eval_results.jsonl").read_text(encoding="utf-8").splitlines()
    assert len((place / "eval_out" / "generated.txt").read_text(encoding="utf-8").splitlines()) == len(lines) == 2
    for number, line in enumerate(lines):
        assert json.loads(line)["mesh"] == f"recon_mesh_{number}.obj"
        corners = trimesh.load(place / "eval_out" / f"recon_mesh_{number}.obj", process=False).vertices
        assert abs(corners).max() < 0.5

    capsys.readouterr()
    described = ["describe", str(place / "meshes512" / "shape.glb"), *flags]
    assert program(described) == 2
    error = capsys.readouterr().err
    assert "leave --vae_config and --vae_ckpt out" in error and "train_finetune.py" in error
