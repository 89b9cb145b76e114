"""What a tokenizer makes of objects that it isn't trained on: losses, the use of its codes, and pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import trimesh

from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.geometry.picture import fit_camera, render_mesh
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.quantizers.codebook_usage import codebook_health
from sdf_vqvae.quantizers.quantizer import first_codes
from sdf_vqvae.training.losses import answers_of, fine_measures, training_loss
from sdf_vqvae.training.streams import Field, joined_field

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

_SIZE = 256


@torch.no_grad()
def measure_held_out(
    vae: SparseSDFVQVAE, fields: Sequence[Field], trainer: TrainerConfig, *, quantizing: bool
) -> dict[str, float]:
    """Return the mean losses over objects, each weighing the same, and how evenly they use the codebook.

    Beside the losses: `fine_measures`, those of thin parts over the objects that have any; and `l1_near_small` and
    `wrong_sign_small`, over the third of the objects with the fewest codes. They can be compared between runs of
    different weights, as the losses can't.

    Args:
        vae: in evaluation mode.
        fields: the objects, measured one by one.
        trainer: the weights of the losses.
        quantizing: go through the codes; otherwise none counts as used.
    """
    measures: dict[str, list[float]] = {}
    sizes: list[int] = []
    counts = torch.zeros(vae.config.num_embeddings, device=vae.device)
    for field in fields:
        whole = joined_field([field], vae.config.data_resolution, vae.device)
        out = vae(whole, bypass=not quantizing)
        answers = answers_of(out, whole, vae.config, thin=True)
        parts = training_loss(out, answers, trainer)[1] | fine_measures(answers)
        sizes.append(len(out["latent"]))
        if quantizing:
            counts += torch.bincount(first_codes(out["indices"]), minlength=len(counts))
        for name, value in parts.items():
            if not (name.endswith("_thin") and math.isnan(float(value))):  # nothing thin in it
                measures.setdefault(name, []).append(float(value))
    small = np.argsort(sizes, kind="stable")[: math.ceil(len(sizes) / 3)]
    for name in {"l1_near", "wrong_sign"} & measures.keys():
        measures[f"{name}_small"] = [measures[name][place] for place in small]
    health = codebook_health(counts)
    return {name: sum(values) / len(values) for name, values in measures.items()} | {
        "perplexity": health.perplexity,
        "used": health.used,
        "dead": float(health.dead),
        "top_percent_mass": health.top_percent_mass,
    }


@torch.no_grad()
def picture_rows(vae: SparseSDFVQVAE, fields: Sequence[Field]) -> list[list[Image.Image]]:
    """Return for each object the surface of its field and that of its codes, from one camera."""
    from PIL import Image

    rows = []
    for field in fields:
        whole = joined_field([field], vae.config.data_resolution, vae.device)
        truth = _surface(lambda given=whole: vae.sparse2mesh(given))  # type: ignore[misc]
        rebuilt = _surface(lambda given=whole: vae.decode_mesh(vae.Encode(given)))  # type: ignore[misc]
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
