"""What a tokenizer should answer: the measured distances in whole latent cells, and where the shape is thin.

Targets fill latent cells: inside the band the measured distance; beyond it, in signed fields, +1 or -1 by flood fill.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sdf_vqvae.sparse.coordinates import CoordinateSet, linear_keys
from sdf_vqvae.sparse.tensor import SparseTensor

_BLOCK = 4
"""Voxels along a side of the blocks that thickness is told of: more than a band of 3, so that the neighbors of a
block with a surface show whether there is a whole band of matter behind it."""
_DEEP = 2 / 3
"""Share of the band: at band 3, a voxel short of its end."""


def dense_targets(field: SparseTensor, cells: SparseTensor, *, signed: bool = True) -> Tensor:
    """Return the target of every voxel in the latent cells: float32 `[M, s, s, s]`, NaN where unknown.

    Args:
        field: the distance field `[N, 1]`, in units of its band where signed, on the data grid of side `s` times the
            cells'.
        cells: the latent cells `[M, *]`.
        signed: fill what lies beyond the band by the sign of known voxels that it is connected with in the cell. For
            a closed surface all of them have one sign, since beyond the band no step between neighbors can cross it.
            Signs of an open one, by winding number, also change far from it, in its holes; a run of voxels between
            two signs then takes the one below, not the nearer.
    """
    side = field.side // cells.side
    rows = torch.full((field.batch_size * cells.side**3,), len(cells), dtype=torch.int32, device=field.device)
    rows[linear_keys(cells.coords, cells.side)] = torch.arange(len(cells), dtype=torch.int32, device=field.device)
    _, x, y, z = field.coords.unbind(1)
    # Voxels without a cell go to a cell of their own, which is cut off; selecting the others would wait for a count.
    cell = rows[_cell_keys(field.coords, cells.side, side)]
    dense = torch.full(((len(cells) + 1) * side**3,), torch.nan, device=field.device)
    dense[cell.long() * side**3 + (x % side * side + y % side) * side + z % side] = field.feats[:, 0].float()
    dense = dense[: len(cells) * side**3].view(-1, side, side, side)
    if not signed:
        return dense
    unknown = dense.isnan()
    inside, blank = _spread(dense < 0, unknown)
    far = torch.where(inside, -1.0, 1.0).masked_fill_(blank[:, None, None, None], torch.nan)
    return torch.where(unknown, far, dense)


def _cell_keys(coords: Tensor, cells_side: int, side: int) -> Tensor:
    """Return the number of the cell of `side`^3 voxels that holds each voxel: int32, half the bytes of a key."""
    batch, x, y, z = coords.unbind(1)
    return ((batch * cells_side + x // side) * cells_side + y // side) * cells_side + z // side


def _spread(inside: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Give unknown places the sign of the known ones that they are connected with, inside each cell.

    First along lines, then what lines are wholly unknown along planes of lines, and so on: neighbors beyond the band
    have one sign, so it does not matter which known place it comes from. A line is the bits of one number; adding
    to it carries a sign over a whole run of unknown places at once.

    Args:
        inside: bool `[M, ..., s]`: known and negative.
        unknown: bool `[M, ..., s]`.

    Returns:
        bool `[M, ..., s]`: negative, and bool `[M]`: cells in which nothing is known.
    """
    side = inside.shape[-1]
    kind = torch.int32 if side < 30 else torch.int64
    place = torch.arange(side, device=inside.device)
    value = (torch.ones_like(place) << place).to(kind)
    negative, blank = ((marks * value).sum(-1, dtype=kind) for marks in (inside, unknown))
    # Upwards: a run that begins after a negative place is carried away.
    negative = negative | (blank & ~(blank + (negative << 1 & blank)))
    # The run at the bottom of a line has nothing below it and takes the sign of the first known place.
    first = ~blank & (blank + 1)
    negative = negative | torch.where((negative & first) != 0, first - 1, 0)
    spread = (negative[..., None] & value) != 0
    nothing = blank == (1 << side) - 1
    if nothing.ndim == 1:
        return spread, nothing
    # What is next to a wholly unknown line is of one sign, which any of its places tells.
    behind, empty = _spread(spread[..., 0], nothing)
    return torch.where(nothing[..., None], behind[..., None], spread), empty


