"""What a tokenizer should answer: the measured distances in whole latent cells, and where the shape is thin.

Targets fill latent cells: inside the band the measured distance; beyond it, in signed fields, +1 or -1 by flood fill.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdf_vqvae.sparse.coordinates import linear_keys
from sdf_vqvae.sparse.tensor import SparseTensor


def dense_targets(field: SparseTensor, cells: SparseTensor, *, signed: bool = True) -> Tensor:
    """Return the target of every voxel in the latent cells: float32 `[M, s, s, s]`, NaN where unknown.

    Args:
        field: the distance field `[N, 1]`, in units of its band where signed, on the data grid of side `s` times the
            cells'.
        cells: the latent cells `[M, *]`.
        signed: fill what lies beyond the band by the sign of the nearest voxels of known sign in the cell. That is
            exact, since beyond the band no step between neighbors can cross the surface.
    """
    side = field.side // cells.side
    rows = torch.full((field.batch_size * cells.side**3,), len(cells), dtype=torch.int32, device=field.device)
    rows[linear_keys(cells.coords, cells.side)] = torch.arange(len(cells), dtype=torch.int32, device=field.device)
    batch, x, y, z = field.coords.unbind(1)
    # Voxels without a cell go to a cell of their own, which is cut off; selecting the others would wait for a count.
    cell = rows[((batch * cells.side + x // side) * cells.side + y // side) * cells.side + z // side]
    dense = torch.full(((len(cells) + 1) * side**3,), torch.nan, device=field.device)
    dense[cell.long() * side**3 + (x % side * side + y % side) * side + z % side] = field.feats[:, 0].float()
    dense = dense[: len(cells) * side**3].view(-1, side, side, side)
    if not signed:
        return dense
    unknown = dense.isnan()
    inside, blank = _spread(dense < 0, unknown)
    far = torch.where(inside, -1.0, 1.0).masked_fill_(blank[:, None, None, None], torch.nan)
    return torch.where(unknown, far, dense)


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
    step = torch.tensor([0, 1], device=first.device)
    inner = ((step[:, None, None] * side + step[:, None]) * side + step).view(-1)
    return dense.view(-1)[(first[:, None] + inner).view(-1)]
