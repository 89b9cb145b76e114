"""Checkpoints of every layout give the same codes, and say what became of each tensor."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.model.checkpoint import load_vae_from_config, load_weights, save_vae
from sdf_vqvae.model.state_dict import to_canonical, to_torchsparse
from sdf_vqvae.model.vqvae import SparseSDFVQVAE

ROOT = Path(__file__).resolve().parents[3]
ARGS = {
    "resolution": 8,
    "model_channels": 64,
    "num_head_channels": 32,
    "num_blocks": 2,
    "num_embeddings": 64,
    "level_channels": [8, 16, 24],
    "use_ema_update": True,
}


def named_weights(vae: SparseSDFVQVAE) -> SparseSDFVQVAE:
    """Fill parameters as a function of their names: every tensor differs from every other."""
    for name, parameter in vae.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return vae.eval()


@pytest.fixture(scope="module")
def vae() -> SparseSDFVQVAE:
    return named_weights(SparseSDFVQVAE(**ARGS))


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    grid = torch.stack(torch.meshgrid(*[torch.arange(64)] * 3, indexing="ij"), -1).reshape(-1, 3)
    distance = ((grid + 0.5 - 32).norm(dim=1) - 20).abs() / 64
    near = distance < 2 / 64
    return {
        "sparse_sdf": distance[near][:, None],
        "sparse_index": grid[near],
        "batch_idx": torch.zeros(int(near.sum()), dtype=torch.long),
    }


def files_of(vae: SparseSDFVQVAE, folder: Path) -> dict[str, Path]:
    """Write the same weights in every form that they come in."""
    state = vae.state_dict()
    weights = {k: v for k, v in state.items() if "ema" not in k}
    torchsparse = to_torchsparse(state)
    save_vae(vae, folder)
    save_file({k: v.contiguous() for k, v in to_torchsparse(weights).items()}, folder / "torchsparse.safetensors")
    forms = {
        "vqvae_step0000459.pt": state,
        "vqvae_ema0.9999_step0000459.pt": weights,
        "state_dict.pt": {"state_dict": state, "step": torch.tensor(3)},
        "vae.pth": {"vae": weights, "config": {"resolution": 64}},
        "torchsparse.pt": torchsparse,
        "torchsparse_wrapped.pt": {"vae": torchsparse, "config": {}},
        "ddp.pt": {f"module.{k}": v for k, v in torchsparse.items()},
    }
    for name, content in forms.items():
        torch.save(content, folder / name)
    return {name: folder / name for name in (*forms, "model.safetensors", "torchsparse.safetensors")}


def test_every_form_of_a_checkpoint_gives_the_same_codes(vae, batch, tmp_path):
    expected = vae.Encode(batch)
    for name, path in files_of(vae, tmp_path).items():
        loaded = load_vae_from_config(tmp_path / "config.json", path, "cpu")
        assert loaded.fingerprint() == vae.fingerprint(), name
        assert torch.equal(loaded.Encode(batch).feats, expected.feats), name


def test_the_torchsparse_order_is_x_fastest(vae):
    """Written out by hand from the definition: number i is the offset (i % 3 - 1, i // 3 % 3 - 1, i // 9 - 1)."""
    name = "encoder.downsample.0.out_layers.0.conv.weight"
    ours = vae.state_dict()[name]  # [Cout, x, y, z, Cin]
    kernel = torch.stack([ours[:, i % 3, i // 3 % 3, i // 9, :].T for i in range(27)])  # [27, Cin, Cout]
    there = name.replace("weight", "kernel")
    assert torch.equal(to_torchsparse({name: ours})[there], kernel)
    found, renamed = to_canonical({there: kernel})
    assert torch.equal(found[name], ours)
    assert (renamed[0].file_name, renamed[0].name, renamed[0].how) == (there, name, "torchsparse")


def test_a_kernel_of_side_one_multiplies_as_it_does_in_torchsparse(vae):
    """torchsparse multiplies features by the `[Cin, Cout]` matrix as it is."""
    matrix = torch.randn(8, 16)
    found, _ = to_canonical({"x.conv.kernel": matrix})
    weight = found["x.conv.weight"]
    assert weight.shape == (16, 1, 1, 1, 8)
    feats = torch.randn(5, 8)
    assert torch.equal(feats @ weight.reshape(weight.shape[-1], weight.shape[0]), feats @ matrix)


def test_the_report_tells_what_was_loaded_renamed_and_left_over(vae, tmp_path):
    files = files_of(vae, tmp_path)
    report = load_weights(SparseSDFVQVAE(**{**ARGS, "use_ema_update": False}), files["torchsparse.pt"])
    kernels = [n for n, p in vae.named_parameters() if p.ndim == 5]
    assert sorted(r.name for r in report.renamed) == sorted(kernels)
    assert report.tensors == len(list(vae.parameters()))
    assert all("ema" in name for name in report.left_over) and report.left_over
    assert report.missing == []
    table = report.table()
    assert table.count("\n") == len(kernels) + len(report.left_over)
    assert "torchsparse" in table and f"loaded {report.tensors}" in table


def test_direct3d_s2_loads_into_its_config_and_lacks_a_codebook_only(tmp_path, caplog):
    config = VAEConfig.from_json(ROOT / "configs" / "vae" / "direct3d_s2_512.json")
    source = SparseSDFVQVAE(config)
    state = {k: v.half() for k, v in to_torchsparse(source.state_dict()).items() if not k.startswith("vq.")}
    assert sum(v.numel() for v in state.values()) == 37_874_113  # as in the public file
    torch.save({"vae": state, "config": {"embed_dim": 16}}, tmp_path / "sparse_vae_512.pth")
    target = SparseSDFVQVAE(config)
    with pytest.raises(ValueError, match="no codebook"):
        load_weights(target, tmp_path / "sparse_vae_512.pth")
    report = load_weights(target, tmp_path / "sparse_vae_512.pth", codebook_required=False)
    assert report.missing == ["vq.embeddings.weight"]
    assert report.parameters == 37_874_113
    assert "no codebook" in caplog.text
    for (name, ours), theirs in zip(target.named_parameters(), source.parameters(), strict=True):
        assert name.startswith("vq.") or torch.equal(ours, theirs.half().float()), name


def test_a_misfit_says_what_the_file_looks_like(vae, tmp_path):
    torch.save(vae.state_dict(), tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"num_blocks_encoder=2.*latent_channels=16.*num_embeddings=64"):
        load_weights(SparseSDFVQVAE(**{**ARGS, "num_blocks": 4}), tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.out_layer.bias": torch.full((32,), torch.nan)}, "not finite"),
        ({"encoder.out_layer.weird": torch.zeros(1)}, "1 unexpected"),
        ({"encoder.downsample.0.out_layers.0.conv.kernel": torch.zeros(27, 8, 16)}, "twice"),
        ({"extra.kernel": torch.zeros(5, 8, 16)}, r"\[27, Cin, Cout\]"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(vae, tmp_path, change, message):
    torch.save({**vae.state_dict(), **change}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(SparseSDFVQVAE(**ARGS), tmp_path / "x.pt")
    assert "x.pt" in str(caught.value)


def test_the_reference_numbers_hold_in_the_torchsparse_layout(reference_data, tmp_path):
    """The original's own codes come out of its weights as torchsparse stores them."""
    folder = reference_data / "parity"
    args = json.loads((folder / "args.json").read_text())
    source = SparseSDFVQVAE(**args)
    for name, parameter in source.named_parameters():
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(parameter.numel(), dtype=np.float32)
        values = values.reshape(parameter.shape)
        if values.ndim == 1:
            values = 0.05 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values = values * 1.4 / np.sqrt(values.size / values.shape[0])
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))
    torch.save(to_torchsparse(source.state_dict()), tmp_path / "original.pt")
    vae = SparseSDFVQVAE(**args).eval()
    load_weights(vae, tmp_path / "original.pt")
    fixture = np.load(folder / "fixture.npz", allow_pickle=False)
    codes = vae.Encode({k: torch.from_numpy(fixture[k]) for k in ("sparse_sdf", "sparse_index", "batch_idx")})
    assert (codes.feats.numpy() == fixture["codes"]).mean() > 0.999
