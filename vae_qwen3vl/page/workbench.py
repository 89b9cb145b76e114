"""All that a person does with a shape on the page, as calls: read it, encode it, ask about it, rebuild it.

Knows nothing of browsers: the page wires these calls to what a person clicks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import trimesh

from sdf_vqvae.codes.pipeline import decode_codes, encode_field, field_for, surface_of, up_for
from sdf_vqvae.codes.shape_codes import ShapeCodes
from sdf_vqvae.geometry.mesh import NormalizedMesh, load_mesh, normalize_mesh
from sdf_vqvae.geometry.metrics.scores import GroundTruth, ReconstructionScore, unit_transform
from sdf_vqvae.geometry.metrics.surface_distance import distance_to_surface, twice_areas, with_area
from sdf_vqvae.geometry.up import UP_IN_SCANS, Up
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from vae_qwen3vl.language import DEFAULT_PROMPT
from vae_qwen3vl.page.views import code_colors
from vae_qwen3vl.serving.scans import organs_of, surface_of_organ

if TYPE_CHECKING:
    from vae_qwen3vl.generation.engine import Engine
    from vae_qwen3vl.search.shape_index import Hit, ShapeIndex
    from vae_qwen3vl.serving.shapes import ShapeReader

_SAMPLES = 20_000
"""Points on each surface that a score is measured with."""
_MOST_TURNS = 12
"""Of a chat, so many of the last are read again."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused, so that one visitor can't take all memory."""

    faces: int = 1_000_000
    tokens: int = 160
    """Of an answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """An object as it came."""

    name: str
    mesh: trimesh.Trimesh
    """In its own units, place and axes."""
    normalized: NormalizedMesh
    up: Up
    unit: str = ""
    """Of its coordinates, where that is known: mm for scans."""
    codes: ShapeCodes | None = None
    """Where reading it came to them already."""
    seconds: float = 0.0
    """That they took."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A volume with labels."""

    label: Path
    names: Path | None
    """File of the names of its labels."""
    organs: Mapping[str, int]
    """Name -> number of voxels, the largest first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shape:
    """An object with its codes."""

    source: Source
    codes: ShapeCodes
    seconds: float
    """That voxels and codes took."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rebuilt:
    """An object made of its codes again."""

    mesh: trimesh.Trimesh
    """In the source's units, place and axes."""
    resolution: int
    score: ReconstructionScore
    distance: npt.NDArray[np.float64]
    """From each vertex to the source's surface, as a share of its longest side. `[V]`"""
    holes: float
    """Share of its edges that have one face only."""
    seconds: float