def targets_of(decoded: SparseTensor, dense: Tensor, steps: int) -> Tensor:
    """Return the targets `[P]` of decoded voxels, `steps` halvings finer than the cells of `dense_targets`.

    The voxels come in blocks of 2^3, as decoders give them.
    """
    side = dense.shape[1]
    blocks, _ = decoded.coordinates.coarser()
    x, y, z = ((blocks.coords[:, 1:].long() * 2) % side).unbind(1)
    first = ((blocks.ancestors(steps - 1) * side + x) * side + y) * side + z
    step = torch.arange(2, device=first.device)  # made there; copied from here, it would wait for the device
    inner = ((step[:, None, None] * side + step[:, None]) * side + step).view(-1)
    return dense.view(-1)[(first[:, None] + inner).view(-1)]


def thin_blocks(dense: Tensor, field: SparseTensor, cells: SparseTensor) -> Tensor:
    """Return how thin matter, or a gap in it, is in each block of 4^3 voxels: float16 `[B, n, n, n]` in 0..1.

    `1 - max(depth)`, depth in units of the band, over the 3^3 blocks round one that holds voxels inside, and the same
    for voxels outside; the larger of both. The deepest voxels are those of the medial axis, so this is 1 - half the
    thickness over the band: 0 from a thickness of two bands on. What a displaced surface costs of a wall's volume
    goes with 1 over that thickness.

    Args:
        dense: of `dense_targets`, signed.
        field: what they come from.
        cells: the latent cells.
    """
    side = dense.shape[1]
    block = min(_BLOCK, side)
    per, count, batch = side // block, field.side // block, field.batch_size
    # A cell that the field reaches into without being a latent cell is wholly inside or wholly outside: deep.
    sign = torch.zeros(batch * cells.side**3, dtype=torch.float16, device=dense.device)
    sign[_cell_keys(field.coords, cells.side, side).long()] = torch.where(field.feats[:, 0] < 0, -1.0, 1.0).half()
    whole = sign.view(batch, *(cells.side, 1) * 3).expand(batch, *(cells.side, per) * 3)
    depth = torch.stack([-whole, whole]).clamp(min=0).view(2, batch, count, count, count)
    blocks = dense.view(-1, *(per, block) * 3)
    own = torch.stack([-blocks.amin((2, 4, 6)), blocks.amax((2, 4, 6))]).nan_to_num().clamp(min=0)
    steps = torch.arange(per, device=dense.device)
    b, x, y, z = cells.coords.long().unbind(1)
    x, y, z = (at[:, None] * per + steps for at in (x, y, z))
    depth[:, b[:, None, None, None], x[:, :, None, None], y[:, None, :, None], z[:, None, None, :]] = own.half()
    # Beside a cell that the field does not reach, a block ends before the band does, and its last voxels tell.
    beyond = functional.pad((depth == 0).all(0), (1,) * 6, value=True)
    beside = torch.zeros_like(beyond)
    for axis in (1, 2, 3):
        beside |= beyond.roll(1, axis) | beyond.roll(-1, axis)
    beside = beside[:, 1:-1, 1:-1, 1:-1]
    near = functional.pad(torch.where((depth > _DEEP) & beside, 1, depth), (1,) * 6)
    for axis in (2, 3, 4):
        below, here, above = (near.narrow(axis, start, count) for start in range(3))
        near = torch.maximum(torch.maximum(below, here), above)
    return torch.where(depth > 0, 1 - near, 0).amax(0)


def thin_at(thin: Tensor, cells: CoordinateSet) -> Tensor:
    """Return how thin it is (`thin_blocks`) in each cell of a grid, at most: float32 `[N]`."""
    count = thin.shape[1]
    if cells.side < count:
        per = count // cells.side
        thin = thin.view(len(thin), *(cells.side, per) * 3).amax((2, 4, 6))
    batch, x, y, z = cells.coords.long().unbind(1)
    finer = max(1, cells.side // count)
    return thin[batch, x // finer, y // finer, z // finer].float()
