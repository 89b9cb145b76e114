"""Old things and what becomes of them: files of the original system, made here, put through the programs.

    python benchmarks/parity/original_files.py

Checkpoints are those of the 63 M configuration with random weights, written in every layout and wrapping that
the original and Direct3D-S2 use; the codes of a sphere at 512^3 are compared with those of the first of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from sdf_vqvae.codes.pipeline import voxelize_for
from sdf_vqvae.config.architecture import read_vae_document
from sdf_vqvae.fields.balls import sphere_batch
from sdf_vqvae.model.checkpoint import load_vae_from_config, save_vae
from sdf_vqvae.model.state_dict import to_torchsparse
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from vae_qwen3vl.commands.main import main as program

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "vae" / "sdf_vqvae_stage2.json"
Row = dict[str, str]


def run(folder: Path, *arguments: str) -> Row:
    """Run the program in a folder of old files; return the command and the first line that it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = program(list(arguments))
    said = out.getvalue().splitlines() if code == 0 else err.getvalue().splitlines()[-1:]
    shown = " ".join(a.removeprefix(f"{ROOT}/") for a in arguments)
    return {"command": f"vae-qwen3vl {shown}", "exit": str(code), "result": said[0]}


def checkpoints(folder: Path) -> Iterator[Row]:
    """Every form of one set of weights, and what the loader says of it."""
    torch.manual_seed(0)
    vae = SparseSDFVQVAE(read_vae_document(CONFIG).model).eval()
    state = vae.state_dict()
    weights = {name: tensor for name, tensor in state.items() if "ema" not in name}
    sparse = to_torchsparse(state)
    forms = {
        "spconv layout, bare (vqvae_step*.pt)": ("vqvae_step0000459.pt", state),
        "torchsparse layout, bare (what the original's trainer writes)": ("vqvae_step0000300.pt", sparse),
        "averaged weights (vqvae_ema0.9999_step*.pt)": ("vqvae_ema0.9999_step0000459.pt", weights),
        "under state_dict": ("wrapped.pt", {"state_dict": sparse}),
        "under vae, with its config": ("vae.pth", {"vae": sparse, "config": {"resolution": 64}}),
        "names with module.": ("ddp.pt", {f"module.{name}": tensor for name, tensor in sparse.items()}),
    }
    batch = sphere_batch(vae.config.field, radius=24)
    expected: SparseTensor = vae.Encode(batch)
    for thing, (name, content) in forms.items():
        torch.save(content, folder / name)
        yield compare(thing, folder, name, batch, expected)
        (folder / name).unlink()
    save_file({k: v.contiguous() for k, v in to_torchsparse(weights).items()}, folder / "old.safetensors")
    yield compare("safetensors, torchsparse layout", folder, "old.safetensors", batch, expected)
    save_vae(vae, folder / "ours")
    yield compare("safetensors as written here", folder, "ours/model.safetensors", batch, expected)
    yield direct3d(folder)


def compare(thing: str, folder: Path, name: str, batch: dict[str, torch.Tensor], expected: SparseTensor) -> Row:
    """Load a checkpoint by the program and by the library, and count equal codes."""
    row = run(folder, "checkpoint", name, "--vae_config", str(CONFIG))
    codes = load_vae_from_config(CONFIG, folder / name, "cpu").Encode(batch)
    equal = int((codes.feats == expected.feats).sum())
    return {"thing": f"checkpoint: {thing}", **row, "result": f"{row['result']}; {equal} of {len(codes)} codes equal"}


def direct3d(folder: Path) -> Row:
    """The public VAE's form: no codebook, float16, torchsparse layout, 4 + 4 blocks."""
    config = ROOT / "configs" / "vae" / "direct3d_s2_512.json"
    source = SparseSDFVQVAE(read_vae_document(config).model)
    state = {n: t.half() for n, t in to_torchsparse(source.state_dict()).items() if not n.startswith("vq.")}
    torch.save({"vae": state, "config": {"embed_dim": 16}}, folder / "sparse_vae_512.pth")
    row = run(folder, "checkpoint", "sparse_vae_512.pth", "--vae_config", str(config))
    return {"thing": "checkpoint: form of Direct3D-S2's public sparse VAE", **row}


