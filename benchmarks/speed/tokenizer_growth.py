"""How time and memory of voxelizing, encoding, decoding and meshing grow with the grid's side and with the surface.

    python benchmarks/speed/tokenizer_growth.py --pack PACK                         # the shipped tokenizer
    python benchmarks/speed/tokenizer_growth.py --pack PACK --dtype bfloat16 --candidates 200 --name NAME

Objects come from the pack, evenly spaced by their number of codes between the 5th and the 95th percentile. With the
surface: all of them at the tokenizer's own R. With the grid: three of them at each of --resolutions.

Other grids take the tokenizer's architecture and its own weights with another `resolution`: no weight knows the side
of the grid. What it then decodes at a side it was not trained on means little, but time and memory don't depend on
the values, except through the predicted occupancy, where there is one: `decoded_voxels` says how much it kept. Random
weights would keep anything.

Each resolution runs in a process of its own. A stage runs --repeats times after one that isn't counted; the median is
taken (CUDA events on a GPU). Memory is the largest during a stage above what was held before it: allocations on CUDA,
resident memory on a CPU (its first run; Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.data.mesh_pack import MeshPack, PackEntry
from sdf_vqvae.fields.conversion import field_in_world
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.mesh import NormalizedMesh, normalize_mesh
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.conv import active_backend
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.runtime import resolve_device, setup_logging

STAGES = ("voxelize", "encode", "decode", "mesh")
_PERCENTILES = (5, 95)
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A mesh of the pack and its size."""

    number: int
    """Its place in the split."""
    name: str
    codes: int
    area: float
    """In units of the square of the longest side."""


class Meter:
    """Measures stages of one object: median seconds, and megabytes above what was held before."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self.row: dict[str, float] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        """Run `work` once for its memory and then `repeats` times for its seconds; returns what it returned."""
        before = self._start_peak()
        result = work()
        self.row[f"{stage}_megabytes"] = round((self._peak() - before) / 1e6, 1)
        self.row[f"{stage}_seconds"] = round(statistics.median(self._seconds(work) for _ in range(self.repeats)), 5)
        return result

    def _seconds(self, work: Callable[[], Any]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / 1000

    def _start_peak(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device)
        _give_back()
        _CLEAR.write_text("5")  # the peak starts anew
        return _status("VmRSS")

    def _peak(self) -> int:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM")


def _give_back() -> None:
    """Let the allocator return what it keeps for later, or a stage that uses it again would seem to need nothing."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    """Return a value of this process's status in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def tokenizer(options: argparse.Namespace, resolution: int | None, device: torch.device) -> SparseSDFVQVAE:
    """Return the tokenizer, or its like on another grid with the same weights.

    Raises:
        ValueError: the latent grid would not be whole.
    """
    trained = load_vae_from_config(options.vae_config, options.vae_ckpt, device)
    if resolution in (None, trained.config.data_resolution):
        return trained
    factor = 2**trained.config.levels
    if resolution % factor:
        raise ValueError(f"--resolutions: {resolution} is not a multiple of {factor}, the tokenizer's factor")
    config: VAEConfig = dataclasses.replace(
        trained.config,
        resolution=resolution // factor,
        field=dataclasses.replace(trained.config.field, resolution=resolution),
    )
    vae = SparseSDFVQVAE(config)
    vae.load_state_dict(trained.state_dict())
    return vae.to(device).eval()


def voxelized(vae: SparseSDFVQVAE, mesh: NormalizedMesh) -> SparseSDF:
    """Return the field that the tokenizer reads."""
    config = vae.config
    return field_in_world(
        mesh.vertices.to(vae.device),
        mesh.faces.to(vae.device),
        config.field,
        band=config.input_band or config.field.band or 3.0,
        watertight=mesh.watertight,
    )


def candidates(options: argparse.Namespace, entries: Sequence[PackEntry], device: torch.device) -> list[Candidate]:
    """Return a fixed sample of a split, by number of codes."""
    vae = tokenizer(options, None, device)
    pack = MeshPack(options.pack)
    order = np.random.default_rng(0).permutation(len(entries))[: options.candidates]
    sized = []
    for number in tqdm(sorted(order.tolist()), desc="candidates", disable=None):
        try:
            mesh = normalize_mesh(pack.mesh(entries[number]))
            field = voxelized(vae, mesh)
        except ValueError as error:
            print(f"{entries[number].id} left out: {error}")
            continue
        cells = torch.unique(field.index.long() // 2**vae.config.levels, dim=0)
        corners = mesh.vertices[mesh.faces] / mesh.vertices.abs().max() / 2
        area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]).norm(dim=1).sum() / 2
        sized.append(Candidate(number=number, name=entries[number].id, codes=len(cells), area=float(area)))
    return sorted(sized, key=lambda c: c.codes)


