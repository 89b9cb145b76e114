"""How well a tokenizer rebuilds shapes: the ceiling, continuous and discrete rows of every object.

The three rows are the same path with less and less left out: mesh -> field -> mesh without a network, with the
network but no quantizer, and with codes. Networks run here (`rebuild`); scores are computed from meshes alone
(`score_rebuilt`), so that other processes can do that while the next object is rebuilt. A failure scores the worst
case; it is never dropped.
"""

from __future__ import annotations

import base64
import logging
import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import trimesh

from sdf_vqvae.codes.pipeline import field_for, settle_up, voxelize_normalized
from sdf_vqvae.data.objects import StoredObject
from sdf_vqvae.fields.conversion import field_in_world
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.metrics.scores import THRESHOLDS, GroundTruth, ReconstructionScore
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.utils.errors import brief, is_out_of_memory
from sdf_vqvae.utils.runtime import Stopwatch, peak_host_bytes

logger = logging.getLogger(__name__)

ROWS = ("ceiling", "continuous", "discrete")
WARM_UP = 3
"""First objects of a process, whose times include compiling and allocating."""
_OF_MESH_AND_FIELD = ("faces", "watertight", "sign_method", "up", "voxels")
"""What a record knows of an object whatever the tokenizer's weights."""
_WHOLE_CELLS = 3.0**0.5
"""Voxels from the surface within which all corners of the cells that it cuts lie."""