def fields(folder: Path) -> Iterator[Row]:
    """Field files and a dataset as the original writes them, and what feeds on them."""
    torch.manual_seed(0)
    args = {"resolution": 32, "model_channels": 64, "num_blocks": 1, "num_embeddings": 512}
    vae = SparseSDFVQVAE(**args)
    save_vae(vae, folder / "their_vae")
    data = folder / "train_sdf_dataset"
    data.mkdir()
    field = voxelize_for(vae, ROOT / "examples" / "chair.glb", threshold_factor=4.0)
    raw = {"sparse_sdf": field.sdf.numpy()[:, None], "sparse_index": field.index.numpy(), "resolution": 256}
    np.savez_compressed(data / "aaaa_r256.npz", **raw)
    shutil.copy(data / "aaaa_r256.npz", data / "bbbb_r256.npz")
    (data / "cccc_r256.npz").write_bytes(b"damaged")
    rows = [f'{name},"[""a chair""]",True,{len(field.sdf)}' for name in ("aaaa", "bbbb", "cccc")]
    table = "\n".join(["sha256,captions,sdf_computed,r256_num_points", *rows, ""])
    (data / "metadata.csv").write_text(table, encoding="utf-8")
    theirs = ("--vae_ckpt", "their_vae/model.safetensors", "--device", "cpu")
    file = "train_sdf_dataset/aaaa_r256.npz"
    yield {
        "thing": "field file (raw, unsigned), a VAE trained on such fields",
        **run(folder, "encode", file, "-o", "a.safetensors", *theirs),
    }
    yield {
        "thing": "mesh, a VAE trained on such fields",
        **run(
            folder, "encode", str(ROOT / "examples" / "chair.glb"), "-o", "b.safetensors", *theirs,
            "--threshold_factor", "4",
        ),
    }  # fmt: skip
    yield {
        "thing": "field file (raw, unsigned), the shipped VAE",
        **run(folder, "encode", file, "-o", "c.safetensors", "--device", "cpu"),
    }
    yield {"thing": "field file, converted", **run(folder, "convert", file, "-o", "aaaa_signed.npz")}
    yield {
        "thing": "the converted field, the shipped VAE",
        **run(folder, "encode", "aaaa_signed.npz", "-o", "d.safetensors", "--device", "cpu"),
    }
    yield {
        "thing": "dataset, one file damaged, converted",
        **run(folder, "convert", "train_sdf_dataset", "-o", "train_sdf_dataset_signed"),
    }
    yield {
        "thing": "the same again",
        **run(folder, "convert", "train_sdf_dataset", "-o", "train_sdf_dataset_signed"),
    }


def configs() -> Iterator[Row]:
    """The configuration files."""
    for path in sorted((ROOT / "configs" / "vae").glob("*.json")):
        document = read_vae_document(path)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in SparseSDFVQVAE(document.model).parameters())
        sections = [name for name in ("dataset", "trainer") if getattr(document, name) is not None]
        yield {
            "thing": f"configs/vae/{path.name}",
            "command": f"read_vae_document('configs/vae/{path.name}')",
            "exit": "0",
            "result": f"{parameters:,} parameters; every key of models{''.join(f', {s}' for s in sections)} known",
        }


def main() -> None:
    """Print the table and write `compatibility.json`."""
    parser = measuring_parser(__doc__, __file__)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for source in (fields(Path(folder)), checkpoints(Path(folder)), configs()):
            for row in source:
                rows.append({key: value.replace(folder, ".").replace(f"{ROOT}/", "") for key, value in row.items()})
                print(json.dumps(rows[-1]), flush=True)
    print("\n| old thing | command | result |\n|---|---|---|")
    for row in rows:
        print(f"| {row['thing']} | `{row['command']}` | {row['result']} (exit {row['exit']}) |")
    write_run(options, {"rows": rows})


if __name__ == "__main__":
    main()
