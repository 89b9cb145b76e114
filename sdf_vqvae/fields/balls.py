"""Fields of balls, exact where one ball is alone: shapes to try a path with, without a file."""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.fields.description import FieldDescription


def ball_batch(field: FieldDescription, middle: Tensor, radius: Tensor) -> dict[str, Tensor]:
    """Return the batch dict of one object, balls melted together, in the units that `field` describes.

    Args:
        field: kind, unit, band, sampling and resolution of the values.
        middle: `[B, 3]`, in voxels: where the samples' own indices are whole numbers.
        radius: `[B]`, in voxels.
    """
    side, band = field.resolution, field.band or 3.0
    low = (middle - radius[:, None]).amin(0) - band - 1
    high = (middle + radius[:, None]).amax(0) + band + 2
    axes = [torch.arange(max(0, int(a)), min(side, int(b) + 1)) for a, b in zip(low, high, strict=True)]
    index = torch.cartesian_prod(*axes)  # [N, 3]
    distance = (torch.cdist(index.float(), middle.float()) - radius).amin(dim=1)  # voxels
    near = distance.abs() < band
    index, distance = index[near], distance[near]
    if field.kind == "udf":
        distance = distance.abs()
    value = distance / band if field.unit == "band" else distance / (side - (field.sampling == "corner"))
    return {
        "sparse_sdf": value.float()[:, None],
        "sparse_index": index,
        "batch_idx": torch.zeros(len(index), dtype=torch.long),
    }


def sphere_batch(field: FieldDescription, radius: float = 6.0) -> dict[str, Tensor]:
    """Return the batch dict of a sphere in the middle of the grid, exact, in the units that `field` describes.

    Args:
        field: kind, unit, band, sampling and resolution of the values.
        radius: of the sphere in voxels; 6 gives about 2,900 voxels at any resolution.
    """
    middle = torch.full((1, 3), (field.resolution - 1) / 2)
    return ball_batch(field, middle, torch.tensor([radius]))
