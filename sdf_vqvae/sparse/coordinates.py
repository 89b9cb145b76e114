"""Sets of active voxels and what can be derived from them: neighbours, coarser and finer sets, windows.

A coordinate set never changes; everything derived is computed once and kept with it, so layers that
share a set share its neighbour table. Knows nothing of features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sdf_vqvae.utils.threads import has_numba, in_threads

# Below this side a neighbour table is found by binary search; above it, through the table of the coarser set.
_SEARCH_SIDE = 16
# Keys are marked in a table of all that could be, where it is at most so many times as long; else sorted.
_MARKS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Windows of about the same length, side by side."""

    rows: Tensor
    """Of each window; what fills it up are rows of others. int64 `[windows, length]`"""
    real: Tensor | None
    """Which of `rows` are the window's own; None: all. bool `[windows, length]`"""
    own: Tensor | None
    """Where those stand in `rows`, flattened; None: everywhere. int64 `[n]`"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """A partition of the rows of a coordinate set into cubic windows."""

    order: Tensor
    """Rows, window after window. int64 `[N]`"""
    bounds: Tensor
    """Where each window begins in `order`, and N. int32 `[W + 1]`"""
    longest: int
    """Rows of the largest window."""

    @cached_property
    def position(self) -> Tensor:
        """Where each row stands in `order`. int64 `[N]`"""
        return torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(len(self.order), device=self.order.device)
        )

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """Windows by their length, padded to powers of two."""
        starts = self.bounds[:-1].long()
        counts = self.bounds[1:].long() - starts
        padded = 1 << torch.ceil(torch.log2(counts.double())).long().clamp_(min=3)
        found: list[Bucket] = []
        for length in torch.unique(padded).tolist():
            chosen = padded == length
            steps = torch.arange(length, device=self.order.device)
            real = steps < counts[chosen, None]  # [W, length]
            places = (starts[chosen, None] + steps).clamp_(max=len(self.order) - 1)
            own = real.flatten().nonzero().squeeze(1)
            full = len(own) == real.numel()
            rows = self.order[places]
            found.append(Bucket(rows=rows, real=None if full else real, own=None if full else own))
        return tuple(found)


class CoordinateSet:
    """Active voxels `(batch, x, y, z)` of a grid of `side`^3, without duplicates, samples contiguous.

    Args:
        coords: int32 `[N, 4]`; batch numbers ascend from 0.
        side: grid side; spatial coordinates lie in `0..side-1`.
        batch_size: number of samples; samples may be empty. Found from `coords` if not given.

    Raises:
        ValueError: wrong shape, coordinates outside the grid, or rows of a sample not contiguous.
    """

    def __init__(self, coords: Tensor, side: int, batch_size: int | None = None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coords must have shape [N, 4] (batch, x, y, z), got {list(coords.shape)}")
        if coords.shape[0] == 0:
            raise ValueError("a coordinate set needs at least one voxel, got none")
        low, high = (int(v) for v in torch.aminmax(coords[:, 1:]))
        if low < 0 or high >= side:
            raise ValueError(f"coordinates must lie in 0..{side - 1} for a grid of {side}^3, got {low}..{high}")
        batch = coords[:, 0]
        if coords.shape[0] > 1 and bool((batch[1:] < batch[:-1]).any()):
            raise ValueError("rows of one sample must be contiguous and batch numbers ascending")
        first, last = int(batch[0]), int(batch[-1])
        if first < 0 or (batch_size is not None and last >= batch_size):
            raise ValueError(f"batch numbers must lie in 0..{(batch_size or 1) - 1}, got {first}..{last}")
        self._fill(coords.to(torch.int32), side, last + 1 if batch_size is None else batch_size)

    def _fill(self, coords: Tensor, side: int, batch_size: int) -> None:
        self.coords = coords  # [N, 4]
        self.side = side
        self.batch_size = batch_size
        self._coarser: tuple[CoordinateSet, Tensor] | None = None
        self._derived: dict[Any, Any] = {}

    @classmethod
    def _trusted(cls, coords: Tensor, side: int, batch_size: int) -> CoordinateSet:
        """Build from coordinates already known to be valid (derived from a valid set)."""
        new = cls.__new__(cls)
        new._fill(coords, side, batch_size)
        return new

    @classmethod
    def of_keys(cls, keys: Tensor, side: int, batch_size: int) -> CoordinateSet:
        """Build from the `linear_keys` of valid voxels, int64 `[N]`, ascending and each once."""
        new = cls._trusted(coords_of_keys(keys, side), side, batch_size)
        new._derived["is_sorted"] = True
        return new

    def __len__(self) -> int:
        return self.coords.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the coordinates and of everything derived from them."""
        return self.coords.device

    def derived(self, key: Any, build: Callable[[], Any]) -> Any:
        """Return the cached value under `key`, building it on first use (backends keep their maps here)."""
        if key not in self._derived:
            self._derived[key] = build()
        return self._derived[key]

    @cached_property
    def keys(self) -> Tensor:
        """One int64 number a voxel, ascending in lexicographic (batch, x, y, z) order. [N]"""
        return linear_keys(self.coords, self.side)

    @cached_property
    def row_splits(self) -> list[int]:
        """Row numbers where each sample begins, and the row count last (`batch_size + 1` numbers)."""
        bounds = torch.arange(self.batch_size + 1, dtype=torch.int32, device=self.device)
        return torch.searchsorted(self.coords[:, 0].contiguous(), bounds).tolist()

    @property
    def is_sorted(self) -> bool:
        """Whether the rows are in lexicographic order without duplicates."""
        return bool(self.derived("is_sorted", lambda: bool((self.keys[1:] > self.keys[:-1]).all())))

    @property
    def knows_cells(self) -> bool:
        """Whether the coarser set is known already."""
        return self._coarser is not None

    def coarser(self) -> tuple[CoordinateSet, Tensor]:
        """Return the set of the 2^3 cells that hold these voxels (rows sorted) and each row's cell. [N]"""
        if self._coarser is None:
            side = (self.side + 1) // 2
            b, x, y, z = self.coords.unbind(1)
            keys, parent = _different(_keys(b, x >> 1, y >> 1, z >> 1, side), self.batch_size * side**3)
            self._coarser = CoordinateSet.of_keys(keys, side, self.batch_size), parent
        return self._coarser

    def finer(self, kept: Tensor | None = None) -> CoordinateSet:
        """Return the set of the children of every voxel; children of a voxel are adjacent, z fastest.

        Args:
            kept: bool `[N, 8]`, the children that exist; None: all eight.

        The children know their cells, so the cells must not keep the children: sets that hold each other
        would leave their tables on the GPU until the garbage collector comes by.
        """
        doubled = self.coords.clone()
        doubled[:, 1:] *= 2
        offsets = torch.tensor([(0, *o) for o in product((0, 1), repeat=3)], device=self.device)
        children = (doubled[:, None] + offsets.to(torch.int32)).reshape(-1, 4)  # [8 N, 4]
        if kept is None:
            rows = torch.arange(len(self), device=self.device).repeat_interleave(8)
        else:
            places = kept.reshape(-1).nonzero().squeeze(1)
            children, rows = children[places], places >> 3
        fine = CoordinateSet._trusted(children, self.side * 2, self.batch_size)
        fine._coarser = self, rows
        return fine

    def ancestors(self, steps: int) -> Tensor:
        """Return the row, in the set `steps` times coarser, that holds each voxel. int64 `[N]`"""
        rows = torch.arange(len(self), device=self.device)
        cells = self
        for _ in range(steps):
            cells, parent = cells.coarser()
            rows = parent[rows]
        return rows

    def places_in_cells(self) -> Tensor:
        """Return where each voxel stands among all children of the coarser set: 8 cell + child. int64 `[N]`"""
        return self.derived("places in cells", lambda: self.coarser()[1] * 8 + _child_slot(self.coords))

    def contains(self, coords: Tensor) -> Tensor:
        """Return which of the rows int `[..., 4]` (batch, x, y, z) are voxels of this sorted set. bool `[...]`"""
        wanted = linear_keys(coords.reshape(-1, 4), self.side)
        place = torch.searchsorted(self.keys, wanted).clamp_(max=len(self) - 1)
        return (self.keys[place] == wanted).view(coords.shape[:-1])

    def neighbors(self) -> Tensor:
        """Return, for each voxel and each of 27 offsets (x slowest, z fastest), the neighbour's row or -1.

        The offset of column k is `(k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1)`. int32 `[N, 27]`.
        """
        return self.derived(
            "neighbors",
            self._neighbors_by_search if self.side <= _SEARCH_SIDE else self._neighbors_by_cells,
        )

    def _neighbors_by_search(self) -> Tensor:
        sorted_keys, order = torch.sort(self.keys)
        columns = []
        for offset in product((-1, 0, 1), repeat=3):
            moved = self.coords.clone()
            moved[:, 1:] += torch.tensor(offset, dtype=torch.int32, device=self.device)
            inside = ((moved[:, 1:] >= 0) & (moved[:, 1:] < self.side)).all(dim=1)
            wanted = linear_keys(moved, self.side)
            place = torch.searchsorted(sorted_keys, wanted).clamp_(max=len(self) - 1)
            found = inside & (sorted_keys[place] == wanted)
            columns.append(torch.where(found, order[place], -1).to(torch.int32))
        return torch.stack(columns, dim=1)

    def _neighbors_by_cells(self) -> Tensor:
        """Look neighbours up through the cells of the coarser set: gathers only, no search, no sort."""
        cells, parent = self.coarser()
        cell_neighbors = cells.neighbors()  # [P, 27]
        slot = _child_slot(self.coords).long()  # [N]
        rows_in_cell = torch.full((len(cells) * 8 + 1,), -1, dtype=torch.int32, device=self.device)
        rows_in_cell[parent * 8 + slot] = torch.arange(len(self), dtype=torch.int32, device=self.device)
        cell_offset, child_slot = _neighbor_lookup(self.device)  # [8, 27] each
        table = torch.empty((len(self), 27), dtype=torch.int32, device=self.device)
        if self.device.type == "cpu" and has_numba():
            from sdf_vqvae.sparse.loops_numba import look_up

            tables = (parent, slot, cell_neighbors, rows_in_cell[:-1].view(-1, 8), cell_offset, child_slot)
            arrays = [t.numpy() for t in tables]
            in_threads(lambda start, stop: look_up(*arrays, start, stop, table.numpy()), len(self))
            return table
        for rows in torch.arange(len(self), device=self.device).split(1 << 18):
            own_slot = slot[rows]
            cell = torch.gather(cell_neighbors[parent[rows]], 1, cell_offset[own_slot])  # [n, 27]
            place = cell.long() * 8 + child_slot[own_slot]
            table[rows] = rows_in_cell[torch.where(cell >= 0, place, len(cells) * 8)]
        return table

    def windows(self, size: int, shift: int) -> Windows:
        """Partition the rows into windows of `size`^3 voxels, the grid moved by `shift` first."""
        return self.derived(("windows", size, shift), lambda: self._windows(size, shift))

    def _windows(self, size: int, shift: int) -> Windows:
        moved = self.coords.clone()
        moved[:, 1:] = (moved[:, 1:] + shift) // size
        keys = linear_keys(moved, (self.side + shift) // size + 1)
        keys, order = torch.sort(keys, stable=True)
        _, counts = torch.unique_consecutive(keys, return_counts=True)
        bounds = torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)).to(torch.int32)
        return Windows(order=order, bounds=bounds, longest=int(counts.max()))


