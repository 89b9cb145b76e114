"""Reading a sparse field on a coarser grid by trilinear interpolation, where all eight neighbors are known."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def resample_field(values: Tensor, index: Tensor, resolution: int, target: int) -> tuple[Tensor, Tensor]:
    """Interpolate a cell-centered field of `resolution`^3 at the cell centers of a coarser grid.

    Args:
        values: `[N]`.
        index: int `[N, 3]` in `0..resolution-1`.
        resolution: side of the given grid.
        target: side of the wanted grid.

    Returns:
        Values `[P]` and int64 index `[P, 3]` in `0..target-1` of the samples whose eight neighbors are known.

    Raises:
        ValueError: `target` is larger than `resolution` or smaller than 1.
    """
    if not 1 <= target <= resolution:
        raise ValueError(
            f"voxel_resolution={target} must lie in 1..{resolution}, the side of the field's grid: "
            "a field can be read on a coarser grid, not on a finer one"
        )
    if target == resolution:
        return values, index.long()
    index = index.long()
    ratio = resolution / target
    cells = torch.unique((index.double() / ratio).long().clamp_(max=target - 1), dim=0)  # [P, 3]
    place = (cells.double() + 0.5) * ratio - 0.5
    low = place.floor()
    fraction = (place - low).to(values.dtype)  # [P, 3]
    keys, order = torch.sort(_keys(index, resolution))
    total = values.new_zeros(len(cells))
    known = torch.ones(len(cells), dtype=torch.bool, device=values.device)
    for corner in product((0, 1), repeat=3):
        offset = torch.tensor(corner, device=values.device)
        weight = torch.where(offset.bool(), fraction, 1 - fraction).prod(dim=1)
        wanted = low.long() + offset
        inside = ((wanted >= 0) & (wanted < resolution)).all(dim=1)
        key = _keys(wanted, resolution)
        row = torch.searchsorted(keys, key).clamp_(max=len(keys) - 1)
        found = inside & (keys[row] == key)
        total += torch.where(found, values[order[row]], 0) * weight
        known &= found | (weight == 0)
    return total[known], cells[known]


def _keys(index: Tensor, resolution: int) -> Tensor:
    x, y, z = index.unbind(1)
    return (x * resolution + y) * resolution + z
