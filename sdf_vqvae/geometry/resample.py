"""Reading a sparse field on another grid by trilinear interpolation, where all eight neighbors are known."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor


def coarser_grid(resolution: int, target: int, sampling: str) -> tuple[float, float]:
    """Return `(step, offset)`: sample j of the coarser grid lies at `j * step + offset` of the finer one.

    Grids with samples at `center`s of cells share their outer walls, grids with `corner` samples their corners.
    """
    if sampling == "corner":
        return (resolution - 1) / max(1, target - 1), 0.0
    ratio = resolution / target
    return ratio, (ratio - 1) / 2


def resample_field(
    values: Tensor, index: Tensor, resolution: int, target: int, *, sampling: str = "center"
) -> tuple[Tensor, Tensor]:
    """Interpolate a field of `resolution`^3 samples at the samples of a coarser grid.

    Args:
        values: `[N]`.
        index: int `[N, 3]` in `0..resolution-1`.
        resolution: side of the given grid.
        target: side of the wanted grid.
        sampling: where both grids have their samples, see `coarser_grid`.

    Returns:
        Values `[P]` and index `[P, 3]` in `0..target-1` of the samples whose eight neighbors are known.

    Raises:
        ValueError: `target` is larger than `resolution` or smaller than 1.
    """
    if not 1 <= target <= resolution:
        raise ValueError(
            f"voxel_resolution={target} must lie in 1..{resolution}, the side of the field's grid: "
            "a field can be read on a coarser grid, not on a finer one"
        )
    if target == resolution:
        return values, index
    index = index.long()
    step, start = coarser_grid(resolution, target, sampling)
    # The sample whose lower neighbor this is; a coarser grid has at most one for each.
    above = torch.ceil((index.double() - start) / step - 1e-9).long().clamp_(0, target - 1)
    cells = torch.unique(above, dim=0)  # [P, 3]
    place = cells.double() * step + start
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
        present = inside & (keys[row] == key)
        total += torch.where(present, values[order[row]], 0) * weight
        known &= present | (weight == 0)
    return total[known], cells[known]


def double_field(values: Tensor, index: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Interpolate a field with samples at the centers of cells at those of a grid twice as fine.

    Args:
        values: `[N]`.
        index: int `[N, 3]` in `0..resolution-1`, every sample once.
        resolution: side of the given grid.

    Returns:
        Values `[P]` and int64 index `[P, 3]` in `0..2*resolution-1` of the samples whose eight neighbors are known,
        rows sorted.
    """
    sides = [resolution] * 3
    index = index.long()
    for axis in range(3):
        # Along one axis after the other: between neighbors lie two samples, a quarter and three quarters of the way.
        second, first = (place for place in range(3) if place != axis)
        line = index[:, second] * sides[first] + index[:, first]
        keys, order = torch.sort(line * sides[axis] + index[:, axis])
        values, index = values[order], index[order]
        pair = (keys[1:] == keys[:-1] + 1) & (index[1:, axis] > 0)
        low, high = values[:-1][pair], values[1:][pair]  # [Q]
        values = torch.stack([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high], dim=1).flatten()
        index = index[:-1][pair].repeat_interleave(2, dim=0)
        index[:, axis] *= 2
        index[0::2, axis] += 1
        index[1::2, axis] += 2
        sides[axis] *= 2
    return values, index


def halve_field(values: Tensor, index: Tensor, resolution: int) -> tuple[Tensor, Tensor, Tensor]:
    """Average a field with samples at the centers of cells over the eight around each sample of a grid half as fine.

    Args:
        values: `[N]`.
        index: int `[N, 3]` in `0..resolution-1`, every sample once.
        resolution: side of the given grid, an even number.

    Returns:
        Means of those of the eight that are known `[P]`, int64 index `[P, 3]` in `0..resolution/2-1`, rows sorted,
        and whether all eight are known `[P]`.
    """
    side = resolution // 2
    keys, order = torch.sort(_keys(index.long() // 2, side))
    cells, counts = torch.unique_consecutive(keys, return_counts=True)
    rows = torch.arange(len(cells), device=values.device).repeat_interleave(counts)
    means = torch.zeros(len(cells), dtype=torch.float64, device=values.device)
    means.index_add_(0, rows, values[order].double())
    places = torch.stack([cells // side**2, cells // side % side, cells % side], dim=1)
    return (means / counts).to(values.dtype), places, counts == 8


def _keys(index: Tensor, resolution: int) -> Tensor:
    x, y, z = index.unbind(1)
    return (x * resolution + y) * resolution + z
