"""Meshes from the same codes that were described, their scores where the true shape is at hand, and pictures.

Knows the tokenizer and files; nothing of language models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import trimesh

from sdf_vqvae.data.file_names import FileNames
from sdf_vqvae.data.object_rows import is_content_hash
from sdf_vqvae.data.objects import Place, StoredObject
from sdf_vqvae.data.tables import FILE_COLUMNS
from sdf_vqvae.evaluation.bootstrap import six_digits
from sdf_vqvae.evaluation.page import picture_bytes
from sdf_vqvae.evaluation.rebuild import ROWS, Rebuilt, mesh_of, rebuild, score_rebuilt, triangles_of
from sdf_vqvae.geometry.mesh import write_mesh
from sdf_vqvae.geometry.picture import fit_camera, render_mesh
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.errors import brief
from sdf_vqvae.utils.progress import follow
from vae_qwen3vl.evaluation.objects import EvalObject

logger = logging.getLogger(__name__)

SAMPLES = 100_000
_SIDE = 300
_MOST_BYTES = 40_000
_DRAWN = 24
"""First objects that have pictures."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One object rebuilt from its codes."""

    file: str | None = None
    """Name of the mesh file, where it is kept."""
    error: str | None = None
    """Why there is no mesh."""
    scores: dict[str, Any] | None = None
    """Rows ceiling, continuous and discrete against the true shape (see `rebuild`), where it is at hand."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """Encoded pictures by name."""


def reconstruct_all(
    vae: SparseSDFVQVAE,
    objects: Sequence[EvalObject],
    folder: Path,
    *,
    shapes: Sequence[StoredObject] = (),
    voxel_resolution: int | None = None,
    mc_threshold: float | None = None,
) -> dict[str, Reconstruction]:
    """Decode every object's codes to a mesh `recon_mesh_{i}.obj` in a folder; return what became of each, by id.

    Args:
        vae: the tokenizer of the codes.
        objects: the objects.
        folder: for the meshes.
        shapes: true shapes, to score the meshes of objects that are among them; see `true_shapes`.
        voxel_resolution: see `SparseSDFVQVAE.sparse2mesh`.
        mc_threshold: see `SparseSDFVQVAE.sparse2mesh`.

    Raises:
        ValueError: there are shapes, and none of them is of an object.
    """
    truths = true_shapes(objects, shapes)
    return {
        one.name: reconstruct(
            vae,
            one,
            truth=truths.get(one.name),
            path=folder / f"recon_mesh_{number}.obj",
            voxel_resolution=voxel_resolution,
            mc_threshold=mc_threshold,
            draw=number < _DRAWN,
        )
        for number, one in enumerate(follow(objects, "meshes"))
    }


def mean_scores(reconstructions: Mapping[str, Reconstruction]) -> dict[str, Any]:
    """Return how many meshes were made, and the mean scores of the three rows where there are any."""
    if not reconstructions:
        return {}
    scored = [one.scores for one in reconstructions.values() if one.scores is not None]
    means: dict[str, Any] = {
        "objects": len(reconstructions),
        "without_mesh": sum(one.error is not None for one in reconstructions.values()),
        "scored": len(scored),
    }
    for row in ROWS if scored else ():
        names = [name for name in scored[0][row] if name.startswith(("chamfer", "fscore"))]
        means[row] = {name: six_digits(sum(one[row][name] for one in scored) / len(scored)) for name in names}
    return means


def true_shapes(objects: Sequence[EvalObject], shapes: Sequence[StoredObject] = ()) -> dict[str, StoredObject]:
    """Return the true shape of each object that has one: among `shapes`, else its own field file.

    An object is found by its id, or the one of its row; by the contents of a mesh where its id is a SHA-256; or by
    the file that its row names, unless its id says that the contents are others. How many are found is said.

    Raises:
        ValueError: there are shapes, and none of them is of an object.
    """
    own_fields = {
        one.name: StoredObject(id=one.name, source=one.path.parent.name, place=Place(path=one.path, name=one.name))
        for one in objects
        if one.path
    }
    if not shapes:
        return own_fields
    by_id = {shape.id: shape for shape in shapes}
    ids = {one.name: shape for one in objects if (shape := by_id.get(one.row.get("id", "")) or by_id.get(one.name))}
    rest = [one for one in objects if one.name not in ids]
    hashed = any(is_content_hash(one.name) for one in rest)
    by_hash = {digest: shape for shape in shapes if (digest := _hash_of(shape.there))} if hashed else {}
    contents = {one.name: by_hash[one.name] for one in rest if one.name in by_hash}
    names = FileNames(by_id)
    files, others = {}, 0
    for one in rest:
        means = {name for column in FILE_COLUMNS for name in names.find(one.row.get(column, ""))}
        if one.name in contents or len(means) != 1:
            continue
        if is_content_hash(one.name):
            others += 1
        else:
            files[one.name] = by_id[means.pop()]
    changed = f"; {others} more have a file of their name, with other contents" if others else ""
    if not ids and not contents and not files:
        raise ValueError(
            f"--shapes: none of the {len(shapes)} shapes is one of the {len(objects)} objects, by id, contents "
            f"or file name: shapes are called {shapes[0].id!r}, objects {objects[0].name!r}{changed}"
        )
    ways = {"id": ids, "contents": contents, "file name": files}
    how = ", ".join(f"{len(one)} by {way}" for way, one in ways.items() if one)
    count = len(ids) + len(contents) + len(files)
    logger.info("--shapes: %d of %d objects have their true shape there (%s)%s", count, len(objects), how, changed)
    return own_fields | files | contents | ids


def _hash_of(place: Place) -> str | None:
    """Return the hash that datasets have as the id of a mesh; None for a field and for what can't be read."""
    if place.is_field:
        return None
    try:
        return place.content_hash()
    except OSError as error:
        logger.warning("%s cannot be read: %s", place.path, error.strerror)
        return None