Triangles = tuple[npt.NDArray[Any], npt.NDArray[np.int32]]
"""Vertices `[V, 3]` and faces `[F, 3]`."""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """One object after the networks: meshes, and what is known of it. It travels to another process to be scored."""

    record: dict[str, Any]
    """Plain values for JSON: id, source, codes, bits, seconds and so on."""
    truth: Triangles | None
    meshes: dict[str, Triangles | None] = field(default_factory=dict)
    """One for each of `ROWS`; None where there is no surface."""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Scores of rows that are taken from another evaluation."""


def new_record(shape: StoredObject) -> dict[str, Any]:
    """Return the record of an object of which nothing is known yet."""
    return {
        "id": shape.id,
        "source": shape.source,
        "watertight": False,
        "sign_method": "",
        "up": "",
        "up_from": "",
        "faces": 0,
        "codes": 0,
        "truth_is_field": False,
        "warm_up": False,
        "errors": {},
        "seconds": {},
        "peak_bytes": 0,
    }


@torch.no_grad()
def rebuild(
    vae: SparseSDFVQVAE,
    shape: StoredObject,
    *,
    threshold_factor: float | None = None,
    warm_up: bool = False,
    measured: Mapping[str, Any] | None = None,
) -> Rebuilt:
    """Rebuild an object in all three ways. What fails is recorded with its reason.

    Args:
        vae: the tokenizer.
        shape: the object.
        threshold_factor: see `voxelize_for`.
        warm_up: recorded with the times.
        measured: the object's record in an evaluation with the same ceiling (see `read_ceilings`), which is taken
            from there if the mesh and its field seem to be the same.
    """
    record = new_record(shape) | {"warm_up": warm_up}
    watch = Stopwatch(vae.device)
    rebuilt = Rebuilt(record=record, truth=None)
    try:
        rebuilt = _rebuild(vae, shape, threshold_factor, record, watch, measured or {})
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise  # a defect of the program
        logger.warning("%s: %s", shape.id, brief(error))
        record["errors"]["all"] = brief(error)
        torch.cuda.empty_cache()
    record["seconds"] = {cost.name: cost.seconds for cost in watch.costs}
    peaks = [cost.peak_device_bytes for cost in watch.costs]
    record["peak_bytes"] = max(peaks, default=0) if vae.device.type == "cuda" else peak_host_bytes()
    return rebuilt


def _rebuild(
    vae: SparseSDFVQVAE,
    shape: StoredObject,
    threshold_factor: float | None,
    record: dict[str, Any],
    watch: Stopwatch,
    measured: Mapping[str, Any],
) -> Rebuilt:
    loaded, up = shape.there.load(), shape.there.up
    up = None if up is None else settle_up(up, loaded)
    truth: Triangles | None = None
    if isinstance(loaded, SparseSDF):
        sdf_field = field_for(vae, loaded, up=up).to(vae.device)
        record["truth_is_field"] = True
        if loaded.field != vae.config.field:  # what resampling loses is the ceiling's
            given = loaded.turned(sdf_field.up)
            truth = triangles_of(extract_surface(given.sdf, given.index, given.field))
            record["faces"] = len(truth[1])
    else:
        with watch("voxelize"):
            normalized = normalize_mesh(loaded, "y" if up is None else up.axis)
            record |= {"watertight": normalized.watertight, "faces": len(normalized.faces)}
            sdf_field = voxelize_normalized(vae, normalized, threshold_factor=threshold_factor)
        if up is not None:
            sdf_field = replace(sdf_field, up_from=up.known_from)
        truth = (normalized.vertices.numpy(), normalized.faces.numpy().astype(np.int32))
    record |= {"up": sdf_field.up, "up_from": sdf_field.up_from}
    record |= {"watertight": sdf_field.watertight, "sign_method": sdf_field.sign_method, "voxels": len(sdf_field.sdf)}
    meshes: dict[str, Triangles | None] = dict.fromkeys(ROWS)

    def surface(row: str, extract: Callable[[], SparseTensor]) -> None:
        try:
            decoded = extract()
            if len(decoded) == 0:
                raise ValueError("the decoded field has no voxel")
            (mesh,) = vae.sparse2mesh(decoded)
            meshes[row] = triangles_of(mesh)
        except (ValueError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            logger.warning("%s, %s: %s", shape.id, row, brief(error))
            record["errors"][row] = brief(error)

    def whole() -> SparseSDF:
        if truth is None or record["truth_is_field"] or (vae.config.input_band or _WHOLE_CELLS) >= _WHOLE_CELLS:
            return sdf_field
        # The encoder sees too thin a shell for marching cubes; the ceiling is that of the field.
        return field_in_world(
            normalized.vertices.to(vae.device),
            normalized.faces.to(vae.device),
            vae.config.field,
            band=min(2.0, vae.config.field.band or 2.0),
            watertight=normalized.watertight,
        )

    known = {}
    if not record["truth_is_field"] and all(measured.get(key) == record[key] for key in _OF_MESH_AND_FIELD):
        known["ceiling"] = dict(measured["ceiling"])
    else:
        surface("ceiling", lambda: _as_tensor(whole()))
    if truth is None and meshes["ceiling"] is not None:  # a field is its own ground truth
        truth = meshes["ceiling"]
        record["faces"] = len(truth[1])
    partly = Rebuilt(record=record, truth=truth, meshes=meshes, known=known)
    try:
        with watch("encode"):
            latent = vae.encode_latent(sdf_field.to_batch())
            codes = vae.vq.nearest(latent.feats)
        codes = codes.reshape(len(latent), -1)
        record |= describe_codes(codes.cpu().numpy(), latent.coords[:, 1:].cpu().numpy(), vae)
        with watch("decode"):
            decoded = vae.Decode(latent.replace(codes))
        with watch("surface"):
            surface("discrete", lambda: decoded)
        surface("continuous", lambda: vae.decode_latent(latent))
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        logger.warning("%s: %s", shape.id, brief(error))
        record["errors"]["network"] = brief(error)
    return partly


def _as_tensor(sdf_field: SparseSDF) -> SparseTensor:
    coords = torch.nn.functional.pad(sdf_field.index.to(torch.int32), (1, 0))
    return SparseTensor(sdf_field.sdf[:, None], coords, side=sdf_field.field.resolution)


# -- codes -------------------------------------------------------------------------------------------------------


def describe_codes(codes: npt.NDArray[Any], coords: npt.NDArray[Any], vae: SparseSDFVQVAE) -> dict[str, Any]:
    """Return what is recorded of an object's codes `[M, columns]` at cells `[M, 3]`.

    That is their number and bits, second codes among them, how many those are where cells may have two, and the
    values of the first codes.
    """
    size, side = vae.vq.embeddings.num_embeddings, vae.config.latent_resolution
    first, second = codes.reshape(len(coords), -1)[:, 0], codes.reshape(len(coords), -1)[:, 1:]
    bits = count_bits(len(first), coords, codebook=size, side=side)
    of_second: dict[str, int] = {}
    if second.size:
        of_second = {"second_codes": int((second >= 0).sum())}
        more = len(first) + of_second["second_codes"] * math.log2(vae.config.second_codes)  # and whether there is one
        bits |= {"codes": bits["codes"] + more, "total": bits["total"] + more}
    return {
        "codes": len(first) + of_second.get("second_codes", 0),
        **of_second,
        "bits": bits,
        "code_list": base64.b64encode(zlib.compress(first.astype("<i4").tobytes(), 9)).decode(),
    }


def read_codes(record: dict[str, Any]) -> npt.NDArray[np.int32]:
    """Return the codes that `describe_codes` recorded; none for an object that was not encoded."""
    packed = record.get("code_list")
    if packed is None:
        return np.empty(0, dtype=np.int32)
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype="<i4")


def count_bits(codes: int, coords: npt.NDArray[Any], *, codebook: int, side: int) -> dict[str, float]:
    """Return the bits of an object: M log2 K for its codes, and for the places of its cells.

    The places cost 3 log2(side) bits a cell as plain numbers, or an octree: from the root down, a byte for every
    occupied cube says which of its eight parts are occupied; `octree` is the length of those bytes after zlib. The
    total is that of codes and octree.

    Args:
        codes: number of codes M.
        coords: integer cells `[M, 3]`.
        codebook: size K.
        side: cells along an axis of the latent grid.
    """
    masks = []
    cells = np.unique(np.asarray(coords, dtype=np.int64), axis=0)
    for _ in range(max(1, math.ceil(math.log2(side)))):
        parents, which = np.unique(cells // 2, axis=0, return_inverse=True)
        mask = np.zeros(len(parents), dtype=np.uint8)
        np.bitwise_or.at(mask, which.ravel(), (1 << (cells % 2 @ (4, 2, 1))).astype(np.uint8))
        masks.append(mask.tobytes())
        cells = parents
    in_codes = codes * math.log2(codebook)
    octree = 8.0 * len(zlib.compress(b"".join(reversed(masks)), 9))
    return {
        "codes": in_codes,
        "plain_coordinates": len(coords) * 3 * math.log2(side),
        "octree": octree,
        "total": in_codes + octree,
    }


# -- scores ------------------------------------------------------------------------------------------------------


def score_rebuilt(made: Rebuilt, *, samples: int = 100_000, seed: int = 0, side: int = 32) -> dict[str, Any]:
    """Return the record of an object with a score for each of `ROWS`, and the area of its surface in cells.

    Args:
        made: the object.
        samples: see `GroundTruth`.
        seed: see `GroundTruth`.
        side: cells along an axis of the latent grid, for the surface's area.
    """
    start = time.perf_counter()
    record = {**made.record, "errors": dict(made.record["errors"])}
    truth = None
    if made.truth is not None:
        mesh = mesh_of(made.truth)
        try:
            truth = GroundTruth(mesh, samples=samples, seed=seed, watertight=bool(record["watertight"]))
            record["area_cells"] = float(mesh.area) * side**2
        except ValueError as error:
            record["errors"]["all"] = brief(error)
    for row in ROWS:
        if row in made.known:
            record[row] = made.known[row]
            continue
        score = ReconstructionScore.worst(
            samples=samples, thresholds=THRESHOLDS, watertight=bool(record["watertight"])
        )
        triangles = made.meshes.get(row)
        if truth is not None and triangles is not None:
            try:
                score = truth.score(mesh_of(triangles))
            except ValueError as error:
                record["errors"][row] = brief(error)
        record[row] = score.to_dict()
    record["seconds"] = {**record.get("seconds", {}), "score": time.perf_counter() - start}
    return record


def failed_record(record: dict[str, Any], why: str, *, samples: int) -> dict[str, Any]:
    """Return the record of an object whose scores could not be computed."""
    lost = Rebuilt(record={**record, "errors": {**record["errors"], "all": why}}, truth=None)
    return score_rebuilt(lost, samples=samples)


def mesh_of(triangles: Triangles) -> trimesh.Trimesh:
    """Return triangles as a mesh."""
    return trimesh.Trimesh(np.asarray(triangles[0], dtype=np.float64), triangles[1], process=False)


def triangles_of(mesh: trimesh.Trimesh) -> Triangles:
    """Return a mesh as triangles."""
    return np.asarray(mesh.vertices, dtype=np.float32), np.asarray(mesh.faces, dtype=np.int32)
