"""The order of 3D tokens and how many of them there are: sorting, padding, block grouping, pooling.

Works on coordinates and feature rows alone; knows nothing of the VAE before it or the language model behind it.
The order is (batch, z, y, x). Everything is vectorised and stays on the tensors' device. Coordinates may lie on a CPU
beside features on a GPU: nothing waits for the GPU then, which may have other work before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

TruncateMode = Literal["head", "none"]


def check_coords(coords: Tensor) -> Tensor:
    """Return coordinates as int64 `[N, 4]` after checking them.

    Raises:
        ValueError: not `[N, 4]`, not integral, or negative.
    """
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"coords must be [N, 4] = (batch, x, y, z), not {list(coords.shape)}")
    whole = coords.round().long() if coords.is_floating_point() else coords.long()
    if len(whole) and int(whole.min()) < 0:
        raise ValueError(f"coords must not be negative; the smallest is {int(whole.min())}")
    return whole


def object_counts(coords: Tensor) -> Tensor:  # [N, 4] -> [B]
    """Return the number of rows of each object; ids must run from 0 without a gap.

    Raises:
        ValueError: an object id has no row (an object without codes), naming it.
    """
    objects = coords[:, 0].long()
    rows = len(objects)
    if rows == 0:
        return objects
    # Without a gap no id reaches the number of rows. What decides is read once: on a GPU each look waits for it.
    counts = torch.zeros_like(objects).index_add_(0, objects.clamp(0, rows - 1), torch.ones_like(objects))
    low, high, samples = torch.stack([objects.amin(), objects.amax(), (counts > 0).sum()]).tolist()
    if low < 0 or high >= rows:
        raise ValueError(
            f"the 3D batch has id {low if low < 0 else high}, but only {rows} codes: ids count up from 0"
        )
    if samples <= high:
        empty = (counts[: high + 1] == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"the 3D batch has samples 0..{high}, but no codes for {empty}: every sample needs at least "
            "one, and ids count up from 0 without a gap"
        )
    return counts[:samples]


def sequence_keys(coords: Tensor, bits: int | None = None) -> Tensor:  # [N, 4] -> [N]
    """Return one int64 key a row whose order is (batch, z, y, x)."""
    if bits is None:
        bits = key_bits(coords)
    batch, x, y, z = coords.long().unbind(1)
    return (((batch << bits | z) << bits) | y) << bits | x


def key_bits(coords: Tensor) -> int:
    """Return how many bits hold every x, y and z of `coords`.

    Raises:
        ValueError: the coordinates are too large for one int64 key.
    """
    bits = max(1, int(coords[:, 1:].max()).bit_length()) if len(coords) else 1
    if bits > 16:
        raise ValueError(f"coords reach {int(coords[:, 1:].max())}, but latent grids end at 65535")
    return bits


def coords_of_keys(keys: Tensor, bits: int) -> Tensor:  # [N] -> [N, 4]
    """Undo `sequence_keys`."""
    low = (1 << bits) - 1
    return torch.stack([keys >> 3 * bits, keys & low, keys >> bits & low, keys >> 2 * bits & low], dim=1)


def coords_of_cells(cells: Tensor, side: int) -> Tensor:  # [N] -> [N, 3]
    """Return (x, y, z) of the cells of a grid that are counted with x slowest."""
    return torch.stack([cells // side**2, cells // side % side, cells % side], dim=1)


def joined_coords(cells: Sequence[Tensor]) -> Tensor:  # [M, 4]
    """Return (object, x, y, z) of all cells of a batch of objects, each its cells (x, y, z) `[N, 3]`; their dtype."""
    return torch.cat([F.pad(xyz, (1, 0), value=number) for number, xyz in enumerate(cells)])


def rank_in_object(objects: Tensor, counts: Tensor) -> Tensor:  # [N], [B] -> [N]
    """Return each row's place within its object; `objects` ascends, `counts` are its bincount."""
    first = counts.cumsum(0) - counts  # [B]
    return torch.arange(len(objects), device=objects.device) - first[objects]


