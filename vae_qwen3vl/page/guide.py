"""What one visitor has before them, and what the page shows of it. Knows words, numbers and files; no Gradio."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdf_vqvae.codes.shape_codes import CODES_SUFFIX
from sdf_vqvae.geometry.formats.registry import READABLE
from sdf_vqvae.geometry.mesh import write_mesh
from sdf_vqvae.utils.errors import one_line
from vae_qwen3vl.page.store import FileStore
from vae_qwen3vl.page.views import block_glb, error_colors, in_world, mesh_glb, top_of_scale
from vae_qwen3vl.page.workbench import Rebuilt, Scan, Shape, Source, Workbench
from vae_qwen3vl.serving.scans import SCAN_SUFFIXES

if TYPE_CHECKING:
    from vae_qwen3vl.search.shape_index import Hit

_HOLES = 0.01
"""Share of open edges from which on they are mentioned."""


@dataclass(kw_only=True, eq=False)
class Visit:
    """One visitor's object. What is computed for an object that is no longer `source` is not shown any more."""

    paths: Sequence[Path] = ()
    """Of the files that were opened."""
    scan: Scan | None = None
    source: Source | None = None
    shape: Shape | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)
    """Questions about it and their answers."""
    is_answered: bool = True
    """No answer is being written."""
    views: dict[str, Any] = field(default_factory=dict)
    """What the two views show: paths of files, and the words beside them."""


