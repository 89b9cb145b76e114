"""Organs of a real CT through a tokenizer: their volume and surface against those of the labels, organ by organ.

    python benchmarks/quality/ct_tokenizer.py --data ../shared/data/ct --name sdf_vqvae_256
    python benchmarks/quality/ct_tokenizer.py --data ../shared/data/ct --name mine --vae_ckpt tok/model.safetensors

Three rows, as `evaluate` has them: `ceiling` is label -> field -> surface without a network, `continuous` goes
through the network with the quantizer bypassed, `discrete` is rebuilt from codes alone. The volume that each surface
encloses is compared with that of the label's voxels; its distance, with the label's own surface (`label_surface`),
both ways, as the mean over samples and as the larger 95th percentile, in millimetres. An organ is kept where its
volume is within 1 % and its mean distance within 0.3 mm; what fails is not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trimesh

from sdf_vqvae.codes.pipeline import as_read
from sdf_vqvae.commands.options import add_vae_options
from sdf_vqvae.evaluation.rebuild import ROWS
from sdf_vqvae.fields.sparse_sdf import SparseSDF
from sdf_vqvae.fields.surface import extract_surface
from sdf_vqvae.geometry.mesh import to_source_units
from sdf_vqvae.geometry.metrics.scores import GroundTruth
from sdf_vqvae.geometry.up import UP_IN_SCANS
from sdf_vqvae.geometry.volume import LabelSurface
from sdf_vqvae.model.checkpoint import load_vae_from_config
from sdf_vqvae.model.vqvae import SparseSDFVQVAE
from sdf_vqvae.preprocessing.ct.cases import load_case
from sdf_vqvae.preprocessing.ct.layouts import pair_case
from sdf_vqvae.preprocessing.ct.organs import surface_of
from sdf_vqvae.utils.measurements import measuring_parser, write_run
from sdf_vqvae.utils.progress import follow
from sdf_vqvae.utils.runtime import setup_logging

WITHIN_PERCENT, WITHIN_MM = 1.0, 0.3
LARGE_ML = 10.0


def main() -> None:
    """Print and record the numbers."""
    parser = measuring_parser(__doc__, __file__)
    parser.add_argument("--data", type=Path, required=True, help="folder with nifti/")
    parser.add_argument("--organs", help="names, with commas (default: all)")
    parser.add_argument("--samples", type=int, default=50_000, help="points on each surface (default %(default)s)")
    parser.add_argument("--device")
    add_vae_options(parser)
    options = parser.parse_args()
    setup_logging()
    nifti = options.data / "nifti"
    case = load_case(pair_case(nifti / "ct.nii.gz", nifti / "organs.nii.gz", None), with_image=False)
    assert case.masks is not None
    vae = load_vae_from_config(options.vae_config, options.vae_ckpt, options.device)
    wanted = None if options.organs is None else set(options.organs.split(","))
    labels = [label for label in case.masks.places if wanted is None or case.names.of(label) in wanted]
    organs = []
    start = time.perf_counter()
    for label in follow(labels, "organs"):
        surface = surface_of(case, label)
        organs.append({"name": case.names.of(label), **rebuilt(vae, surface, options.samples)})
    summary = {row: summed(organs, row) for row in ROWS}
    for row, numbers in summary.items():
        print(row, numbers)
    numbers = {
        "resolution": vae.config.data_resolution,
        "seconds": time.perf_counter() - start,
        "seconds_of_the_tokenizer": statistics.median(organ["seconds"] for organ in organs),
        "median_codes": statistics.median(organ["codes"] for organ in organs),
        "summary": summary,
        "organs": organs,
    }
    print(write_run(options, numbers))


@torch.no_grad()
def rebuilt(vae: SparseSDFVQVAE, surface: LabelSurface, samples: int) -> dict[str, Any]:
    """Return what becomes of an organ in all three rows."""
    start = time.perf_counter()
    field = SparseSDF.from_label(surface, vae.config.data_resolution, up=UP_IN_SCANS.axis, device=vae.device)
    latent = vae.encode_latent(as_read(vae.config, field).to_batch())
    codes = latent.replace(vae.vq.nearest(latent.feats)[:, None])
    made: dict[str, Callable[[], trimesh.Trimesh]] = {
        "discrete": lambda: vae.decode_mesh(codes)[0],
        "continuous": lambda: vae.decode_mesh(latent)[0],
        "ceiling": lambda: extract_surface(field.sdf, field.index, field.field),
    }
    truth = GroundTruth(surface.mesh, samples=samples)
    organ: dict[str, Any] = {"label_ml": surface.label_ml, "codes": len(codes.coords)}
    for row, make in made.items():
        try:
            mesh = to_source_units(make(), field.center, field.scale, field.up)
        except ValueError as error:
            organ[row] = {"error": str(error), "kept": False}
            continue
        finally:
            organ.setdefault("seconds", time.perf_counter() - start)  # of voxelizing, encoding, decoding, surface
        score = truth.score(mesh)
        percent = 100 * (float(mesh.volume) / 1000 / surface.label_ml - 1)
        mean_mm = score.chamfer_l1 / truth.scale
        organ[row] = {
            "volume_percent": round(percent, 4),
            "mean_mm": round(mean_mm, 4),
            "mm_95": round(score.hausdorff_95 / truth.scale, 4),
            "largest_mm": round(score.hausdorff / truth.scale, 3),
            "kept": abs(percent) <= WITHIN_PERCENT and mean_mm <= WITHIN_MM,
        }
    return organ


def summed(organs: list[dict[str, Any]], row: str) -> dict[str, Any]:
    """Return how many organs are kept in a row, and how far the others are off."""
    good = [organ for organ in organs if "error" not in organ[row]]
    percents = {organ["name"]: abs(organ[row]["volume_percent"]) for organ in good}
    large = {organ["name"]: percents[organ["name"]] for organ in good if organ["label_ml"] > LARGE_ML}
    means = {organ["name"]: organ[row]["mean_mm"] for organ in good}
    return {
        "organs": len(organs),
        "kept": sum(organ[row]["kept"] for organ in organs),
        f"within_{WITHIN_PERCENT:g}_percent": sum(value <= WITHIN_PERCENT for value in percents.values()),
        f"within_{WITHIN_MM:g}_mm": sum(value <= WITHIN_MM for value in means.values()),
        "median_percent": statistics.median(percents.values()),
        "worst_percent": max((value, name) for name, value in percents.items()),
        "worst_percent_over_10_ml": max(((value, name) for name, value in large.items()), default=None),
        "median_mean_mm": statistics.median(means.values()),
        "worst_mean_mm": max((value, name) for name, value in means.items()),
        "median_mm_95": statistics.median(organ[row]["mm_95"] for organ in good),
    }


if __name__ == "__main__":
    main()