def reconstruct(
    vae: SparseSDFVQVAE,
    one: EvalObject,
    *,
    truth: StoredObject | None = None,
    path: Path | None = None,
    voxel_resolution: int | None = None,
    mc_threshold: float | None = None,
    draw: bool = False,
) -> Reconstruction:
    """Decode an object's codes, and score and draw the mesh. What fails is recorded with its reason.

    Args:
        vae: the tokenizer of the codes.
        one: the object.
        truth: its true shape: the mesh is then scored, beside ceiling and continuous row.
        path: where to keep the mesh, in the world cube, y up; None keeps none.
        voxel_resolution: see `SparseSDFVQVAE.sparse2mesh`.
        mc_threshold: see `SparseSDFVQVAE.sparse2mesh`.
        draw: make pictures.
    """
    coords = torch.nn.functional.pad(one.coords, (1, 0)).to(vae.device)
    codes = SparseTensor(one.codes.view(len(coords), -1).to(vae.device), coords, side=vae.config.latent_resolution)
    mesh: trimesh.Trimesh | None = None
    error = None
    try:
        with torch.no_grad():
            (mesh,) = vae.sparse2mesh(vae.Decode(codes), voxel_resolution, mc_threshold)
    except ValueError as found:
        error = brief(found)
        logger.warning("%s: no mesh: %s", one.name, error)
    if mesh is not None and path is not None:
        write_mesh(path, mesh, up="y")
    rebuilt = None if truth is None else _with_mesh(rebuild(vae, truth), mesh)
    return Reconstruction(
        file=path.name if mesh is not None and path is not None else None,
        error=error,
        scores=None
        if rebuilt is None
        else score_rebuilt(rebuilt, samples=SAMPLES, side=vae.config.latent_resolution),
        pictures=_draw(None if rebuilt is None else rebuilt.truth, mesh) if draw else {},
    )


def _with_mesh(rebuilt: Rebuilt, mesh: trimesh.Trimesh | None) -> Rebuilt:
    """Return the rebuilt object with the mesh of the very codes that were described as its discrete row."""
    discrete = None if mesh is None else triangles_of(mesh)
    return Rebuilt(record=rebuilt.record, truth=rebuilt.truth, meshes={**rebuilt.meshes, "discrete": discrete})


def _draw(truth: Any, mesh: trimesh.Trimesh | None) -> dict[str, bytes]:
    panels: Mapping[str, trimesh.Trimesh | None] = {
        "original": None if truth is None else mesh_of(truth),
        "rebuilt from its codes": mesh,
    }
    shown = {name: panel for name, panel in panels.items() if panel is not None and len(panel.faces)}
    if not shown:
        return {}
    camera = fit_camera(next(iter(shown.values())))
    return {
        name: picture_bytes(render_mesh(panel, _SIDE, camera=camera), _MOST_BYTES) for name, panel in shown.items()
    }
