"""What a server is told: where it listens, whom it serves, and what a request may take. Opens nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from sdf_vqvae.utils.settings import Bounds, Count, Option, Positive, Rate, Share, check
from vae_qwen3vl.candidates.settings import CandidateSettings


@dataclass(frozen=True, kw_only=True)
class ShapeLimits:
    """What one mesh may take."""

    max_faces: Positive = 1_000_000
    """Triangles of a mesh, all instances counted."""
    max_voxels: Positive = 1_000_000
    """Voxels of a mesh's field."""
    max_codes: Positive = 8192
    """Codes of an object."""
    mesh_seconds: Rate = 30.0
    """Time in which a mesh is read and voxelized; then its process is killed."""
    mesh_memory: Annotated[int, Bounds(least=256)] = 4096
    """MiB that a process may take for a mesh, on Linux."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)


@dataclass(frozen=True, kw_only=True)
class ScanLimits:
    """What one scan may take."""

    max_scan_voxels: Positive = 300_000_000
    """Voxels of a scan."""
    scan_seconds: Rate = 120.0
    """Time in which a scan is read, and an organ's surface made; then its process is killed."""
    scan_memory: Annotated[int, Bounds(least=256)] = 6144
    """MiB that a process may take for a scan, on Linux."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where a server listens, whom it serves, and what a request may take; one mesh's limits are `ShapeLimits`."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all of this machine's."""
    port: Annotated[int, Bounds(least=0, most=65535)] = 8000
    """Port; 0 takes a free one, which is printed."""
    model_name: str | None = None
    """What requests call the model (default: the language model's name)."""
    api_key_file: Path | None = None
    """Keys that are let in, a line each; VAE_QWEN3VL_API_KEYS holds them too, with commas between."""
    allow_url_hosts: Annotated[tuple[str, ...], Option(metavar="HOST")] = ()
    """Hosts whose http(s) addresses are fetched for a mesh; by default none, and data: alone is read."""
    files_dir: Annotated[Path | None, Option(metavar="DIR")] = None
    """Folder of uploads, kept over restarts (default: a temporary one); on a Ray cluster, one that all nodes see."""
    index: Annotated[Path | None, Option(metavar="INDEX")] = None
    """Index of shapes for /v1/search, made by `vae-qwen3vl index`."""

    max_body: Positive = 64
    """MiB of a request's body."""
    max_bodies: Positive = 256
    """MiB of all bodies that are being received or worked on; more is asked to come again."""
    max_requests: Positive = 512
    """Requests at a time; more are asked to come again."""
    max_objects: Positive = 8
    """Objects of a chat."""
    max_messages: Positive = 64
    """Messages of a chat."""
    max_text: Positive = 32_768
    """Characters of a chat's text, all messages together."""
    max_tokens: Positive = 512
    """Tokens of an answer."""
    max_candidates: Count = 0
    """Answers that a request may have drawn, to be given the best one (its field `candidates`); 0 draws none."""
    shape_weight: Share = CandidateSettings.shape_weight
    """What chooses among them, see `describe`."""
    max_batch: Positive = 32
    """Chats that are answered together; 1 turns batching off."""
    max_waiting: Positive = 256
    """Chats that wait for a place; more are asked to come again."""
    max_reading: Positive = 256
    """Meshes that wait to be read; more are asked to come again."""
    mesh_workers: Positive = 2
    """Meshes that are read at a time, each in a process of its own."""
    request_seconds: Rate = 300.0
    """Time of a request, from its head to the end of its answer."""
    idle_seconds: Rate = 20.0
    """Time that a connection may take to say what it wants, and to take what is left of an answer."""
    shutdown_seconds: Rate = 60.0
    """After SIGTERM, time in which what runs is finished."""

    files_space: Positive = 1024
    """MiB of all uploads."""
    files_count: Positive = 1000
    """Uploads that are kept."""
    files_hours: Rate = 24.0
    """Hours after which an upload is deleted."""

    engine: Literal["local", "ray"] = "local"
    """One process here, or replicas by Ray Serve."""
    replicas: Positive = 1
    """Replicas of the model, with --engine ray."""

    def __post_init__(self) -> None:
        """Check all values; the messages name the options."""
        check(self, by_flag=True)
        if self.max_body > self.max_bodies:
            raise ValueError(f"--max_bodies {self.max_bodies} must be at least --max_body {self.max_body}")
        if self.engine == "local" and self.replicas > 1:
            raise ValueError("--replicas needs --engine ray")
