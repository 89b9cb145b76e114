"""Processes that read the files of strangers: a mesh, or an organ of a scan, becomes a field within limits.

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
import sys
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
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.formats.registry import WRITABLE
from sdf_vqvae.geometry.mesh import write_mesh
from sdf_vqvae.geometry.up import UP_IN_SCANS
from sdf_vqvae.utils.errors import brief, is_out_of_memory
from sdf_vqvae.utils.runtime import release_memory
from vae_qwen3vl.serving.settings import ShapeLimits

TOO_LARGE, UNREADABLE = "too_large", "unreadable"
"""Why a file is refused: a limit of this server, or the file itself."""
ABOUT, ARRAYS = "about.json", ("first.bin", "second.bin", "third.bin", "fourth.bin")
"""Files of an answer: what JSON has, and arrays. These are a field's float32 distances or codes, and int32 `[N, 3]`;
of an organ also its mesh, float64 `[V, 3]` and int32 `[F, 3]`."""
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked about a file, in plain words and numbers."""

    path: str
    """Of the file; the answer is left beside it."""
    limits: dict[str, Any]
    """`ShapeLimits`, of what comes out."""
    seconds: float
    """Time that it may take."""
    memory: int
    """MiB that it may take."""
    up: str | None = None
    """See `up_for`."""
    scan_voxels: int | None = None
    """Where it is a scan, how many voxels it may have."""
    names: str | None = None
    """File of the names of a scan's labels."""
    organ: str | None = None
    """What is wanted of a scan; None asks which organs there are."""

    @property
    def what(self) -> str:
        """What is read, for words."""
        return "mesh" if self.scan_voxels is None else "scan"

    @property
    def remedy(self) -> str:
        """What to do where it takes too much."""
        return "send one with fewer triangles" if self.scan_voxels is None else "crop it, or take larger voxels"


def work(maker: FieldMaker, pipe: Connection) -> None:
    """Have files read, one at a time, until the other end of the pipe falls silent.

    A message is a `Task` as JSON. It is answered by how the file's process ended. An error
    that no damaged file should raise ends that process, with its traceback in the log.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the server's, which closes the pipe when it has finished
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # also because a fork would lose the others
    _read_one_of_each_kind(maker)
    release_memory()  # a third of it was for what compiled
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        pipe.send_bytes(READY)
        while True:
            task = Task(**json.loads(pipe.recv_bytes()))
            child = os.fork()
            if child == 0:
                break
            pipe.send_bytes(_end_of(child, task.seconds))
        pipe.close()
        _bound(task)
        _write_answer(_answer(maker, task), Path(task.path).parent)


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


def _answer(maker: FieldMaker, task: Task) -> tuple[Any, ...]:
    """Return what a file holds, as what JSON has and tensors; or why it is refused."""
    path, limits = Path(task.path), ShapeLimits(**task.limits)
    try:
        if task.scan_voxels is not None:
            return _scan(maker, limits, task, task.scan_voxels)
        return _codes_of(path, limits) if path.suffix == CODES_SUFFIX else _field_of(maker, limits, path, task.up)
    except (ValueError, RuntimeError, MemoryError, ImportError) as error:
        if is_out_of_memory(error) or (error.__cause__ is not None and is_out_of_memory(error.__cause__)):
            reason = f"reading the {task.what} takes more than {task.memory:,} MiB: {task.remedy}"
            return ({"refused": TOO_LARGE, "reason": reason},)
        if isinstance(error, RuntimeError):
            raise
        kind = TOO_LARGE if isinstance(error, _TooLargeError) else UNREADABLE
        reason = brief(ValueError(str(error).replace(f"{path.parent}{os.sep}", "").replace(path.name, "the file")))
        return ({"refused": kind, "reason": reason},)


def _field_of(
    maker: FieldMaker, limits: ShapeLimits, path: Path, up: str | None
) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    shape = load_shape(path)
    if isinstance(shape, trimesh.Trimesh):
        _check("triangles", len(shape.faces), limits.max_faces, "simplify it, or send its codes")
    voxels = field_for(maker, shape, threshold_factor=maker.threshold_factor, up=up_for(path, shape, up))
    return _plain(voxels, limits)


def _plain(voxels: SparseSDF, limits: ShapeLimits) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
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


def _scan(maker: FieldMaker, limits: ShapeLimits, task: Task, most_voxels: int) -> tuple[Any, ...]:
    from vae_qwen3vl.serving.scans import organs_of, surface_of_organ, voxels_of

    path, names = Path(task.path), None if task.names is None else Path(task.names)
    _check("voxels", voxels_of(path), most_voxels, task.remedy, "scan")
    if task.organ is None:
        return ({"organs": organs_of(path, names)},)
    mesh = surface_of_organ(path, names, task.organ)
    _check("triangles", len(mesh.faces), limits.max_faces, "take a smaller part of it")
    field = field_for(maker, mesh, threshold_factor=maker.threshold_factor, up=UP_IN_SCANS)
    vertices, faces = torch.from_numpy(mesh.vertices.astype("float64")), torch.from_numpy(mesh.faces.astype("int32"))
    return *_plain(field, limits), vertices, faces


def _codes_of(path: Path, limits: ShapeLimits) -> tuple[dict[str, Any], torch.Tensor, torch.Tensor]:
    codes = ShapeCodes.load(path)
    _check("codes", codes.count, limits.max_codes, "send a smaller object")
    about = {
        "latent_resolution": codes.latent_resolution,
        "data_resolution": codes.data_resolution,
        "center": codes.center,
        "scale": codes.scale,
        "vae_hash": codes.vae_hash,
        "up": codes.up,
        "up_from": codes.up_from,
        "codes": list(codes.codes.shape),
    }
    return about, codes.codes.contiguous(), codes.coords.contiguous()


class _TooLargeError(ValueError):
    """A limit of this server."""


def _check(what: str, count: int, most: int, remedy: str, whole: str = "object") -> None:
    if count > most:
        raise _TooLargeError(
            f"the {whole} has {count:,} {what}, more than the {most:,} that are taken here: {remedy}"
        )


def _read_one_of_each_kind(maker: FieldMaker) -> None:
    """Read a small open mesh in each format, so that nothing is compiled while somebody waits or time is measured."""
    sphere = trimesh.creation.icosphere(2)
    sphere.update_faces(sphere.triangles_center[:, 2] < 0.5)
    with tempfile.TemporaryDirectory() as folder:
        for suffix in WRITABLE:
            path = Path(folder) / f"sphere{suffix}"
            write_mesh(path, sphere)
            _answer(maker, Task(path=str(path), limits={}, seconds=math.inf, memory=0))


def _bound(task: Task) -> None:
    """Let this process take no more than its share of memory, write no large file, leave no core, and die first."""
    limits = ShapeLimits(**task.limits)
    most_written = 12 * max(limits.max_voxels, limits.max_codes, 2 * limits.max_faces)
    # Whoever measures the time may be killed; then the processor's time ends it.
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: most_written}
    bounds[resource.RLIMIT_CPU] = math.ceil(time.process_time() + task.seconds) + 1
    if (_PROCESS / "statm").is_file():
        here = int((_PROCESS / "statm").read_text().split()[0]) * resource.getpagesize()
        bounds[resource.RLIMIT_AS] = here + task.memory * 2**20
    sys.dont_write_bytecode = True  # of a module that does not fit Python would keep the first bytes, and read them
    for what, most in bounds.items():
        resource.setrlimit(what, (most, most))
    with contextlib.suppress(OSError):
        (_PROCESS / "oom_score_adj").write_text("1000")