def spread(sample: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return so many candidates, evenly spaced by codes between the two percentiles."""
    low, high = np.percentile([c.codes for c in sample], _PERCENTILES)
    wanted = np.linspace(low, high, count)
    nearest = {min(sample, key=lambda c, w=w: abs(c.codes - w)).number for w in wanted}
    return [c for c in sample if c.number in nearest]


@torch.no_grad()
def measure(
    options: argparse.Namespace, resolution: int | None, chosen: Sequence[Candidate]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Run every stage for every object at one resolution; rows, and what ran. Runs in a process of its own."""
    setup_logging()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    dtype = getattr(torch, options.dtype)
    vae = tokenizer(options, resolution, device)
    pack = MeshPack(options.pack)
    entries = pack.select(options.split)
    meshes = [normalize_mesh(pack.mesh(entries[c.number])) for c in chosen]
    _faces(vae, vae.Decode(vae.Encode(voxelized(vae, meshes[0]).to_batch())))  # compiles
    rows = []
    for candidate, mesh in zip(
        chosen, tqdm(meshes, desc=f"R = {vae.config.data_resolution}", disable=None), strict=True
    ):
        meter = Meter(device, options.repeats)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            field = meter("voxelize", lambda mesh=mesh: voxelized(vae, mesh))
            batch = field.to_batch()
            codes = meter("encode", lambda batch=batch: vae.Encode(batch))
            decoded = meter("decode", lambda codes=codes: vae.Decode(codes))
        faces = meter("mesh", lambda decoded=decoded: _faces(vae, decoded))
        rows.append(
            {
                "resolution": vae.config.data_resolution,
                "id": candidate.name,
                "area": round(candidate.area, 4),
                "voxels": len(field.sdf),
                "codes": len(codes),
                "decoded_voxels": len(decoded),
                "faces": faces,
                **meter.row,
                "total_seconds": round(sum(meter.row[f"{stage}_seconds"] for stage in STAGES), 5),
            }
        )
        print(rows[-1], flush=True)
        del batch, codes, decoded, field
    about = {
        "own_resolution": resolution is None,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "backend": active_backend(device),
        "device": device.type,
    }
    return rows, about


def _faces(vae: SparseSDFVQVAE, decoded: SparseTensor) -> int:
    """Extract the surface and return its number of faces; 0 where a grid that was never trained on has none."""
    try:
        return len(vae.sparse2mesh(decoded)[0].faces)
    except ValueError:
        return 0


def fitted(rows: Sequence[dict[str, Any]], over: str) -> dict[str, dict[str, float]]:
    """Fit each cost by a power of `over` and by a straight line (slopes: a thousand codes, or one unit of area)."""
    x = np.array([row[over] for row in rows], dtype=np.float64)
    fits = {}
    for name in rows[0]:
        if not name.endswith(("_seconds", "_megabytes")) or len(set(x)) < 2:
            continue
        y = np.array([row[name] for row in rows], dtype=np.float64)
        slope, offset = np.polyfit(x, y, 1)
        fits[name] = {"slope": float(slope * (1 if over == "area" else 1000)), "offset": float(offset)}
        if over == "resolution":
            del fits[name]["slope"], fits[name]["offset"]  # no line
        if (y > 0).all():
            fits[name]["exponent"] = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    return fits


def by_resolution(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean of every number over the objects of each resolution."""
    means: dict[str, dict[str, float]] = {}
    for side in sorted({row["resolution"] for row in rows}):
        of_side = [row for row in rows if row["resolution"] == side]
        names = [name for name, value in of_side[0].items() if isinstance(value, int | float)]
        means[str(side)] = {name: round(statistics.fmean(row[name] for row in of_side), 5) for name in names}
    return means


def print_fits(title: str, fits: dict[str, dict[str, float]], unit: str) -> None:
    """Print exponents and slopes."""
    print(title)
    for name, fit in fits.items():
        power = f"{fit['exponent']:.2f}" if "exponent" in fit else "-"
        line = f"{fit['offset']:.4g} + {fit['slope']:.4g} {unit}" if "slope" in fit else ""
        print(f"  {name:<22} power {power:>6}   {line}")


def main() -> None:
    """Choose objects, measure, fit, write."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--pack", type=Path, required=True, help="folder with meshes.bin and meshes.jsonl")
    parser.add_argument("--split", default="test")
    parser.add_argument("--resolutions", default="128,256,512", help="grid sides, with commas between")
    parser.add_argument("--candidates", type=int, default=60, help="meshes among which the objects are chosen")
    parser.add_argument("--objects", type=int, default=8, help="objects for the growth with the surface")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="on a CPU")
    parser.add_argument("--vae_config", type=Path)
    parser.add_argument("--vae_ckpt", type=Path)
    parser.add_argument("--device", help="default: CUDA where present")
    options = parser.parse_args()
    setup_logging()
    torch.set_num_threads(options.threads)
    sample = candidates(options, MeshPack(options.pack).select(options.split), resolve_device(options.device))
    chosen = spread(sample, options.objects)
    middle = spread(sample, 5)[1:4] if len(sample) >= 5 else chosen
    runs: list[tuple[int | None, list[Candidate]]] = [(None, chosen)]
    runs += [(int(side), middle) for side in options.resolutions.split(",")]
    measured = []
    for side, objects in runs:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            measured.append(pool.apply(measure, (options, side, objects)))
            pool.close()
            pool.join()
    rows = measured[0][0]
    grids = [row for part, _ in measured[1:] for row in part]
    fits = {over: fitted(rows, over) for over in ("codes", "area")}
    sides = by_resolution(grids)
    print_fits("growth with codes, at the tokenizer's own R", fits["codes"], "a thousand codes")
    print_fits("growth with the area of the surface", fits["area"], "a longest side squared")
    means = [
        {"resolution": int(side), **{k: v for k, v in mean.items() if k != "resolution"}}
        for side, mean in sides.items()
    ]
    fits["resolution"] = fitted(means, "resolution")
    print_fits("growth with the side of the grid", fits["resolution"], "")
    for side, mean in sides.items():
        print(side, mean)
    result = {
        **measured[0][1],
        "dtype": options.dtype,
        "codes_percentiles": dict(
            zip(map(str, _PERCENTILES), np.percentile([c.codes for c in sample], _PERCENTILES).tolist(), strict=True)
        ),
        "surface": rows,
        "grid": grids,
        "grid_means": sides,
        "fits": fits,
    }
    print(write_run(options, result))


if __name__ == "__main__":
    main()