def prepare_3d_sequence(
    feats: Tensor,  # [M, D]
    coords: Tensor,  # [M, 4]
    max_3d_tokens: int = 2048,
    pad_value: float = 0.0,
    sort: bool = True,
    truncate_mode: TruncateMode = "head",
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort rows by (batch, z, y, x) and cut or pad them to `max_3d_tokens`.

    This is the plain preparation; `Qwen3VLWith3DBranch` never cuts by default, it pools (see `pool_to_budget`).

    Args:
        feats: `[M, D]`.
        coords: `[M, 4]` = (batch, x, y, z).
        max_3d_tokens: length L of the result; 0 or less means all rows and no padding.
        pad_value: fills padded feature rows; padded coordinates are 0.
        sort: False keeps the rows' order.
        truncate_mode: "head" keeps the first `max_3d_tokens` rows, "none" keeps all (L grows).

    Returns:
        `feats [L, D]`, `mask [L]` (True where a row is real), `coords [L, 4]`.
    """
    _check_rows(feats, coords, truncate_mode)
    if sort:
        order = torch.argsort(sequence_keys(check_coords(coords)), stable=True)
        feats, coords = feats[order], coords[order]
    length = _padded_length(len(feats), max_3d_tokens, truncate_mode)
    rows = min(len(feats), length)
    out_feats = feats.new_full((length, feats.shape[1]), pad_value)  # [L, D]
    out_coords = coords.new_zeros((length, 4))  # [L, 4]
    out_feats[:rows] = feats[:rows]
    out_coords[:rows] = coords[:rows]
    mask = torch.arange(length, device=feats.device) < rows  # [L]
    return out_feats, mask, out_coords


def prepare_3d_sequence_batched(
    feats: Tensor,  # [M, D]
    coords: Tensor,  # [M, 4]
    batch_size: int,
    max_3d_tokens: int = 2048,
    pad_value: float = 0.0,
    sort: bool = True,
    truncate_mode: TruncateMode = "head",
) -> tuple[Tensor, Tensor, Tensor]:
    """Do `prepare_3d_sequence` for each of `batch_size` objects (the first column of `coords`).

    Returns:
        `feats [B, L, D]`, `mask [B, L]`, `coords [B, L, 4]`, with L = `max_3d_tokens`, or the longest object's
        length if that is 0 or less (or larger, with truncate_mode "none"). An object without rows is all padding.

    Raises:
        ValueError: a batch id is not below `batch_size`.
    """
    _check_rows(feats, coords, truncate_mode)
    whole = check_coords(coords)
    if len(whole) and int(whole[:, 0].max()) >= batch_size:
        raise ValueError(f"coords have batch id {int(whole[:, 0].max())}, but batch_size is {batch_size}")
    order = torch.argsort(sequence_keys(whole) if sort else whole[:, 0], stable=True)
    feats, coords, objects = feats[order], coords[order], whole[order, 0]
    counts = torch.bincount(objects, minlength=batch_size)  # [B]
    longest = int(counts.max()) if batch_size else 0
    length = _padded_length(longest, max_3d_tokens, truncate_mode)
    rank = rank_in_object(objects, counts)  # [M]
    fits = rank < length
    place = objects[fits], rank[fits]
    out_feats = feats.new_full((batch_size, length, feats.shape[1]), pad_value)  # [B, L, D]
    out_feats = out_feats.index_put(place, feats[fits])
    out_coords = coords.new_zeros((batch_size, length, 4)).index_put(place, coords[fits])  # [B, L, 4]
    mask = torch.arange(length, device=feats.device) < counts[:, None]  # [B, L]
    return out_feats, mask, out_coords


def group_blocks(feats: Tensor, coords: Tensor, merge: int) -> tuple[Tensor, Tensor]:
    """Put the cells of each `merge`^3 block into one row.

    Args:
        feats: `[M, D]`, one row a latent cell.
        coords: `[M, 4]` = (batch, x, y, z), no cell twice.
        merge: cells per block and axis.

    Returns:
        Rows `[T, merge^3 * D + merge^3]` (the cells' features, x slowest, zero where empty, then the occupancy)
        and block coordinates int64 `[T, 4]`, sorted by (batch, z, y, x). With `merge=1` the rows are `[T, D]`:
        every block is full, so no occupancy is needed.

    Raises:
        ValueError: a cell appears twice.
    """
    whole = check_coords(coords)
    bits = key_bits(whole)
    keys, order = torch.sort(sequence_keys(whole, bits))
    if bool((keys[1:] == keys[:-1]).any()):
        row = int((keys[1:] == keys[:-1]).nonzero()[0])
        raise ValueError(f"latent cell {whole[order[row]].tolist()} (batch, x, y, z) appears more than once")
    feats, whole = feats[beside(order, feats)], whole[order]
    if merge == 1:
        return feats, whole
    blocks = torch.cat([whole[:, :1], whole[:, 1:] // merge], dim=1)
    block_keys, row_of = torch.unique(sequence_keys(blocks, bits), return_inverse=True)  # [T], [M]
    x, y, z = (whole[:, 1:] % merge).unbind(1)
    cell = (x * merge + y) * merge + z  # [M]
    rows, cells = len(block_keys), merge**3
    place = beside(row_of * cells + cell, feats)
    packed = feats.new_zeros((rows * cells, feats.shape[1])).index_put((place,), feats)
    occupied = feats.new_zeros(rows * cells).index_put((place,), feats.new_ones(len(feats)))
    return torch.cat([packed.view(rows, -1), occupied.view(rows, -1)], dim=1), coords_of_keys(block_keys, bits)


def pool_to_budget(feats: Tensor, coords: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Average rows over 2^k blocks, per object with the smallest k that leaves at most `budget` rows.

    Args:
        feats: `[T, H]`, sorted by (batch, z, y, x).
        coords: int `[T, 4]`, without repeats.
        budget: rows an object may keep; 0 or less means no limit.

    Returns:
        Pooled rows and coordinates in the order (batch, z, y, x) of the blocks. A pooled row's coordinate is its
        cells' centroid, rounded down: it stays in the units and inside the block of the cells it stands for.
        Objects within the budget pass unchanged.
    """
    counts = object_counts(coords)  # [B]
    if budget <= 0 or int(counts.max()) <= budget:
        return feats, coords
    bits = key_bits(coords)
    level = torch.zeros_like(counts)
    while True:
        shift = level[coords[:, 0]][:, None]  # [T, 1]
        blocks = torch.cat([coords[:, :1], coords[:, 1:] >> shift], dim=1)
        keys, row_of, size = torch.unique(sequence_keys(blocks, bits), return_inverse=True, return_counts=True)
        over = torch.bincount(keys >> 3 * bits, minlength=len(counts)) > budget
        if not bool(over.any()):
            break
        level = level + over
    total = torch.zeros((len(keys), feats.shape[1]), dtype=torch.float32, device=feats.device)
    mean = total.index_add(0, beside(row_of, feats), feats.float()) / beside(size, feats)[:, None]
    centroid = torch.zeros((len(keys), 4), dtype=coords.dtype, device=coords.device).index_add(0, row_of, coords)
    return mean.to(feats.dtype), centroid // size[:, None]


def coarse_occupancy(coords: Tensor, side: int) -> Tensor:  # [N, 4] -> [B, side^3]
    """Return how full each box of a coarse grid is that lies round each object's bounding cube.

    The same wherever the object stands, and on a grid twice as fine. Boxes hold equally many cells where the longest
    side is a multiple of `side` cells, as it is for objects that fill the latent grid; else some hold more.

    Args:
        coords: int `[N, 4]` = (batch, x, y, z), every object with at least one row.
        side: boxes along an axis.

    Returns:
        Occupied cells over the mean number of cells of a box, float32, x slowest. Of an object of fewer cells than
        boxes along its longest side, boxes are no smaller than cells.
    """
    objects, xyz = coords[:, 0], coords[:, 1:].float()
    count = len(object_counts(coords))
    rows = objects[:, None].expand_as(xyz)
    low = xyz.new_full((count, 3), torch.inf).scatter_reduce(0, rows, xyz, "amin")
    high = xyz.new_zeros(count, 3).scatter_reduce(0, rows, xyz, "amax") + 1
    extent = (high - low).amax(1).clamp(min=side)  # [B]
    place = (xyz + 0.5 - ((low + high) / 2)[objects]) / extent[objects, None] * side + side / 2
    x, y, z = place.long().clamp(0, side - 1).unbind(1)
    box = ((objects * side + x) * side + y) * side + z
    full = xyz.new_zeros(count * side**3).index_add_(0, box, torch.ones_like(box, dtype=xyz.dtype))
    return full.view(count, -1) / (extent[:, None] / side) ** 3


def keep_head(feats: Tensor, coords: Tensor, budget: int) -> tuple[Tensor, Tensor]:
    """Keep the first `budget` rows of each object (`coords` sorted by batch); 0 or less keeps all."""
    counts = object_counts(coords)
    if budget <= 0:
        return feats, coords
    fits = (rank_in_object(coords[:, 0], counts) < budget).nonzero().squeeze(1)
    return feats[beside(fits, feats)], coords[fits]


def beside(index: Tensor, rows: Tensor) -> Tensor:
    """Return `index` on the device of `rows`. Nothing waits for the copy but what is computed there."""
    return index.to(rows.device, non_blocking=index.device.type == "cpu")


def _check_rows(feats: Tensor, coords: Tensor, truncate_mode: str) -> None:
    if feats.ndim != 2 or coords.ndim != 2 or coords.shape[1] != 4 or len(feats) != len(coords):
        raise ValueError(f"expected feats [M, D] and coords [M, 4], got {list(feats.shape)} and {list(coords.shape)}")
    if truncate_mode not in ("head", "none"):
        raise ValueError(f"truncate_mode must be 'head' or 'none', not {truncate_mode!r}")


def _padded_length(longest: int, max_3d_tokens: int, truncate_mode: str) -> int:
    if max_3d_tokens <= 0:
        return longest
    return max_3d_tokens if truncate_mode == "head" else max(max_3d_tokens, longest)
