"""What was found, as one page with a picture of each object: a single file without scripts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import trimesh

from sdf_vqvae.codes.pipeline import decode_codes, surface_of
from sdf_vqvae.evaluation.page import image_tag, picture_bytes, write_page
from sdf_vqvae.geometry.mesh import READABLE, load_mesh, normalize_mesh
from sdf_vqvae.geometry.picture import render_mesh
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.utils.progress import follow
from vae_qwen3vl.search.shape_index import Hit, ShapeIndex

_SIDE, _MOST_BYTES = 320, 24_000
_STYLE = """
.found { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 14px }
.found figure { margin: 0; border: 1px solid #dee2e7; border-radius: 6px; padding: 8px }
.found img { width: 100% } .found figcaption { font-size: 13px; overflow-wrap: anywhere }
.found b { display: block; font-size: 15px }
"""


def write_results(
    path: str | os.PathLike[str],
    asked: str,
    index: ShapeIndex,
    hits: Sequence[Hit],
    load_vae: Callable[[], SparseSDFVQVAE],
) -> None:
    """Write the page.

    An object is drawn from its mesh file where that can be read, else from its codes, as it stands along y.

    Args:
        path: the file.
        asked: the words or the file that were searched for.
        index: where.
        hits: what was found.
        load_vae: loads the tokenizer; called if an object has no mesh file.
    """
    vae: SparseSDFVQVAE | None = None
    figures = []
    for hit in follow(hits, "pictures", leave=False):
        codes = index.codes_of(hit.id)
        try:
            mesh = _mesh_of(Path(hit.source), codes.up)
        except (ValueError, OSError):
            vae = vae or load_vae()
            mesh = surface_of(vae, decode_codes(vae, codes), dataclasses.replace(codes, up="y"))
        picture = image_tag(picture_bytes(render_mesh(mesh, _SIDE), _MOST_BYTES), hit.name)
        words = "".join(f"<div>{escape(text)}</div>" for text in (hit.about, hit.source) if text)
        figures.append(
            f"<figure>{picture}<figcaption><b>{escape(hit.name)}</b>{hit.score:.3f}{words}</figcaption></figure>"
        )
    about = (
        f"<p><q>{escape(asked)}</q> among {len(index):,} objects of <code>{escape(index.manifest.source)}</code></p>"
    )
    write_page(path, "Search", [about, "<div class='found'>", *figures, "</div>"], style=_STYLE)


def _mesh_of(file: Path, up: str) -> trimesh.Trimesh:
    """Return the mesh of a file, standing along y. Raises a ValueError or an OSError if there is none."""
    if file.suffix.lower() not in READABLE:
        raise ValueError(f"{file} is no mesh file")
    normalized = normalize_mesh(load_mesh(file), up)
    return trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False)
