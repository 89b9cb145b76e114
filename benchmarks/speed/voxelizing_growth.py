"""How time and memory of voxelizing grow with the grid, for one mesh.

python benchmarks/speed/voxelizing_growth.py examples/mug.glb --resolutions 128,256,512,1024

A grid of twice the side has eight times the voxels and four times the voxels near a surface. Each resolution runs in
a process of its own, three times after a first one at 64^3; the median is taken.
"""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import torch

from sdf_vqvae.geometry.mesh import load_mesh, normalize_mesh
from sdf_vqvae.geometry.voxelizer.voxelize import voxelize
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import peak_host_bytes, resolve_device


def run(path: Path, resolution: int, device: str, threads: int) -> dict[str, Any]:
    """Voxelize the mesh at one resolution and return time and memory."""
    torch.set_num_threads(threads)
    mesh, target = normalize_mesh(load_mesh(path)), torch.device(device)
    vertices, faces = mesh.vertices.to(target), mesh.faces.to(target)
    cuda = target.type == "cuda"
    voxelize(vertices, faces, resolution=64, watertight=mesh.watertight)  # compiles
    before = torch.cuda.memory_allocated() if cuda else peak_host_bytes()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        field = voxelize(vertices, faces, resolution=resolution, watertight=mesh.watertight)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else peak_host_bytes()
    return {
        "resolution": resolution,
        "voxels": len(field.index),
        "seconds": round(sorted(seconds)[1], 4),
        "peak_megabytes_above_start": round((peak - before) / 1e6, 1),
    }


def main() -> None:
    """Measure every resolution and write the result."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("mesh", type=Path)
    parser.add_argument("--resolutions", default="128,256,512,1024", help="grid sides, with commas between")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    parser.add_argument("--device", help="default: CUDA where present")
    options = parser.parse_args()
    device = str(resolve_device(options.device))
    rows = []
    for resolution in map(int, options.resolutions.split(",")):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(run, (options.mesh, resolution, device, options.threads)))
        print(rows[-1], flush=True)
    faces = len(normalize_mesh(load_mesh(options.mesh)).faces)
    result = {"mesh": options.mesh.name, "faces": faces, "device": device, "rows": rows}
    print(write_run(options, result))


if __name__ == "__main__":
    main()
