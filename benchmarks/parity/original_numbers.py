"""How closely this implementation reproduces the original's numbers, on each backend and in each precision.

    python benchmarks/parity/original_numbers.py --fixture ../shared/data/parity [--device cuda]

The fixture's folder holds `args.json`, `fixture.npz` and nothing of weights: those are a function of the
parameters' names (see `fill_by_name`).
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.sparse.coordinates import linear_keys
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device


def fill_by_name(vae: SparseSDFVQVAE) -> None:
    """Set every parameter to the fixture's weights, drawn from a generator seeded by the parameter's name."""
    for name, parameter in vae.named_parameters():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        values = generator.standard_normal(parameter.numel(), dtype=np.float32).reshape(parameter.shape)
        if values.ndim == 1:
            values = 0.05 * values + (1.0 if name.endswith("weight") else 0.0)
        else:
            values = values * 1.4 / np.sqrt(values.size / values.shape[0])
        parameter.data.copy_(torch.from_numpy(values.astype(np.float32)))


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Return ||value - reference|| / ||reference||."""
    return float((value.double() - reference.double()).norm() / reference.double().norm())


@torch.no_grad()
def measure(folder: Path, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Run the fixture's input through encoder and decoder and compare with its outputs."""
    vae = SparseSDFVQVAE(**json.loads((folder / "args.json").read_text())).eval()
    fill_by_name(vae)
    vae.to(device)
    fixture = {k: torch.from_numpy(v) for k, v in np.load(folder / "fixture.npz", allow_pickle=False).items()}
    batch = {k: fixture[k] for k in ("sparse_sdf", "sparse_index", "batch_idx")}
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        latent = vae.encode_latent(batch)
        codes = vae.Encode(batch)
        reference_codes = codes.replace(fixture["codes"].to(device))
        recon = vae.Decode(reference_codes).cpu()
    ours = torch.argsort(recon.coordinates.keys)
    theirs = torch.argsort(linear_keys(fixture["rec_coords"].int(), recon.side))
    return {
        "latent_relative_error": relative_error(latent.feats.cpu(), fixture["latent"]),
        "codes_equal": float((codes.feats.cpu() == fixture["codes"]).float().mean()),
        "decoded_relative_error": relative_error(recon.feats[ours], fixture["rec"][theirs]),
    }


def main() -> None:
    """Print and record the table."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--fixture", type=Path, required=True, help="folder with args.json and fixture.npz")
    parser.add_argument("--device", help="cpu or cuda; both backends are run on CUDA")
    options = parser.parse_args()
    device = resolve_device(options.device)
    rows = []
    for backend in ("torch", "spconv") if device.type == "cuda" else ("torch",):
        os.environ["SPARSE_BACKEND"] = backend
        assert active_backend(device) == backend, f"{backend} cannot run here"
        for dtype in (torch.float32, torch.bfloat16):
            row = {"backend": backend, "dtype": str(dtype).removeprefix("torch.")}
            rows.append({**row, **measure(options.fixture, device, dtype)})
            print(rows[-1])
    print(write_run(options, {"rows": rows}))


if __name__ == "__main__":
    main()
