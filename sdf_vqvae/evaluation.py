"""How well a tokenizer rebuilds meshes: ceiling, continuous and discrete rows for every object.

The three rows are the same path with less and less left out: mesh -> field -> mesh without a network, with
the network but no quantizer, and with codes. A failure scores the worst case; it is never dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import trimesh

from sdf_vqvae.geometry.mesh import normalize_mesh
from sdf_vqvae.geometry.metrics import ReconstructionScore, compare_meshes
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.sparse_sdf import SparseSDF

logger = logging.getLogger(__name__)

T = TypeVar("T")
ROWS = ("ceiling", "continuous", "discrete")


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """Scores of one object."""

    scores: dict[str, ReconstructionScore]
    """One score for each of `ROWS`."""
    codes: int
    """Number of codes; 0 if encoding failed."""
    watertight: bool
    sign_method: str
    seconds: dict[str, float]
    """Wall time of `voxelize`, `encode` and `decode` (codes to mesh)."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the scores under the names of `ROWS`."""
        about = {"codes": self.codes, "watertight": self.watertight, "sign_method": self.sign_method}
        return {**about, "seconds": self.seconds, **{row: self.scores[row].to_dict() for row in ROWS}}


@torch.no_grad()
def evaluate_reconstruction(
    vae: SparseSDFVQVAE, mesh: trimesh.Trimesh, *, samples: int = 100_000, seed: int = 0
) -> ReconstructionResult:
    """Rebuild a mesh in all three ways and compare each with it (`geometry.metrics`, longest side 1)."""
    normalized = normalize_mesh(mesh)
    truth = trimesh.Trimesh(normalized.vertices.numpy(), normalized.faces.numpy(), process=False)
    seconds: dict[str, float] = {}
    config = vae.config

    def timed(name: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        if vae.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - start
        return result

    field = timed(
        "voxelize",
        lambda: SparseSDF.from_mesh(mesh, config.data_resolution, band=config.field.band or 3.0, device=vae.device),
    )
    batch = field.to_batch()
    whole = SparseTensor(
        batch["sparse_sdf"],
        torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1),
        side=config.data_resolution,
    )
    latent = timed("encode", lambda: vae.encode_latent(batch))
    codes = latent.replace(vae.vq.nearest(latent.feats)[:, None])
    meshes = {
        "ceiling": _surface(lambda: vae.sparse2mesh(whole)),
        "continuous": _surface(lambda: vae.sparse2mesh(vae.decode_latent(latent))),
        "discrete": timed("decode", lambda: _surface(lambda: vae.decode_mesh(codes))),
    }
    scores = {row: compare_meshes(meshes[row], truth, samples=samples, seed=seed) for row in ROWS}
    return ReconstructionResult(
        scores=scores,
        codes=len(codes),
        watertight=field.watertight,
        sign_method=field.sign_method,
        seconds=seconds,
    )


def _surface(extract: Callable[[], list[trimesh.Trimesh]]) -> trimesh.Trimesh | None:
    """Return the mesh, or None where the field has no surface (which scores the worst case)."""
    try:
        return extract()[0]
    except ValueError as error:
        logger.warning("no surface: %s", error)
        return None


def summarize(objects: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and median of every score over objects (`ReconstructionResult.to_dict`), for each of `ROWS`."""
    table: dict[str, dict[str, float]] = {}
    for row in ROWS:
        columns = [o[row] for o in objects]
        table[row] = {"failed": float(sum(bool(c["failed"]) for c in columns))}
        for name in columns[0]:
            if name in ("samples", "failed"):
                continue
            values = [float(c[name]) for c in columns]
            table[row][f"{name} mean"] = float(np.mean(values))
            table[row][f"{name} median"] = float(np.median(values))
    return table
