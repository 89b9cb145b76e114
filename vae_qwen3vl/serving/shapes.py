"""A mesh, or an organ of a scan, becomes codes: parsed and voxelized in a process of its own, encoded here.

Where what happens: files are parsed and voxelized in processes with limits of memory and time, since that is where
a hostile file can do harm; what comes back is a field whose numbers are checked, and the tokenizer's encoder reads it
in this process, where its weights are once, on a GPU where there is one.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import multiprocessing
import queue
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.codes.pipeline import check_codes, encode_field
from sdf_vqvae.codes.shape_codes import CODES_SUFFIX, ShapeCodes
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.geometry.formats.registry import READABLE
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.progress import waiting
from vae_qwen3vl.serving.mesh_worker import (
    ABOUT,
    ANSWERED,
    ARRAYS,
    OVERDUE,
    READY,
    TOO_LARGE,
    FieldMaker,
    Task,
    work,
)
from vae_qwen3vl.serving.settings import ScanLimits, ShapeLimits

logger = logging.getLogger(__name__)

SUFFIXES = (*READABLE, CODES_SUFFIX)
"""Kinds of files that are read, by suffix."""
_SECONDS_TO_START = 300.0  # the first process of a new installation compiles what the others find in a cache
_SECONDS_TO_SAY = 30.0
"""What a process may take beyond the time of a file until it says how that ended."""


class ShapeTooLargeError(ValueError):
    """A mesh passes a limit of this server; the message says which, and the remedy."""


class ShapeReader:
    """Reads meshes, codes files and scans of strangers. Safe to call from several threads.

    Args:
        vae: the tokenizer; its encoder runs in the calling thread, one at a time.
        limits: what one mesh may take.
        scan_limits: what one scan may take.
        workers: meshes that are read at a time.
        threshold_factor: see `voxelize_for`.
        cached: objects whose codes are kept, by the hash of the file; a file that comes again isn't read again.
    """

    def __init__(
        self,
        vae: SparseSDFVQVAE,
        limits: ShapeLimits | None = None,
        scan_limits: ScanLimits | None = None,
        *,
        workers: int = 1,
        threshold_factor: float | None = None,
        cached: int = 256,
    ) -> None:
        self.vae, self.limits, self.scan_limits = vae, limits or ShapeLimits(), scan_limits or ScanLimits()
        self.lost = 0
        """Files so far whose process was killed, or died."""
        self._encoding = threading.Lock()
        self._recent = _Recent(cached)
        self._closed = False
        maker = FieldMaker(config=vae.config, threshold_factor=threshold_factor)
        self._workers = [_Worker(maker) for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            worker.start()
            self._idle.put(worker)
        atexit.register(self.close)  # before multiprocessing waits for its children

    def wait_until_ready(self) -> None:
        """Return when all processes can read. Raises an OSError where one can't be started."""
        with waiting("starting the processes that read meshes"):
            for worker in self._workers:
                worker.wait_until_ready()

    def read(self, data: bytes, suffix: str, up: str | None = None) -> ShapeCodes:
        """Return the codes of a mesh file, or of a codes file.

        Args:
            data: the file's content.
            suffix: its kind, one of `SUFFIXES`.
            up: the axis of a mesh that points up, or `auto`; None as `up_of` finds it.

        Raises:
            ShapeTooLargeError: it passes a limit.
            ValueError: it can't be read; the message says why.
            OSError: no process can be started.
        """
        if suffix not in SUFFIXES:
            raise ValueError(f"{suffix or 'a file without a suffix'} is not read: send one of {', '.join(SUFFIXES)}")
        codes = self.known(data, suffix, up)
        if codes is None:
            codes = self._read(data, suffix, up)
            self._recent.put(_key(data, suffix, up), codes)
        return codes

    def known(self, data: bytes, suffix: str, up: str | None = None) -> ShapeCodes | None:
        """Return what `read` would, where it was read not long ago; else None, without waiting."""
        return self._recent.get(_key(data, suffix, up))

    def close(self) -> None:
        """End the processes; what they read just now is refused."""
        self._closed = True
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.kill()

    def organs(self, label: Path, names: Path | None = None) -> dict[str, int]:
        """Return the organs of a volume of labels and the number of their voxels, the largest first.

        Args:
            label: NIfTI file.
            names: JSON with the names of its labels.

        Raises:
            ShapeTooLargeError: it passes a limit.
            ValueError: the files can't be used, or no voxel has a label.
            OSError: a file is gone, or no process can be started.
        """
        about, _ = self._scan(label, names, None)
        return about["organs"]

    def organ(self, label: Path, names: Path | None, organ: str) -> tuple[trimesh.Trimesh, ShapeCodes]:
        """Return the surface of an organ, in millimetres, and its codes.

        Raises:
            ShapeTooLargeError: it passes a limit.
            ValueError: the files can't be used, there is no such organ, or its label has no surface.
            OSError: a file is gone, or no process can be started.
        """
        about, (sdf, index, vertices, faces) = self._scan(label, names, organ)
        corners = np.frombuffer(bytearray(vertices), np.float64).reshape(-1, 3)
        mesh = trimesh.Trimesh(corners, _rows(faces).numpy(), process=False)
        return mesh, self._from_field(about, sdf, index)

    def _scan(self, label: Path, names: Path | None, organ: str | None) -> tuple[dict[str, Any], list[bytes]]:
        limits = self.scan_limits
        with _own_folder() as folder:
            suffix = ".nii.gz" if label.suffix.lower() == ".gz" else ".nii"
            path = Path(shutil.copyfile(label, folder / f"scan{suffix}"))
            if names is not None:  # only this one has a meaning as a name
                name = "dataset.json" if names.name == "dataset.json" else "names.json"
                names = Path(shutil.copyfile(names, folder / name))
            return self._asked(
                Task(
                    path=str(path),
                    limits=asdict(self.limits),
                    seconds=limits.scan_seconds,
                    memory=limits.scan_memory,
                    scan_voxels=limits.max_scan_voxels,
                    names=None if names is None else str(names),
                    organ=organ,
                )
            )

    def _read(self, data: bytes, suffix: str, up: str | None) -> ShapeCodes:
        limits = self.limits
        with _own_folder() as folder:
            path = folder / f"mesh{suffix}"
            path.write_bytes(data)
            about, arrays = self._asked(
                Task(
                    path=str(path),
                    limits=asdict(limits),
                    seconds=limits.mesh_seconds,
                    memory=limits.mesh_memory,
                    up=up,
                )
            )
        return self._from_codes(about, *arrays) if suffix == CODES_SUFFIX else self._from_field(about, *arrays)

    def _asked(self, task: Task) -> tuple[dict[str, Any], list[bytes]]:
        """Have a file read: return what JSON has of it, and its arrays. Raises what `read` does."""
        folder = Path(task.path).parent
        worker = self._idle.get()
        try:
            end = worker.ask(task)
        finally:
            self._idle.put(worker)
        if end != ANSWERED:
            self.lost += 1
            raise _lost(end, task)
        about = json.loads((folder / ABOUT).read_bytes())
        if "refused" in about:
            kind = ShapeTooLargeError if about["refused"] == TOO_LARGE else ValueError
            raise kind(about["reason"])
        return about, [path.read_bytes() for path in map(folder.joinpath, ARRAYS) if path.exists()]

    def _from_field(self, about: dict[str, Any], sdf: bytes, index: bytes) -> ShapeCodes:
        field = SparseSDF(
            sdf=torch.from_numpy(np.frombuffer(bytearray(sdf), np.float32)),
            index=_rows(index),
            field=self.vae.config.field,
            center=tuple(about["center"]),
            scale=about["scale"],
            watertight=about["watertight"],
            sign_method=about["sign_method"],
            up=about["up"],
            up_from=about["up_from"],
        )
        with self._encoding, torch.inference_mode():
            codes = encode_field(self.vae, field)
        if codes.count > self.limits.max_codes:
            raise ShapeTooLargeError(
                f"the object has {codes.count:,} codes, more than the {self.limits.max_codes:,} that are taken "
                "here: send a simpler mesh"
            )
        return codes

    def _from_codes(self, about: dict[str, Any], codes: bytes, coords: bytes) -> ShapeCodes:
        shape = ShapeCodes(
            codes=torch.from_numpy(np.frombuffer(bytearray(codes), np.int32)).view(about.pop("codes")),
            coords=_rows(coords),
            **about | {"center": tuple(about["center"])},
        )
        check_codes(self.vae, shape)
        return shape


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Make a folder for one file: alone in it, it finds no other to name."""
    with tempfile.TemporaryDirectory(prefix="vae-qwen3vl-") as folder:
        yield Path(folder)


def _lost(end: bytes, task: Task) -> ValueError:
    if end == OVERDUE:
        return ShapeTooLargeError(f"reading the {task.what} takes more than {task.seconds:g} s: {task.remedy}")
    return ValueError("the file ends the process that reads it: it is damaged, or needs too much memory")


def _key(data: bytes, suffix: str, up: str | None) -> bytes:
    return hashlib.sha256(f"{suffix} {up}\n".encode() + hashlib.sha256(data).digest()).digest()


def _rows(data: bytes) -> Tensor:  # [N, 3]
    return torch.from_numpy(np.frombuffer(bytearray(data), np.int32).reshape(-1, 3))


class _Recent:
    """The codes that were asked for last, by key."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._items: OrderedDict[bytes, ShapeCodes] = OrderedDict()

    def get(self, key: bytes) -> ShapeCodes | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: bytes, codes: ShapeCodes) -> None:
        with self._lock:
            self._items[key] = codes
            while len(self._items) > self._most:
                self._items.popitem(last=False)


