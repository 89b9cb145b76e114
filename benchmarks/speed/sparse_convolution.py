"""How long the submanifold 3^3 convolution takes: ours, plain PyTorch and other libraries, on one GPU.

python benchmarks/speed/sparse_convolution.py measure
python benchmarks/speed/sparse_convolution.py tune --seconds 240
python benchmarks/speed/sparse_convolution.py cpu

Voxel sets: a spherical shell of 1,663,792 voxels in 512^3 (within 1.5 voxels of radius 210; 20.9 of 27 neighbours are
there), thin rods (2 by 2 voxels, along all three axes) and a full grid of 64^3. `measure` writes milliseconds of the
forward pass, of both passes together and of the neighbour map, the first call's seconds, memory, the difference from
the sum in float64 and the share of what the machine could do: the arithmetic of neighbours that are there at
790 TFLOP/s, and every row read and written once at 4.3 TB/s (an H200's, measured). `tune` tries how the kernels can
divide their work; its table is where the rules in `sdf_vqvae/sparse/backends/triton_backend.py` come from.
`cpu` times the CPU's backends in turn on a shell of 103,432 voxels in 128^3.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.sparse.backends import numba_backend, spconv_backend, torch_backend, triton_backend
from sdf_vqvae.sparse.coordinates import CoordinateSet, coords_of_keys
from sdf_vqvae.utils.measurements import measuring_parser, write_run

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
Work = dict[str, Any]
_SHARED = 220_000
"""Bytes of shared memory that a program may take on an H200."""


def shell(device: torch.device, side: int = 512) -> CoordinateSet:
    """Return the voxels within 1.5 of a sphere that nearly fills the grid."""
    axis = torch.arange(side, device=device, dtype=torch.float64) - (side - 1) / 2
    keys = []
    for x in range(side):
        distance = (axis[x] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
        keys.append(((distance - 210 / 512 * side).abs() <= 1.5).flatten().nonzero().squeeze(1) + x * side * side)
    return CoordinateSet(coords_of_keys(torch.cat(keys), side), side)


def rods(device: torch.device, side: int = 512, apart: int = 24) -> CoordinateSet:
    """Return rods of 2 by 2 voxels along all three axes."""
    keys = []
    for axis in range(3):
        steps = [torch.arange(side, device=device) if a == axis else None for a in range(3)]
        starts = torch.arange(4, side - 2, apart, device=device)
        across = torch.cat([starts, starts + 1])
        x, y, z = (across if s is None else s for s in steps)
        keys.append(((x[:, None, None] * side + y[:, None]) * side + z).flatten())
    return CoordinateSet(coords_of_keys(torch.unique(torch.cat(keys)), side), side)


def full(device: torch.device, side: int = 64) -> CoordinateSet:
    """Return a whole grid."""
    return CoordinateSet(coords_of_keys(torch.arange(side**3, device=device), side), side)


SHAPES: dict[str, Callable[..., CoordinateSet]] = {"shell": shell, "rods": rods, "full": full}


def milliseconds(run: Callable[[], Any], repeats: int = 7) -> float:
    """Return the median time of a call on the GPU, after one that isn't counted."""
    run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def difference(value: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of what is expected."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())


# --- measure ------------------------------------------------------------------------------------------------------

Convolve = Callable[[Tensor, Tensor, Tensor, CoordinateSet], Tensor]
"""Features, weight, bias and voxels to the result; what is kept of the voxels stands in their `derived`."""


def libraries() -> dict[str, Convolve]:
    """Return those that are installed, by name."""
    found: dict[str, Convolve] = {"ours": triton_backend.convolve, "torch": torch_backend.convolve}
    if spconv_backend.installed_package():
        found[spconv_backend.installed_package() or ""] = spconv_backend.convolve
    if find_spec("flex_gemm"):
        found["flex_gemm"] = _flex_gemm
    return found


def _flex_gemm(feats: Tensor, weight: Tensor, bias: Tensor, coordinates: CoordinateSet) -> Tensor:
    ops = import_module("flex_gemm.ops.spconv")
    kept = coordinates.derived("flex_gemm", lambda: [None])
    shape = torch.Size([coordinates.batch_size, weight.shape[0], *[coordinates.side] * 3])
    out, kept[0] = ops.sparse_submanifold_conv3d(feats, coordinates.coords, shape, weight, bias, kept[0])
    return out


def case(coordinates: CoordinateSet, channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return features, weight, bias and a gradient of the result."""
    generator = torch.Generator(coordinates.device).manual_seed(0)
    shapes = ((len(coordinates), channels), (channels, 3, 3, 3, channels), (channels,), (len(coordinates), channels))
    feats, weight, bias, grad = (
        torch.randn(s, device=coordinates.device, generator=generator).to(dtype) for s in shapes
    )
    weight /= (27 * channels) ** 0.5
    return feats.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), grad


def both(convolve: Convolve, coordinates: CoordinateSet, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Run forwards and backwards; return the result and the gradients."""
    feats, weight, bias, grad = tensors
    out = convolve(feats, weight, bias, coordinates)
    return [out.detach(), *torch.autograd.grad(out, [feats, weight, bias], grad)]


def exact(coordinates: CoordinateSet, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what `both` does, computed in float64 and kept in float32."""
    doubled = tuple(t.detach().double().requires_grad_(t.requires_grad) for t in tensors)
    return [t.float() for t in both(torch_backend.convolve, coordinates, doubled)]


def first_call(options: argparse.Namespace) -> None:
    """Print the seconds of the first forward and backward pass of a process, after one of PyTorch's own products."""
    device = torch.device("cuda")
    coordinates = full(device)
    tensors = case(coordinates, options.channels, DTYPES[options.dtype])
    (tensors[0] @ tensors[0].T[:, :8]).sum().item()
    start = time.perf_counter()
    both(libraries()[options.library], coordinates, tensors)
    torch.cuda.synchronize()
    print(time.perf_counter() - start)


def seconds_of_first_call(library: str, channels: int, dtype: str) -> float:
    """Return what `first_call` prints in a process of its own, with nothing compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "first", library, str(channels), dtype]
        done = subprocess.run(
            command, env=os.environ | {"TRITON_CACHE_DIR": folder}, capture_output=True, text=True, timeout=600
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def measured(name: str, convolve: Convolve, coordinates: CoordinateSet, tensors: tuple[Tensor, ...]) -> Work:
    """Return the times of a library, milliseconds."""
    feats, weight, bias, _ = tensors
    repeats = 3 if name == "torch" else 11

    def afresh() -> None:
        new = CoordinateSet._trusted(coordinates.coords, coordinates.side, coordinates.batch_size)
        convolve(feats, weight, bias, new)

    with torch.no_grad():
        forward = milliseconds(lambda: convolve(feats, weight, bias, coordinates), repeats)
        with_map = milliseconds(afresh, repeats)
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    passes = milliseconds(lambda: both(convolve, coordinates, tensors), repeats)
    return {
        "forward_ms": round(forward, 3),
        "both_ms": round(passes, 3),
        "map_ms": round(with_map - forward, 3),
        "memory_mb": round((torch.cuda.max_memory_allocated() - held) / 2**20),
    }


def floors(coordinates: CoordinateSet, channels: int, dtype: torch.dtype) -> Work:
    """Return the least a forward pass takes, milliseconds: its arithmetic, and its memory's traffic."""
    present = int((coordinates.neighbors() >= 0).sum())
    operations = 2 * present * channels**2
    moved = (2 * len(coordinates) * channels + 27 * channels**2) * dtype.itemsize
    return {"arithmetic_ms": round(operations / 790e9, 4), "memory_ms": round(moved / 4.3e9, 4)}


def measure(options: argparse.Namespace) -> None:
    """Measure every library at every width on every shape."""
    device = torch.device("cuda")
    end = time.perf_counter() + options.seconds
    for shape in options.shapes:
        coordinates = SHAPES[shape](device)
        neighbors = float((coordinates.neighbors() >= 0).sum() / len(coordinates))
        found: dict[str, Work] = {}
        for channels, dtype in itertools.product(options.widths, options.dtypes):
            if time.perf_counter() > end:
                break
            tensors = case(coordinates, channels, DTYPES[dtype])
            right = exact(coordinates, tensors)
            row = found[f"{channels} {dtype}"] = floors(coordinates, channels, DTYPES[dtype])
            for name, convolve in libraries().items():
                if name in options.without:
                    continue
                if name == "torch" and channels > 128:
                    continue
                values = both(convolve, coordinates, tensors)
                row[name] = {"off": [float(f"{difference(a, b):.2g}") for a, b in zip(values, right, strict=True)]}
                del values
                row[name] |= measured(name, convolve, coordinates, tensors)
                if options.first and shape == "full" and name != "torch":
                    row[name]["first_call_s"] = round(seconds_of_first_call(name, channels, dtype), 2)
                print(shape, channels, dtype, name, row[name], flush=True)
            del tensors, right
            write_run(options, {"voxels": len(coordinates), "neighbors": round(neighbors, 2), "widths": found}, shape)


def cpu(options: argparse.Namespace) -> None:
    """Time the backends of the CPU in turn."""
    device = torch.device("cpu")
    coordinates = shell(device, 128)
    maps = []
    for _ in range(options.repeats):
        fresh = CoordinateSet(coordinates.coords, coordinates.side)
        fresh.coarser()[0].neighbors()
        start = time.process_time()
        fresh.neighbors()
        maps.append(time.process_time() - start)
    found: dict[str, Any] = {}
    for channels in options.widths:
        tensors = case(coordinates, channels, torch.float32)
        right = exact(coordinates, tensors)
        runs: dict[str, Callable[[], Any]] = {}
        row = found[f"{channels} fp32"] = {}
        for name, backend in (("torch", torch_backend), ("numba", numba_backend)):
            values = both(backend.convolve, coordinates, tensors)
            row[name] = {"off": [float(f"{difference(a, b):.2g}") for a, b in zip(values, right, strict=True)]}
            forward = torch.no_grad()(partial(backend.convolve, *tensors[:3], coordinates))
            runs |= {
                f"{name} forward": forward,
                f"{name} both": partial(both, backend.convolve, coordinates, tensors),
            }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
        for _, (name, run) in itertools.product(range(options.repeats), runs.items()):
            start, spent = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - start, time.process_time() - spent))
        for name, pairs in times.items():
            backend_name, what = name.split()
            seconds, spent_seconds = zip(*pairs, strict=True)
            row[backend_name] |= {
                f"{what}_ms": round(1e3 * statistics.median(seconds), 1),
                f"{what}_processor_ms": round(1e3 * statistics.median(spent_seconds), 1),
            }
        print(channels, row, flush=True)
    neighbors = float((coordinates.neighbors() >= 0).sum() / len(coordinates))
    about = {"voxels": len(coordinates), "neighbors": round(neighbors, 2), "threads": torch.get_num_threads()}
    write_run(
        options, {**about, "map_processor_ms": round(1e3 * statistics.median(maps), 1), "widths": found}, "shell, cpu"
    )


# --- tune ---------------------------------------------------------------------------------------------------------


def candidates(widths: list[int], dtypes: list[str]) -> Iterator[Work]:
    """Yield ways to divide the work that fit a multiprocessor."""
    for c, dtype in itertools.product(widths, dtypes):
        terms = 2 if dtype == "fp32" else 1
        base = {"c": c, "dtype": dtype}
        yield from (base | {"kind": "rows"} | way for way in _rows(c, terms))
        yield from (base | {"kind": "weights"} | way for way in _weights(c, terms))


def _rows(c: int, terms: int) -> Iterator[Work]:
    for rows, out, inner, warps, stages in itertools.product(
        (64, 128, 256), (16, 32, 64, 128, 256), (16, 32, 64, 128), (2, 4, 8), (1, 2, 3, 4)
    ):
        if not min(c, 64) <= out <= c or not min(c, 32) <= inner <= c:
            continue
        if not 1024 <= rows * out // warps * (2 if c <= 32 else 1) <= 4096:
            continue
        if (rows + out) * inner * 2 * terms * stages > _SHARED:
            continue
        blocks = {"rows": rows, "out": out, "inner": inner, "warps": warps, "stages": stages}
        yield {"blocks": blocks}
        if c >= 128 and rows == 128:
            yield {"blocks": blocks, "grouped": True}


def _weights(c: int, terms: int) -> Iterator[Work]:
    out = min(c, 128)
    for rows, tall, warps, stages in itertools.product((32, 64, 128), (32, 64, 128, 256), (4, 8), (1, 2, 3)):
        inner = min(c, tall, 128)
        taps = tall // inner
        if tall * out // warps > 4096 // terms or taps > 8 or (tall + out) * rows * 2 * terms * stages > _SHARED:
            continue
        tiles = -(-27 // taps) * (c // inner) * (c // out)
        blocks = {"rows": rows, "out": out, "inner": inner, "taps": taps, "warps": warps, "stages": stages}
        yield from ({"blocks": blocks, "parts": p} for p in (8, 32, 128) if 500 <= tiles * p <= 5000)


def attempt(work: Work, tensors: tuple[Tensor, ...], coordinates: CoordinateSet) -> Callable[[], Tensor]:
    """Return what runs one way: the forward pass without a bias, or the gradient of the weight."""
    from sdf_vqvae.sparse.backends.convolution_triton import Blocks, convolve_rows, weight_gradient
    from sdf_vqvae.sparse.backends.halves_triton import operand

    feats, weight, _, grad = (t.detach() for t in tensors)
    rows, kernel, grads = (operand(t, 2) for t in (feats, weight, grad))
    blocks = Blocks(**work["blocks"])
    table, grouping = triton_backend.neighbor_table(coordinates), None
    if work["kind"] == "weights":
        return partial(weight_gradient, rows, grads, table, torch.float32, parts=work["parts"], blocks=blocks)
    if work.get("grouped"):
        order, table, taps = triton_backend.grouped(coordinates)
        grouping = order, taps
    return partial(
        convolve_rows, rows, kernel, None, table, grouping, mirrored=False, dtype=feats.dtype, blocks=blocks
    )


def prepare(work: Work) -> tuple[Work, float, str]:
    """Compile one way in a process of its own, by running it on few rows; return the seconds, and what went wrong."""
    from triton.errors import TritonError

    coordinates = full(torch.device("cuda"), 16)
    start = time.perf_counter()
    try:
        attempt(work, case(coordinates, work["c"], DTYPES[work["dtype"]]), coordinates)()
        torch.cuda.synchronize()
    except (TritonError, RuntimeError) as error:
        return work, time.perf_counter() - start, f"{type(error).__name__}: {error}"[:200]
    return work, time.perf_counter() - start, ""


def compiled(work: list[Work], seconds: float) -> list[Work]:
    """Return those that compile within a time, in the order of `work`."""
    end = time.perf_counter() + seconds
    done: dict[str, Work] = {}
    with multiprocessing.get_context("spawn").Pool(max(1, min(14, os.cpu_count() or 1))) as pool:
        results = pool.imap_unordered(prepare, work)
        while len(done) < len(work) and time.perf_counter() < end:
            try:
                one, took, error = results.next(timeout=end - time.perf_counter())
            except multiprocessing.TimeoutError:
                break
            done[json.dumps(one)] = one | {"compile_s": round(took, 2)} | ({"error": error} if error else {})
        pool.terminate()
    return [done[json.dumps(one)] for one in work if json.dumps(one) in done]


def tune(options: argparse.Namespace) -> None:
    """Try the candidates on the shell; write every time as it comes, and the best at the end."""
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    coordinates = shell(torch.device("cuda"))
    ways = compiled(list(candidates(options.widths, options.dtypes)), 0.5 * options.seconds)
    found: list[Work] = []
    with (options.out / "sparse_convolution_tune.jsonl").open("a", encoding="utf-8") as log:
        for (c, dtype), group in itertools.groupby(ways, key=lambda w: (w["c"], w["dtype"])):
            tensors = case(coordinates, c, DTYPES[dtype])
            right = exact(coordinates, tensors)
            no_bias = right[0] - tensors[2].detach().float()
            for way in group:
                if "error" not in way and time.perf_counter() - started < options.seconds:
                    run = attempt(way, tensors, coordinates)
                    expected = no_bias if way["kind"] == "rows" else right[2].flatten(1, 3)
                    way |= {"off": difference(run(), expected), "ms": round(milliseconds(run), 4)}
                    found.append(way)
                log.write(json.dumps(way) + "\n")
                log.flush()
            del tensors, right, no_bias
    best: dict[str, list[Work]] = {}
    for way in sorted(found, key=lambda w: w["ms"]):
        entries = best.setdefault(f"{way['kind']} {way['c']} {way['dtype']}", [])
        if len(entries) < 3:
            entries.append({k: way[k] for k in ("ms", "off", "blocks", "parts", "grouped", "compile_s") if k in way})
    write_run(options, {"tried": len(ways), "timed": len(found), "best": best}, "tune")
    for name, entries in best.items():
        print(name, *entries, sep="\n  ")


def main() -> None:
    """Run what the command line asks for."""
    parser = measuring_parser(__doc__, __file__)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="time libraries beside each other")
    measuring.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    measuring.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    measuring.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16"])
    measuring.add_argument("--without", nargs="+", default=[], help="libraries that are left out")
    measuring.add_argument("--first", action="store_true", help="also the first call of a process, nothing compiled")
    measuring.add_argument("--seconds", type=float, default=600, help="begin nothing after that (600)")
    measuring.set_defaults(do=measure)
    first = commands.add_parser("first", help="one library's first call, in seconds")
    first.add_argument("library")
    first.add_argument("channels", type=int)
    first.add_argument("dtype", choices=DTYPES)
    first.set_defaults(do=first_call)
    on_cpu = commands.add_parser("cpu", help="time the CPU's backends in turn")
    on_cpu.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128])
    on_cpu.add_argument("--repeats", type=int, default=7)
    on_cpu.set_defaults(do=cpu)
    tuning = commands.add_parser("tune", help="try how the kernels can divide their work")
    tuning.add_argument("--seconds", type=float, default=240, help="half for compiling, begin nothing after (240)")
    tuning.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128, 16, 256])
    tuning.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16", "fp32"])
    tuning.set_defaults(do=tune)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