class Guide:
    """Leads visits: each call does a step and returns what the page shows then.

    Args:
        bench: does the work.
        store: keeps the files that the page links to.
    """

    def __init__(self, bench: Workbench, store: FileStore) -> None:
        self.bench, self.store = bench, store

    def open(self, visit: Visit, paths: Sequence[Path], up: str | None = None) -> None:
        """Read files: a mesh becomes the visit's source; of a volume of labels an organ has to be chosen first.

        Raises:
            ValueError: they can't be used.
            ImportError: a library for them is not installed.
        """
        visit.paths, visit.scan = tuple(paths), None
        _empty(visit)
        labels = [path for path in paths if path.name.lower().endswith(SCAN_SUFFIXES)]
        if labels:
            names = next((path for path in paths if path.suffix.lower() == ".json"), None)
            visit.scan = self.bench.open_scan(labels[0], names)
            return
        meshes = [path for path in paths if path.suffix.lower() in READABLE]
        if not meshes:
            given = ", ".join(path.name for path in paths)
            raise ValueError(f"{given} is neither a mesh ({', '.join(READABLE)}) nor a scan (.nii, .nii.gz)")
        self._take(visit, self.bench.read(meshes[0], up))

    def choose(self, visit: Visit, organ: str) -> None:
        """Make an organ of the visit's scan its source. Raises a ValueError where it has no surface."""
        assert visit.scan is not None
        _empty(visit)
        self._take(visit, self.bench.take_organ(visit.scan, organ))

    def encode(self, visit: Visit) -> None:
        """Encode the visit's source. Raises a ValueError where it can't be voxelized."""
        source = visit.source
        assert source is not None
        shape = self.bench.encode(source)
        if visit.source is not source:
            return
        blocks = block_glb(shape.codes, self.bench.colors[shape.codes.first.numpy()])
        visit.shape = shape
        visit.views = visit.views | {
            "codes": self._file("codes.glb", blocks),
            "codes_note": f"{shape.codes.count:,} codes",
        }

    def rebuild(self, visit: Visit, resolution: int | None = None) -> Rebuilt | None:
        """Rebuild the visit's object; None where it has another one by now.

        Raises:
            ValueError: no surface can be read on a grid of this resolution.
        """
        shape = visit.shape
        assert shape is not None
        rebuilt = self.bench.rebuild(shape, resolution)
        if visit.shape is not shape:
            return None
        top = top_of_scale(rebuilt.distance)
        world = in_world(rebuilt.mesh.vertices, shape.codes)
        colored = mesh_glb(world, rebuilt.mesh.faces, colors=error_colors(rebuilt.distance, top), smooth=True)
        visit.views = visit.views | {
            "rebuilt": self._file("rebuilt.glb", colored),
            "rebuilt_note": f"{rebuilt.resolution}³",
            "scale": {"low": "0", "top": f"{percent(top)}{_in_units(top, shape.source)} of the longest side"},
        }
        return rebuilt

    def ask(self, visit: Visit, question: str) -> Iterator[str]:
        """Yield the answer as far as it is written; keep it, whole or stopped, for the questions after it.

        Raises:
            ValueError: the question is empty or the chat too long.
            RuntimeError: too many people wait.
        """
        shape = visit.shape
        assert shape is not None
        if not question.strip():
            raise ValueError("ask something")
        written, visit.is_answered = "", False
        try:
            for piece in self.bench.ask(shape, visit.turns, question):
                written += piece
                yield written
        finally:
            if visit.shape is shape:
                visit.is_answered = True
                if written:
                    visit.turns.append((question, written))

    def links(self, visit: Visit, rebuilt: Rebuilt | None) -> list[tuple[str, str]]:
        """Return what can be taken along as (words, path): the mesh in the source's units, and the codes."""
        assert visit.shape is not None
        name, codes = visit.shape.source.name, visit.shape.codes
        links = [("Codes (.safetensors)", self._written(f"{name}{CODES_SUFFIX}", codes.save))]
        if rebuilt is not None:
            mesh = rebuilt.mesh
            path = self._written(f"{name}-rebuilt.glb", lambda file: write_mesh(file, mesh, up=codes.up))
            links.insert(0, ("Rebuilt mesh (.glb)", path))
        return links

    def _take(self, visit: Visit, source: Source) -> None:
        normalized = source.normalized
        shown = mesh_glb(normalized.vertices.numpy(), normalized.faces.numpy())
        visit.source = source
        visit.views = {"name": source.name, "input": self._file("input.glb", shown), "input_note": source.name}

    def _written(self, name: str, write: Callable[[Path], object]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            write(path)
            return self._file(name, path.read_bytes())

    def _file(self, name: str, data: bytes) -> str:
        return f"files/{self.store.put(name, data)}"


def _empty(visit: Visit) -> None:
    visit.source = visit.shape = None
    visit.turns, visit.views, visit.is_answered = [], {}, True


# -- words and numbers ---------------------------------------------------------------------------------------------


def reason_of(error: Exception) -> str:
    """Return what an error says, without the folders of the machine that it runs on."""
    words = []
    for word in one_line(error).split(" "):
        bare = word.strip("'\",:;()")
        words.append(word.replace(bare, Path(bare).name) if bare.startswith("/") and len(bare) > 1 else word)
    return " ".join(words)


def status_html(text: str, kind: str = "done") -> str:
    """Return a line about what goes on; `kind` is busy, done or error."""
    return f"<p class='status-line {kind}'>{escape(text)}</p>"


def scores_html(rebuilt: Rebuilt, source: Source) -> str:
    """Return how near a rebuilt mesh is to its source."""
    score = rebuilt.score
    scores = [
        (percent(score.chamfer_l1) + _in_units(score.chamfer_l1, source), "Chamfer distance", "of the longest side"),
        (f"{score.fscore[0.01]:.3f}", "F-score", "within 1 % of the longest side"),
        (percent(score.hausdorff_95) + _in_units(score.hausdorff_95, source), "95th percentile", "of the distances"),
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd><strong>{value}</strong><span>{unit}</span></dd></div>"
        for value, name, unit in scores
    )
    return f"<dl class='scores'>{cells}</dl>"


def facts_html(shape: Shape, rebuilt: Rebuilt | None) -> str:
    """Return what is known of an object on its way, a row a step."""
    source, codes = shape.source, shape.codes
    closed = "closed" if source.normalized.watertight else "open"
    rows = [
        ("Input", f"{len(source.mesh.faces):,} triangles, {closed}"),
        ("Up", f"{source.up.axis} of the file: {source.up.known_from}"),
        ("Codes", f"{codes.count:,} of {codes.latent_resolution}³ cells, in {shape.seconds:.1f} s"),
    ]
    if rebuilt is not None:
        holes = f"; {rebuilt.holes:.0%} of its edges are open" if rebuilt.holes > _HOLES else ""
        rows.append(("Rebuilt", f"{len(rebuilt.mesh.faces):,} triangles, in {rebuilt.seconds:.1f} s{holes}"))
    return "<dl class='facts'>" + "".join(f"<dt>{n}</dt><dd>{escape(v)}</dd>" for n, v in rows) + "</dl>"


def links_html(links: Sequence[tuple[str, str]]) -> str:
    """Return links to files, as (words, path)."""
    return "".join(f"<a class='download' href='{escape(path)}' download>{escape(words)}</a>" for words, path in links)


def hits_html(hits: Sequence[Hit]) -> str:
    """Return objects that were found, the most alike first."""
    rows = "".join(
        f"<li><span>{escape(hit.name)}<small>{escape(hit.about)}</small></span>"
        f"<meter min='0' max='1' value='{max(0.0, hit.score):.3f}' aria-label='likeness'></meter>"
        f"<b>{hit.score:.2f}</b></li>"
        for hit in hits
    )
    return f"<ol class='hits'>{rows}</ol>" if rows else "<p class='hint'>The index has nothing like it.</p>"


def percent(share: float) -> str:
    """Return a share as people read it, with two digits that count."""
    return f"{100 * share:.2g} %"


def _in_units(share: float, source: Source) -> str:
    """Return a share of the longest side in the source's units, in brackets; nothing where they aren't known."""
    if not source.unit:
        return ""
    longest = float(np.ptp(np.asarray(source.mesh.vertices), axis=0).max())
    return f" ({share * longest:.2g} {source.unit})"