class _Worker:
    """A process that has files read, seen from outside. Whoever has it asks it alone."""

    def __init__(self, maker: FieldMaker) -> None:
        self._maker = maker
        # They are forked from a process without threads that has the libraries loaded, and share that memory.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([work.__module__])
        self._process: BaseProcess | None = None
        self._ready = False

    def start(self) -> None:
        """Start the process, or the successor of one."""
        self.kill()
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=work, args=(self._maker, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ready = False

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def wait_until_ready(self) -> None:
        """Return when it can read. Raises an OSError where it can't be started."""
        if self._process is None:
            raise OSError("the server is closing")
        if self._ready:
            return
        self._ready = self._said(_SECONDS_TO_START) == READY
        if not self._ready:
            raise OSError("a process that reads meshes can't be started; the log says why")

    def ask(self, task: Task) -> bytes:
        """Have a file read, and return how its process ended. Raises an OSError as `wait_until_ready` does."""
        self.wait_until_ready()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send_bytes(json.dumps(asdict(task)).encode())
        end = self._said(task.seconds + _SECONDS_TO_SAY)
        if not end and self._process is not None:  # it was killed itself
            logger.warning("a process that reads meshes was lost; another one takes its place")
            self.start()
        return end

    def _said(self, seconds: float) -> bytes:
        """Return its next message; nothing where it has none in time, or is no more."""
        with contextlib.suppress(EOFError, OSError):
            if self._pipe.poll(seconds):
                return self._pipe.recv_bytes(16)
        return b""