def linear_keys(coords: Tensor, side: int) -> Tensor:
    """Return `((b * side + x) * side + y) * side + z` as int64 for int coords `[N, 4]`."""
    b, x, y, z = coords.unbind(1)
    return _keys(b, x, y, z, side)


def _keys(b: Tensor, x: Tensor, y: Tensor, z: Tensor, side: int) -> Tensor:
    """Return the keys of coordinates `[N]` each, in int32 as far as they fit: half the bytes."""
    kind = torch.int32 if side**3 <= torch.iinfo(torch.int32).max else torch.int64
    x, y, z = x.to(kind), y.to(kind), z.to(kind)
    within = torch.add(torch.add(z, y, alpha=side), x, alpha=side**2)
    return torch.add(within, b.long(), alpha=side**3)


def coords_of_keys(keys: Tensor, side: int) -> Tensor:
    """Invert `linear_keys`. int32 `[N, 4]`."""
    # A division of wide numbers is slow on a GPU: one, or a shift.
    bits = side.bit_length() - 1
    column = keys >> 2 * bits if side == 1 << bits else keys // side**2
    within = torch.sub(keys, column, alpha=side**2).int()
    column = column.int()
    b, y = column // side, within // side
    return torch.stack([b, torch.sub(column, b, alpha=side), y, torch.sub(within, y, alpha=side)], dim=1)


