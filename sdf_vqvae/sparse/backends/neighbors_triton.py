"""The neighbour map of `triton_backend` on CUDA: voxels in a table by hashing, looked up for 27 neighbours each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_PADDED = 128
"""Rows are rounded up to this many."""
_ROW_BITS = 30
_BRICK = 128
"""Side of the bricks within which rows are grouped, voxels."""
_INSERTED = 64  # rows a program
_FOUND = 8


def fits(rows: int, side: int, batch_size: int) -> bool:
    """Return whether a voxel's number and its row fit into one entry of the table of voxels."""
    return rows < 1 << _ROW_BITS and batch_size * side**3 <= 1 << (63 - _ROW_BITS)


def neighbor_table(coords: Tensor, side: int) -> Tensor:
    """Return the row at each of 27 offsets from a row's voxel, or -1. int32 `[27, N rounded up]`

    Args:
        coords: int32 `[N, 4]`, contiguous.
        side: grid side.
    """
    count = len(coords)
    rows = triton.cdiv(count, _PADDED) * _PADDED
    capacity = triton.next_power_of_2(3 * count)
    voxels = torch.full((capacity,), -1, dtype=torch.int64, device=coords.device)
    table = torch.empty((27, rows), dtype=torch.int32, device=coords.device)
    _insert_kernel[(triton.cdiv(count, _INSERTED),)](
        coords, voxels, count, side, capacity - 1, _INSERTED, num_warps=2
    )
    _find_kernel[(rows // _FOUND,)](coords, voxels, table, count, side, capacity - 1, rows, _FOUND, num_warps=1)
    return table


def children_table(coords: Tensor, parents: Tensor, places_in_cells: Tensor, cells_table: Tensor) -> Tensor:
    """Return the same as `neighbor_table`, from the neighbours of the cells that the voxels lie in.

    Args:
        coords: int32 `[N, 4]`, contiguous.
        parents: each voxel's cell, int64 `[N]`.
        places_in_cells: 8 times its cell, and where it lies in that, int64 `[N]`.
        cells_table: of the cells.
    """
    count = len(coords)
    places = triton.cdiv(count, _PADDED) * _PADDED
    rows_in_cells = torch.full((8 * cells_table.shape[1],), -1, dtype=torch.int32, device=coords.device)
    rows_in_cells[places_in_cells] = torch.arange(count, dtype=torch.int32, device=coords.device)
    table = torch.empty((27, places), dtype=torch.int32, device=coords.device)
    _children_kernel[(places // _PADDED,)](
        coords, parents, rows_in_cells, cells_table, table, count, cells_table.shape[1], places, _PADDED
    )
    return table


def rearranged(neighbors: Tensor) -> Tensor:
    """Return the same as `neighbor_table` from `CoordinateSet.neighbors`."""
    return torch.nn.functional.pad(neighbors, (0, 0, 0, -len(neighbors) % _PADDED), value=-1).T.contiguous()


def grouped(table: Tensor, coords: Tensor, side: int, batch_size: int, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bring rows of a brick that have the same neighbours together, so that blocks of rows have fewer taps.

    Args:
        table: of `neighbor_table`.
        coords: int32 `[N, 4]`, contiguous.
        side: grid side.
        batch_size: samples.
        block: rows of a block, which `table` has a multiple of.

    Returns:
        the order: the row at each new place, int32 `[N]`; the table of the new places; and how many taps each block
        has, then which, ascending, then -1: int32 `[blocks, 32]`.
    """
    count, places = len(coords), table.shape[1]
    bricks = triton.cdiv(side, _BRICK)
    # Sorting takes half as long where brick and pattern, of all neighbours but the voxel itself, fit into 32 bits.
    dtype = torch.int32 if batch_size * bricks**3 <= 1 << 6 else torch.int64
    keys = torch.empty(count, dtype=dtype, device=table.device)
    _key_kernel[(places // _PADDED,)](table, coords, keys, count, places, bricks, _BRICK, _PADDED)
    order = torch.sort(keys).indices.to(torch.int32)
    moved = torch.empty_like(table)
    taps = torch.empty((triton.cdiv(count, block), 32), dtype=torch.int32, device=table.device)
    _move_kernel[(places // block,)](table, order, moved, taps, count, places, block)
    return order, moved, taps


@triton.jit
def _slot(number, mask):  # type: ignore[no-untyped-def]
    """Return where the search for a voxel's number begins: the same group of four entries for four that follow."""
    mixed = (number >> 2).to(tl.uint32)
    mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B
    mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35
    mixed = mixed ^ (mixed >> 16)
    return ((mixed << 2) | (number & 3).to(tl.uint32)).to(tl.int32, bitcast=True) & mask


@triton.jit
def _insert_kernel(coords, voxels, n, side, mask, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write each voxel's number and row at the first free entry on the path that its number is sent along."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    waiting = row < n
    at = coords + row.to(tl.int64) * 4
    b = tl.load(at, mask=waiting, other=0).to(tl.int64)
    x = tl.load(at + 1, mask=waiting, other=0)
    y = tl.load(at + 2, mask=waiting, other=0)
    z = tl.load(at + 3, mask=waiting, other=0)
    number = ((b * side + x) * side + y) * side + z
    entry = (number << 30) | row
    slot = _slot(number, mask)
    free = tl.full((BLOCK,), -1, tl.int64)
    while tl.max(waiting.to(tl.int32), axis=0) > 0:
        # Those that are done put nothing where nothing is.
        seen = tl.atomic_cas(voxels + slot, free, tl.where(waiting, entry, free), sem="relaxed")
        waiting = waiting & (seen != -1)
        slot = tl.where(waiting, (slot + 5) & mask, slot)


@triton.jit
def _find_kernel(  # type: ignore[no-untyped-def]
    coords, voxels, table, n, side, mask, rows, ROWS: tl.constexpr
):
    """Look up the neighbours of a few rows."""
    own = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = own < n
    at = coords + own.to(tl.int64) * 4
    b = tl.load(at, mask=valid, other=0).to(tl.int64)
    x = tl.load(at + 1, mask=valid, other=0)
    y = tl.load(at + 2, mask=valid, other=0)
    z = tl.load(at + 3, mask=valid, other=0)
    tap = tl.arange(0, 32)
    dx = tap // 9 - 1
    dy = tap // 3 % 3 - 1
    dz = tap % 3 - 1
    number = (((b * side + x) * side + y) * side + z)[:, None] + ((dx.to(tl.int64) * side + dy) * side + dz)[None, :]
    x = x[:, None] + dx[None, :]
    y = y[:, None] + dy[None, :]
    z = z[:, None] + dz[None, :]
    looking = valid[:, None] & (tap < 27)[None, :]
    looking = looking & (x >= 0) & (x < side) & (y >= 0) & (y < side) & (z >= 0) & (z < side)
    slot = _slot(number, mask)
    row = tl.full((ROWS, 32), -1, tl.int32)
    while tl.max(tl.max(looking.to(tl.int32), axis=1), axis=0) > 0:
        entry = tl.load(voxels + slot, mask=looking, other=-1)
        found = looking & ((entry >> 30) == number)
        row = tl.where(found, (entry & 0x3FFFFFFF).to(tl.int32), row)
        looking = looking & (entry != -1) & (found == 0)
        slot = (slot + 5) & mask
    tl.store(table + tap.to(tl.int64)[None, :] * rows + own[:, None], row, mask=(tap < 27)[None, :])


@triton.jit
def _children_kernel(  # type: ignore[no-untyped-def]
    coords, parents, rows_in_cells, cells_table, table, n, cells, places, BLOCK: tl.constexpr
):
    """Find the cell of each neighbour, then its row there."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = own < n
    at = coords + own.to(tl.int64) * 4
    x = tl.load(at + 1, mask=there, other=0) & 1
    y = tl.load(at + 2, mask=there, other=0) & 1
    z = tl.load(at + 3, mask=there, other=0) & 1
    cell = tl.load(parents + own, mask=there, other=0)
    for k in tl.static_range(27):
        # From -1 to 2 along each axis, as seen from the voxel's own cell.
        i = x + (k // 9 - 1)
        j = y + (k // 3 % 3 - 1)
        m = z + (k % 3 - 1)
        offset = ((i >> 1) + 1) * 9 + ((j >> 1) + 1) * 3 + (m >> 1) + 1
        neighbor = tl.load(cells_table + offset.to(tl.int64) * cells + cell, mask=there, other=-1).to(tl.int64)
        slot = (i & 1) * 4 + (j & 1) * 2 + (m & 1)
        row = tl.load(rows_in_cells + neighbor * 8 + slot, mask=neighbor >= 0, other=-1)
        tl.store(table + k * places.to(tl.int64) + own, row)


@triton.jit
def _key_kernel(  # type: ignore[no-untyped-def]
    table, coords, keys, n, places, bricks, SIDE: tl.constexpr, BLOCK: tl.constexpr
):
    """Number a row's brick and, within it, the pattern of its neighbours."""
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.zeros((BLOCK,), tl.int32)
    for k in tl.static_range(26):
        tap = k if k < 13 else k + 1
        row = tl.load(table + tap * places.to(tl.int64) + own)
        bits = bits | ((row >= 0).to(tl.int32) << k)
    # The place along a Gray code: patterns that follow each other differ little.
    for shift in tl.static_range(5):
        bits = bits ^ (bits >> (1 << shift))
    there = own < n
    at = coords + own.to(tl.int64) * 4
    brick = tl.load(at, mask=there, other=0).to(tl.int64)
    for axis in tl.static_range(1, 4):
        brick = brick * bricks + tl.load(at + axis, mask=there, other=0) // SIDE
    tl.store(keys + own, ((brick << 26) | bits).to(keys.dtype.element_ty), mask=there)


@triton.jit
def _move_kernel(table, order, moved, taps, n, places, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Bring the columns of the table into the new order, and list the taps of each block."""
    block = tl.program_id(0)
    own = block * BLOCK + tl.arange(0, BLOCK)
    there = own < n
    row = tl.load(order + own, mask=there, other=0)
    tap = tl.arange(0, 32)
    present = tl.zeros((32,), tl.int32)
    for k in tl.static_range(27):
        neighbor = tl.load(table + k * places.to(tl.int64) + row, mask=there, other=-1)
        tl.store(moved + k * places.to(tl.int64) + own, neighbor)
        present = tl.where((tap == k) & (tl.max(neighbor, axis=0) >= 0), 1, present)
    place = tl.where(present > 0, tl.cumsum(present, axis=0), 0)
    listed = tl.max(tl.where(place[None, :] == tap[:, None], tap[None, :], -1), axis=1)
    tl.store(taps + block * 32 + tap, tl.where(tap == 0, tl.sum(present, axis=0), listed), mask=block * BLOCK < n)
