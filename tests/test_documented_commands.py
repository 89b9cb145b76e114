"""The commands and code of the user's documentation, byte for byte, from the repository root.

Each runs at a size that a CPU bears: a small Qwen2-VL lies under the documented repository id in a temporary Hub
cache (`HF_HUB_OFFLINE=1`), and files that the documentation only names (`path/to/vae.pt`) are made. Where a line
of evaluation begins with dots, they stand for the flags of the line with a projector before it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import in_turn
import tiny_models
from said import without_waits

needs_language = pytest.mark.skipif(find_spec("transformers") is None, reason="needs vae-qwen3vl[language]")

HUB_ID = "Qwen/Qwen2-VL-2B-Instruct"
QUICK = "python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json --quick"
FULL = "python vae_qwen3vl/run_smoke_test.py --vae_config configs/vae/sdf_vqvae_stage1.json"
FULL_WITH_WEIGHTS = FULL + " --vae_ckpt path/to/vae.pt"
TRAIN = "python vae_qwen3vl/train_finetune.py"
TRAIN_DUMMY = f"{TRAIN} --dummy_data --dummy_samples 50 --epochs 1 --batch_size 2 --output_dir ./out_3dvl"
TRAIN_LORA = f"""{TRAIN} \\
  --vl_model Qwen/Qwen2-VL-2B-Instruct \\
  --vae_config configs/vae/ct_vqvae_stage1.json \\
  --vae_ckpt path/to/vae.pt \\
  --use_lora --max_3d_tokens 2048 --output_dir ./out_3dvl"""
TRAIN_PROJECTOR = f"""{TRAIN} \\
  --vl_model Qwen/Qwen2-VL-2B-Instruct \\
  --vae_config configs/vae/sdf_vqvae_stage1.json \\
  --vae_ckpt path/to/your_trained_vae.pt \\
  --output_dir ./outputs_3d_vl \\
  --max_3d_tokens 2048 \\
  --use_3d_pos \\
  --epochs 3 --batch_size 4 --lr 1e-4"""
TRAIN_SCRIPT = "bash scripts/run_3d_align_train.sh"
TRAIN_DEBUG = "python scripts/run_3d_align_train.py --config configs/3d_align_train.yaml --debug"
EVALUATE = "python vae_qwen3vl/eval_3d_vl.py"
EVALUATE_RUN = f"{EVALUATE} --config configs/3d_align_train.yaml --output_dir ./eval_out"
EVALUATE_FLAGS = """\\
  --vae_config configs/vae/sdf_vqvae_stage1.json \\
  --vae_ckpt path/to/your_trained_vae.pt \\
  --projector_ckpt path/to/projector_final.pt \\
  --vl_model Qwen/Qwen2-VL-2B-Instruct \\
  --output_dir ./eval_out"""
EVALUATE_LINES = (
    f"{EVALUATE} ... --lora_dir outputs_3d_align/ep2_lr1e-4_bs2_n500_lora8/lora_final",
    f"{EVALUATE} ... --data_dir train_sdf_dataset",
    f'{EVALUATE} ... --data_path path/to/one_batch.pt --prompt "Describe this 3D shape in one sentence:"',
    f"{EVALUATE} ... --save_mesh --voxel_resolution 256",
)
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


def run_command(
    command: str, root: Path, *, given: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line with this interpreter as `python`, the repository importable as after `pip install -e .`."""
    program, *arguments = shlex.split(command.replace("\\\n", " "))  # a shell joins continued lines
    assert program in ("python", "bash")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` of a script is this one too
    variables = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "PATH": path} | environment
    started = [sys.executable, *arguments] if program == "python" else [program, *arguments]
    return subprocess.run(started, cwd=root, env=variables, input=given, capture_output=True, text=True, timeout=600)


@pytest.fixture
def run(record_command: Callable[[str, int], None]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command and leave its exit code in the report at the end of the test run."""

    def recorded(
        command: str, root: Path, *, given: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = run_command(command, root, given=given, **environment)
        record_command(command, done.returncode)
        return done

    return recorded


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache that holds a small Qwen2-VL, weights random, under the documented repository id."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / f"models--{HUB_ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    tiny_models.build_vl("qwen2_vl").save_pretrained(snapshot)
    tiny_models.build_tokenizer().save_pretrained(snapshot)
    return home


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """The repository's folders, linked into a new root where files may be made."""
    for item in ("vae_qwen3vl", "sdf_vqvae", "dataset_toolkits", "scripts", "configs", "examples"):
        (tmp_path / item).symlink_to(repository / item)
    return tmp_path


def test_they_stand_in_the_documentation_as_they_are_here(user_document):
    training = (TRAIN_DUMMY, TRAIN_LORA, TRAIN_PROJECTOR, TRAIN_SCRIPT, TRAIN_DEBUG)
    evaluation = (EVALUATE_RUN, f"{EVALUATE} {EVALUATE_FLAGS}", *EVALUATE_LINES)
    code = (INFERENCE, RECONSTRUCTION, WITHOUT_FORWARD)
    for quoted in (QUICK, FULL, FULL_WITH_WEIGHTS, *training, *evaluation, *code):
        assert quoted.rstrip("\n") in user_document


@pytest.mark.slow
@needs_language
def test_smoke_test_quick(repository, run):
    done = run(QUICK, repository, SPARSE_BACKEND="spconv")  # as the documentation exports it
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("Smoke test OK.")
    assert "Traceback" not in done.stderr


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
    from sdf_vqvae.config.architecture import VAEConfig
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
    assert without_waits(done.stderr) == "run_smoke_test: error: the checkpoint path/to/vae.pt does not exist\n"


@needs_language
def test_smoke_test_names_a_hub_id_it_cannot_reach(repository, tmp_path, run):
    command = f"python vae_qwen3vl/run_smoke_test.py --vl_model {HUB_ID}"
    done = run(command, repository, HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert HUB_ID in done.stderr
    assert "smollm2-135m" in done.stderr
    assert without_waits(done.stderr).count("\n") == 1
    assert "Smoke test OK." not in done.stdout


@needs_language
def test_the_code_of_the_documentation_runs(hub, tmp_path, repository, record_command):
    """The snippets as they are, after the lines that they leave to the reader."""
    setting = f"""
import json, torch
from sdf_vqvae import SparseSDF, SparseSDFVQVAE
torch.manual_seed(0)
vae = SparseSDFVQVAE(resolution=8, model_channels=64, num_head_channels=32, num_blocks=1, num_embeddings=64).eval()
from sdf_vqvae.codes.pipeline import voxelize_for
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


def small_fields(checkout: Path, configs: dict[str, Path | None]) -> None:
    """Write `train_sdf_dataset`: three balls with captions, as the field of every named tokenizer has them."""
    from sdf_vqvae.config.architecture import VAEConfig
    from sdf_vqvae.fields.balls import sphere_batch
    from sdf_vqvae.fields.sparse_sdf import SparseSDF
    from sdf_vqvae.model.checkpoint import shipped_config

    folder = checkout / "train_sdf_dataset"
    folder.mkdir()
    described = [VAEConfig.from_json(path or shipped_config()).field for path in configs.values()]
    columns = ["sha256", "captions", "sdf_computed", *(f"r{field.resolution}_num_points" for field in described)]
    lines = [",".join(columns)]
    for number, words in enumerate(("a red ball", "a planet", "a marble")):
        counts = []
        for field in described:
            batch = sphere_batch(field, 5.0 + number)
            made = SparseSDF(
                sdf=batch["sparse_sdf"][:, 0],
                index=batch["sparse_index"].int(),
                field=field,
                center=(0.0, 0.0, 0.0),
                scale=1.0,
                watertight=True,
                sign_method="winding" if field.kind == "sdf" else "none",
            )
            made.save(folder / f"ball{number}_r{field.resolution}.npz")
            counts.append(str(len(made.sdf)))
        lines.append(",".join([f"ball{number}", words, "True", *counts]))
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def small_default(hub: Path, tmp_path: Path) -> str:
    """A user cache whose default language model is the small one; sentence models are the machine's own."""
    from vae_qwen3vl.language.default_model import _FOLDER
    from vae_qwen3vl.language.model_wheel import cache_root

    cache = tmp_path / "cache" / "vae_qwen3vl"
    cache.mkdir(parents=True)
    for folder in cache_root().glob("*minilm*"):
        (cache / folder.name).symlink_to(folder)
    (small,) = (hub / "hub").glob("models--*/snapshots/*")
    shutil.copytree(small, cache / _FOLDER)
    files = {path.name: {"bytes": path.stat().st_size} for path in (cache / _FOLDER).iterdir()}
    (cache / _FOLDER / "manifest.json").write_text(json.dumps({"files": files}), encoding="utf-8")
    return str(tmp_path / "cache")


@pytest.fixture
def ran(
    checkout: Path, hub: Path, small_default: str, run: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command that has to end well, where three balls, a tokenizer and a small language model lie."""
    pytest.importorskip("accelerate")
    pytest.importorskip("nltk")
    from sdf_vqvae.config.architecture import VAEConfig
    from sdf_vqvae.fields.balls import sphere_batch
    from sdf_vqvae.model.vqvae import SparseSDFVQVAE

    stage1 = checkout / "configs" / "vae" / "sdf_vqvae_stage1.json"
    small_fields(checkout, {"documented": stage1, "shipped": None})
    (checkout / "path" / "to").mkdir(parents=True)
    vae = SparseSDFVQVAE(VAEConfig.from_json(stage1))
    state = {name: tensor.bfloat16() for name, tensor in vae.state_dict().items()}
    for name in ("vae.pt", "your_trained_vae.pt"):
        torch.save(state, checkout / "path" / "to" / name)
    torch.save(sphere_batch(vae.config.field), checkout / "path" / "to" / "one_batch.pt")

    def run_well(command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        variables = {"HF_HOME": str(hub), "XDG_CACHE_HOME": small_default, "CUDA_VISIBLE_DEVICES": ""}
        done = run(command, checkout, given=given, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run_well


def words_of(folder: Path) -> list[str]:
    return (folder / "generated.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@needs_language
def test_training_and_the_evaluation_of_its_last_run(checkout, ran):
    """One after the other, on three balls and a small language model."""
    ran(TRAIN_DUMMY)
    assert (checkout / "out_3dvl/ep1_lr1e-4_bs2_nd50_nolora/projector_final.pt").is_file()
    ran(TRAIN_LORA)
    assert (checkout / "out_3dvl/ep3_lr1e-4_bs2_nall_lora8/lora_final").is_dir()
    ran(TRAIN_SCRIPT)
    ran(TRAIN_DEBUG)
    runs = checkout / "outputs_3d_align"
    assert {path.name for path in runs.iterdir()} == {f"ep2_lr1e-4_bs4_n5000_lora8{end}" for end in ("", "_2")}
    done = ran(EVALUATE_RUN)  # as it is after training
    assert "ep2_lr1e-4_bs4_n5000_lora8_2" in done.stderr  # the latest run
    assert len(words_of(checkout / "eval_out")) == 3
    summary = json.loads((checkout / "eval_out" / "eval_summary.json").read_text(encoding="utf-8"))
    assert summary["settings"]["projector"]["num_layers"] == 3
    assert "no 3D" in summary["captions"]["rows"]


@pytest.mark.slow
@needs_language
def test_training_a_projector_and_every_line_of_its_evaluation(checkout, ran, record_command):
    """One after the other, on three balls and a small language model."""
    ran(TRAIN_PROJECTOR)
    trained = checkout / "outputs_3d_vl/ep3_lr1e-4_bs4_nall_nolora"
    shutil.copy(trained / "projector_final.pt", checkout / "path" / "to")
    ran(f"{TRAIN_SCRIPT} --batch_size 2 --max_samples 500")  # the run whose adapter a documented line names
    ran(f"{EVALUATE} {EVALUATE_FLAGS}")
    assert len(words_of(checkout / "eval_out")) == 1
    flags = " ".join(EVALUATE_FLAGS.replace("\\", " ").split())
    lines = [shlex.split(line.replace("...", flags))[1:] for line in EVALUATE_LINES]
    ran(f"python {in_turn.__file__} eval_out", given="\n".join(map(json.dumps, lines)))
    for number, line in enumerate(EVALUATE_LINES):
        record_command(line, 0)
        assert len(words_of(checkout / f"eval_out_{number}")) == (3 if "--data_dir" in line else 1)
    (record,) = [json.loads(line) for line in (checkout / "eval_out" / "eval_results.jsonl").open(encoding="utf-8")]
    assert (record["mesh"] is not None) == (checkout / "eval_out" / "recon_mesh_0.obj").is_file()


def test_the_program_runs_as_a_module(repository):
    done = run_command("python -m vae_qwen3vl doctor", repository)
    assert done.returncode in (0, 1)
    assert "convolutions" in done.stdout