def _different(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the different keys among `[N]` numbers below `size`, ascending, and where each key stands among them."""
    if size > _MARKS * len(keys):
        return torch.unique(keys, return_inverse=True)
    there = torch.zeros(size, dtype=torch.bool, device=keys.device)
    there[keys] = True
    different = there.nonzero().squeeze(1)
    place = torch.empty(size, dtype=torch.int32, device=keys.device)
    place[different] = torch.arange(len(different), dtype=torch.int32, device=keys.device)
    return different, place[keys].long()


def _child_slot(coords: Tensor) -> Tensor:
    """Return which child of its cell each voxel is, z fastest: int32 `[N]` in 0..7."""
    _, x, y, z = coords.unbind(1)
    return torch.add(torch.add(z & 1, y & 1, alpha=2), x & 1, alpha=4)


def _neighbor_lookup(device: torch.device) -> tuple[Tensor, Tensor]:
    """For a child in slot s and offset k: which of the parent's 27 neighbours, and which slot in it. [8, 27]"""
    cell_offset = torch.empty((8, 27), dtype=torch.long)
    child_slot = torch.empty((8, 27), dtype=torch.long)
    for s, child in enumerate(product((0, 1), repeat=3)):
        for k, offset in enumerate(product((-1, 0, 1), repeat=3)):
            moved = [c + o for c, o in zip(child, offset, strict=True)]
            px, py, pz = (m // 2 + 1 for m in moved)
            sx, sy, sz = (m % 2 for m in moved)
            cell_offset[s, k] = px * 9 + py * 3 + pz
            child_slot[s, k] = sx * 4 + sy * 2 + sz
    return cell_offset.to(device), child_slot.to(device)
