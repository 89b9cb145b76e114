"""Time and peak memory of each stage for one mesh: voxelize, encode, decode, surface.

    python benchmarks/speed/stages.py examples/lamp.glb                                  # shipped tokenizer
    python benchmarks/speed/stages.py examples/lamp.glb --vae_config configs/vae/sdf_vqvae_stage1.json   # 63 M, 512^3

Each stage is run `--repeats` times; the median is reported (the first run, with its compilation, beside it), and that
of the processor's seconds: on one thread they say on a busy machine, too, how much there is to do.
A config without weights, given or shipped, runs on random ones: times and memory do not depend on them, the mesh
does, so the surface is then extracted from the input field.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import load_mesh
from sdf_vqvae.model.checkpoint import load_vae_from_config, shipped_weights
from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import Stopwatch, setup_logging


@torch.no_grad()
def main() -> None:
    """Print and record the table."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("mesh", type=Path)
    parser.add_argument("--vae_config")
    parser.add_argument("--vae_ckpt")
    parser.add_argument("--device")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network")
    options = parser.parse_args()
    setup_logging()
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    trained = options.vae_ckpt is not None or shipped_weights(vae.config) is not None
    mesh = load_mesh(options.mesh)
    resolution, band = vae.config.data_resolution, vae.config.field.band or 3.0
    dtype = getattr(torch, options.dtype)
    stopwatch = Stopwatch(vae.device)
    processor: dict[str, list[float]] = {}

    @contextmanager
    def watch(name: str) -> Iterator[None]:
        start = time.process_time()
        with stopwatch(name):
            yield
        processor.setdefault(name, []).append(time.process_time() - start)

    for _ in range(options.repeats):
        with watch("voxelize"):
            field = SparseSDF.from_mesh(mesh, resolution, band=band, device=vae.device)
        batch = field.to_batch()
        with torch.autocast(vae.device.type, dtype, enabled=dtype != torch.float32):
            with watch("encode"):
                codes = vae.Encode(batch)
            with watch("decode"):
                recon = vae.Decode(codes)
        coords = torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1)
        with watch("surface"):
            source = recon if trained else SparseTensor(batch["sparse_sdf"], coords, side=resolution)
            (surface,) = vae.sparse2mesh(source, mc_threshold=0.0)
    rows = []
    for stage in ("voxelize", "encode", "decode", "surface"):
        costs = [c for c in stopwatch.costs if c.name == stage]
        rows.append(
            {
                "stage": stage,
                "seconds": statistics.median(c.seconds for c in costs[1:] or costs),
                "first_seconds": costs[0].seconds,
                "processor_seconds": round(statistics.median(processor[stage][1:] or processor[stage]), 4),
                "peak_host_GiB": max(c.peak_host_bytes for c in costs) / 2**30,
                "peak_device_GiB": max(c.peak_device_bytes for c in costs) / 2**30,
            }
        )
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1].items()})
    about = {
        "mesh": options.mesh.name,
        "faces": len(mesh.faces),
        "resolution": resolution,
        "voxels": len(field.sdf),
        "codes": len(codes),
        "decoded_voxels": len(recon),
        "surface_faces": len(surface.faces),
        "parameters": sum(p.numel() for p in vae.parameters()),
        "backend": active_backend(vae.device),
        "dtype": options.dtype,
    }
    print(about)
    print(write_run(options, {**about, "stages": rows}, f"{resolution}, {vae.device.type}, {options.dtype}"))


if __name__ == "__main__":
    main()
