"""Processes that read the meshes of strangers: a file becomes a field, or codes, within limits of memory and time.

A process that has everything compiled and loaded forks a child for each file, which reads it, leaves its answer
beside it and ends. So a file that runs amok takes its own process with it and nothing else, and no memory adds up.
Answers are JSON and plain numbers: nothing that a reader could turn into code. Knows nothing of the server; `shapes`
asks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import trimesh

from sdf_vqvae.codes.pipeline import field_for, load_shape, up_for
from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes
from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.geometry.formats.registry import WRITABLE
from sdf_vqvae.geometry.mesh import write_mesh
from sdf_vqvae.utils.errors import brief, is_out_of_memory
from vae_qwen3vl.serving.settings import ShapeLimits

TOO_LARGE, UNREADABLE = "too_large", "unreadable"
"""Why a file is refused: a limit of this server, or the file itself."""
ABOUT, ARRAYS = "about.json", ("first.bin", "second.bin")
"""Files of an answer: what JSON has, and two arrays (a field's float32 distances or codes; int32 `[N, 3]`)."""
READY, ANSWERED, OVERDUE, DIED = b"ready", b"answered", b"overdue", b"died"
"""What is said through the pipe: that all is loaded, and how the process of a file ended."""
_PROCESS = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class FieldMaker:
    """What is needed of a tokenizer to make the fields that it reads (a `FieldReader`)."""

    config: VAEConfig
    threshold_factor: float | None = None
    """See `voxelize_for`."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def work(maker: FieldMaker, pipe: Connection) -> None:
    """Have files read, one at a time, until the other end of the pipe falls silent.

    A message is JSON: the file, its `--up` and the limits. It is answered by how the file's process ended. An error
    that no damaged file should raise ends that process, with its traceback in the log.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server's, which closes the pipe when it has finished
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # also because a fork would lose the others
    _read_one_of_each_kind(maker)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send_bytes(READY)
        while True:
            asked = json.loads(pipe.recv_bytes())
            path, limits = Path(asked["path"]), ShapeLimits(**asked["limits"])
            child = os.fork()
            if child == 0:
                break
            pipe.send_bytes(_end_of(child, limits.mesh_seconds))
        pipe.close()
        _bound(limits)
        _write_answer(_answer(maker, limits, path, asked["up"]), path.parent)


def _end_of(child: int, seconds: float) -> bytes:
    """Wait until a process has ended, or its time is over, and say which."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return ANSWERED if status == 0 else DIED
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return OVERDUE
        time.sleep(0.002)


def _write_answer(answer: tuple[Any, ...], folder: Path) -> None:
    about, *arrays = answer
    for name, array in zip(ARRAYS, arrays, strict=False):  # a refusal has none
        (folder / name).write_bytes(array.numpy().tobytes())
    (folder / ABOUT).write_text(json.dumps(about))


def _answer(maker: FieldMaker, limits: ShapeLimits, path: Path, up: str | None) -> tuple[Any, ...]:
    """Return what a file holds, as what JSON has and two tensors; or why it is refused."""
    try:
        return _codes_of(path, limits) if path.suffix == CODES_SUFFIX else _field_of(maker, limits, path, up)
    except (ValueError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error) or (error.__cause__ is not None and is_out_of_memory(error.__cause__)):
            reason = f"reading the mesh takes more than {limits.mesh_memory:,} MiB: send one with fewer triangles"
            return ({"refused": TOO_LARGE, "reason": reason},)
        if not isinstance(error, ValueError):
            raise
        kind = TOO_LARGE if isinstance(error, _TooLargeError) else UNREADABLE
        reason = brief(ValueError(str(error).replace(str(path), "the file")))
        return ({"refused": kind, "reason": reason},)


def _field_of(
    maker: FieldMaker, limits: ShapeLimits, path: Path, up: str | None
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    shape = load_shape(path)
    if isinstance(shape, trimesh.Trimesh):
        _check("triangles", len(shape.faces), limits.max_faces, "simplify it, or send its codes")
    voxels = field_for(maker, shape, threshold_factor=maker.threshold_factor, up=up_for(path, shape, up))
    _check("voxels near its surface", len(voxels.sdf), limits.max_voxels, "send a simpler mesh, or its codes")
    about = {
        "center": voxels.center,
        "scale": voxels.scale,
        "watertight": voxels.watertight,
        "sign_method": voxels.sign_method,
        "up": voxels.up,
        "up_from": voxels.up_from,
    }
    return about, voxels.sdf.float().contiguous(), voxels.index.to(torch.int32).contiguous()


def _codes_of(path: Path, limits: ShapeLimits) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    codes = ShapeCodes.load(path)
    _check("codes", len(codes.codes), limits.max_codes, "send a smaller object")
    about = {
        "latent_resolution": codes.latent_resolution,
        "data_resolution": codes.data_resolution,
        "center": codes.center,
        "scale": codes.scale,
        "vae_hash": codes.vae_hash,
        "up": codes.up,
        "up_from": codes.up_from,
    }
    return about, codes.codes.contiguous(), codes.coords.contiguous()


class _TooLargeError(ValueError):
    """A limit of this server."""


def _check(what: str, count: int, most: int, remedy: str) -> None:
    if count > most:
        raise _TooLargeError(f"the object has {count:,} {what}, more than the {most:,} that are taken here: {remedy}")


def _read_one_of_each_kind(maker: FieldMaker) -> None:
    """Read a small open mesh in each format, so that nothing is compiled while somebody waits or time is measured."""
    sphere = trimesh.creation.icosphere(2)
    sphere.update_faces(sphere.triangles_center[:, 2] < 0.5)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in WRITABLE:
            path = Path(folder) / f"sphere{suffix}"
            write_mesh(path, sphere)
            _answer(maker, ShapeLimits(), path, None)


def _bound(limits: ShapeLimits) -> None:
    """Let this process take no more than its share of memory, write no large file, leave no core, and die first."""
    most_written = 12 * max(limits.max_voxels, limits.max_codes)
    # Whoever measures the time may be killed; then the processor's time ends it.
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: most_written}
    bounds[resource.RLIMIT_CPU] = math.ceil(time.process_time() + limits.mesh_seconds) + 1
    if (_PROCESS / "statm").is_file():
        here = int((_PROCESS / "statm").read_text().split()[0]) * resource.getpagesize()
        bounds[resource.RLIMIT_AS] = here + limits.mesh_memory * 2**20
    for what, most in bounds.items():
        resource.setrlimit(what, (most, most))
    with contextlib.suppress(OSError):
        (_PROCESS / "oom_score_adj").write_text("1000")