class Workbench:
    """A tokenizer and a language model, and what is done with them.

    Args:
        vae: the tokenizer.
        engine: answers questions; it is started and closed by the caller.
        limits: what is refused.
        reader: reads files in processes of their own, so that a hostile one does no harm; None reads them here.
        index: where like shapes are looked for; None looks nowhere.
    """

    def __init__(
        self,
        vae: SparseSDFVQVAE,
        engine: Engine,
        limits: Limits = Limits(),
        *,
        reader: ShapeReader | None = None,
        index: ShapeIndex | None = None,
    ) -> None:
        self.vae, self.engine, self.limits, self.reader, self.index = vae, engine, limits, reader, index
        self.prompt = engine.model.prompt or DEFAULT_PROMPT
        self.colors = code_colors(vae.vq.embeddings.weight)
        """Of each entry of the codebook, linear RGB `[K, 3]`."""

    def read(self, path: str | os.PathLike[str], up: str | None = None) -> Source:
        """Read a mesh file.

        Args:
            path: GLB, glTF, OBJ, PLY, STL or OFF.
            up: its axis that points up, or `auto`; None takes what the file and its shape say.

        Raises:
            ValueError: the file can't be used, or has too many faces.
        """
        file, start, codes = Path(path), time.perf_counter(), None
        if self.reader is not None:
            codes = self.reader.read(file.read_bytes(), file.suffix.lower(), up)
        seconds = time.perf_counter() - start
        mesh = load_mesh(file)  # again, for the page to show it: the reader's process came through it
        self._check_size(mesh)
        stands = up_for(file, mesh, up) if codes is None else Up(axis=codes.up, known_from=codes.up_from)
        normalized = normalize_mesh(mesh, stands.axis)
        return Source(name=file.stem, mesh=mesh, normalized=normalized, up=stands, codes=codes, seconds=seconds)

    def open_scan(self, label: str | os.PathLike[str], names: str | os.PathLike[str] | None = None) -> Scan:
        """Read a volume of labels (NIfTI), and the names of its labels if there is such a file.

        Raises:
            ValueError: the files can't be used, or no voxel has a label.
            ImportError: nibabel is not installed.
        """
        read = organs_of if self.reader is None else self.reader.organs
        files = Path(label), None if names is None else Path(names)
        return Scan(label=files[0], names=files[1], organs=read(*files))

    def take_organ(self, scan: Scan, name: str) -> Source:
        """Return the surface of an organ, in millimetres.

        Raises:
            ValueError: there is no such organ, or its label has no surface.
        """
        start, codes = time.perf_counter(), None
        if self.reader is None:
            mesh = surface_of_organ(scan.label, scan.names, name)
            self._check_size(mesh)
        else:
            mesh, codes = self.reader.organ(scan.label, scan.names, name)
        return Source(
            name=name,
            mesh=mesh,
            normalized=normalize_mesh(mesh, UP_IN_SCANS.axis),
            up=UP_IN_SCANS,
            unit="mm",
            codes=codes,
            seconds=time.perf_counter() - start,
        )

    @torch.no_grad()
    def encode(self, source: Source) -> Shape:
        """Return an object with its codes. Raises a ValueError where it can't be voxelized."""
        if source.codes is not None:
            return Shape(source=source, codes=source.codes, seconds=source.seconds)
        start = time.perf_counter()
        codes = encode_field(self.vae, field_for(self.vae, source.mesh, up=source.up))
        return Shape(source=source, codes=codes, seconds=time.perf_counter() - start)

    @torch.no_grad()
    def rebuild(self, shape: Shape, resolution: int | None = None) -> Rebuilt:
        """Return the object made of its codes, and how far it is from the source.

        Args:
            shape: the object.
            resolution: side of the grid that the surface is read on; None takes the tokenizer's.

        Raises:
            ValueError: the grid is finer than the tokenizer's, or no surface can be read on it.
        """
        start = time.perf_counter()
        decoded = decode_codes(self.vae, shape.codes)
        mesh = surface_of(self.vae, decoded, shape.codes, voxel_resolution=resolution)
        seconds = time.perf_counter() - start
        source = shape.source.mesh
        score = GroundTruth(source, samples=_SAMPLES).score(mesh)
        return Rebuilt(
            mesh=mesh,
            resolution=resolution or self.vae.config.data_resolution,
            score=score,
            distance=_distance(mesh, source),
            holes=_open_share(mesh),
            seconds=seconds,
        )

    def ask(self, shape: Shape, turns: Sequence[tuple[str, str]], question: str) -> Iterator[str]:
        """Yield the pieces of an answer as they are written.

        Args:
            shape: what the chat is about.
            turns: earlier questions and answers; the first of them are left out of long chats.
            question: the question.

        Raises:
            ValueError: the chat is too long.
            QueueFullError: too many people wait.
        """
        from vae_qwen3vl.generation.engine import Sampling

        kept = list(turns)[-_MOST_TURNS:]
        first, *others = [asked for asked, _ in kept] + [question]
        messages: list[dict[str, object]] = [_asked(first, with_shape=True)]
        for (_, answered), following in zip(kept, others, strict=True):
            messages += [{"role": "assistant", "content": answered}, _asked(following)]
        answer = self.engine.submit(messages, [shape.codes], Sampling(max_new_tokens=self.limits.tokens))
        try:
            yield from answer
        finally:
            answer.cancel()  # whoever stops reading does not want the rest

    def similar(self, shape: Shape, most: int = 6) -> list[Hit]:
        """Return the objects of the index that are most like a shape; none without an index.

        Raises:
            ValueError: the index is of another tokenizer's codes.
        """
        return [] if self.index is None else self.index.by_shape(shape.codes, most)

    def _check_size(self, mesh: trimesh.Trimesh) -> None:
        if len(mesh.faces) > self.limits.faces:
            raise ValueError(f"the mesh has {len(mesh.faces):,} faces; this page takes up to {self.limits.faces:,}")


def _asked(text: str, *, with_shape: bool = False) -> dict[str, object]:
    shape = [{"type": "3d"}] if with_shape else []
    return {"role": "user", "content": [*shape, {"type": "text", "text": text}]}


def _distance(mesh: trimesh.Trimesh, source: trimesh.Trimesh) -> npt.NDArray[np.float64]:
    """Return how far the vertices are from the source's surface, as a share of its longest side. `[V]`"""
    center, scale = unit_transform(source)
    vertices = (np.asarray(source.vertices) - center) * scale
    faces = np.asarray(source.faces, dtype=np.int64)
    faces = faces[with_area(twice_areas(vertices, faces), 1.0)]
    return distance_to_surface((np.asarray(mesh.vertices) - center) * scale, vertices, faces)[0]


def _open_share(mesh: trimesh.Trimesh) -> float:
    edges = np.sort(mesh.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1).astype(np.int64)
    _, counts = np.unique(edges[:, 0] * len(mesh.vertices) + edges[:, 1], return_counts=True)
    return float((counts == 1).mean())
