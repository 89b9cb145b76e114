"""Pictures of what a tokenizer makes of held-out objects: the field's own surface beside the rebuilt one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import trimesh
from torch import Tensor

from sdf_vqvae.geometry.picture import fit_camera, render_mesh
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.sparse.tensor import SparseTensor

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_SIZE = 256


@torch.no_grad()
def picture_rows(vae: SparseSDFVQVAE, batches: Sequence[Mapping[str, Tensor]]) -> list[list[Image.Image]]:
    """Return for each object (a batch of one) its own surface and the surface of its codes, from one camera."""
    from PIL import Image

    rows = []
    for batch in batches:
        coords = torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1)
        whole = SparseTensor(batch["sparse_sdf"], coords, side=vae.config.data_resolution)
        truth = _surface(lambda field=whole: vae.sparse2mesh(field))  # type: ignore[misc]
        rebuilt = _surface(lambda given=batch: vae.decode_mesh(vae.Encode(given)))  # type: ignore[misc]
        blank = Image.new("RGB", (_SIZE, _SIZE), "white")
        if truth is None:
            rows.append([blank, blank])
            continue
        camera = fit_camera(truth)
        rows.append([_picture(mesh, camera) if mesh is not None else blank for mesh in (truth, rebuilt)])
    return rows


def _surface(extract: Callable[[], list[trimesh.Trimesh]]) -> trimesh.Trimesh | None:
    try:
        return extract()[0]
    except ValueError as error:
        logger.info("no surface to picture: %s", error)
        return None


def _picture(mesh: trimesh.Trimesh, camera: Any) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.asarray(render_mesh(mesh, camera=camera, size=_SIZE)))
