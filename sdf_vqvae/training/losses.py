"""What a tokenizer should answer, how far its answers are from that, and the sum of it that training makes small.

Targets fill whole latent cells: inside the band the measured distance; beyond it, in signed fields, +1 or -1 by
flood fill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.model.residual import Occupancy
from sdf_vqvae.sparse.coordinates import CoordinateSet, linear_keys
from sdf_vqvae.sparse.tensor import SparseTensor

_NEAR = 1 / 3
"""Share of the band that counts as near the surface: one voxel at band 3."""


def training_loss(
    out: Mapping[str, Any], batch: Mapping[str, Tensor], config: VAEConfig, trainer: TrainerConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a forward pass and its parts by the names in the log, on the device.

    Args:
        out: of `SparseSDFVQVAE.forward`.
        batch: what it was given.
        config: of the tokenizer.
        trainer: the weights of the parts.
    """
    signed = config.field.kind == "sdf" and config.field.unit == "band"
    whole = SparseTensor(
        batch["sparse_sdf"],
        torch.cat([batch["batch_idx"][:, None], batch["sparse_index"]], dim=1).int(),
        side=config.data_resolution,
        batch_size=out["latent"].batch_size,
    )
    dense = dense_targets(whole, out["latent"], signed=signed)
    target = targets_of(out["reconst_x"], dense, config.levels)
    power = trainer.object_balance
    total, parts = reconstruction_loss(
        out["reconst_x"].feats[:, 0],
        target,
        weights=object_weights(out["reconst_x"].coordinates, power) if power else None,
        kind=trainer.loss_type,
        sign_weight=trainer.sign_weight,
        slope_weight=trainer.slope_weight,
        signed=signed,
    )
    parts["commitment"] = out["commitment_loss"]
    total = total + trainer.lambda_commitment * out["commitment_loss"]
    if out["vq_loss"] is not None:
        total = total + trainer.lambda_vq * out["vq_loss"]
    if out["occupancy"]:
        levels = [object_weights(level.cells, power) for level in out["occupancy"]] if power else None
        cost, missed = occupancy_loss(out["occupancy"], levels)
        total = total + trainer.lambda_occupancy * cost
        parts |= {"occupancy": cost, **missed}
    return total, {"loss": total, **parts}


def dense_targets(field: SparseTensor, cells: SparseTensor, *, signed: bool = True) -> Tensor:
    """Return the target of every voxel in the latent cells: float32 `[M, s, s, s]`, NaN where unknown.

    Args:
        field: the distance field `[N, 1]`, in units of its band where signed, on the data grid of side `s` times the
            cells'.
        cells: the latent cells `[M, *]`, rows sorted.
        signed: fill what lies beyond the band by the sign of the nearest voxels of known sign in the cell. That is
            exact, since beyond the band no step between neighbors can cross the surface.
    """
    side = field.side // cells.side
    parents = field.coords.clone()
    parents[:, 1:] //= side
    keys = linear_keys(parents, cells.side)
    cell = torch.searchsorted(cells.coordinates.keys, keys).clamp_(max=len(cells) - 1)
    # Voxels without a cell go to a cell of their own, which is cut off; selecting the others would wait for a count.
    cell = torch.where(cells.coordinates.keys[cell] == keys, cell, len(cells))
    x, y, z = (field.coords[:, 1:].long() % side).unbind(1)
    dense = torch.full((len(cells) + 1, side, side, side), torch.nan, device=field.device)
    dense[cell, x, y, z] = field.feats[:, 0].float()
    dense = dense[:-1]
    if not signed:
        return dense
    sign = _flood_signs(torch.nan_to_num(dense, nan=0.0).sign().to(torch.int8), steps=2 * side)
    far = torch.where(sign == 0, torch.nan, sign.float())
    return torch.where(dense.isnan(), far, dense)


def targets_of(decoded: SparseTensor, dense: Tensor, steps: int) -> Tensor:
    """Return the targets `[P]` of decoded voxels, `steps` halvings finer than the cells of `dense_targets`."""
    side = dense.shape[1]
    x, y, z = (decoded.coords[:, 1:].long() % side).unbind(1)
    cell = decoded.coordinates.ancestors(steps)
    return dense.view(-1)[((cell * side + x) * side + y) * side + z]


def _flood_signs(sign: Tensor, steps: int) -> Tensor:
    """Spread signs from known to unknown (0) voxels inside each cell, one neighbor a step. int8 `[M, s, s, s]`"""
    for _ in range(steps):
        padded = functional.pad(sign, (1, 1, 1, 1, 1, 1))
        around = (
            padded[:, 2:, 1:-1, 1:-1]
            + padded[:, :-2, 1:-1, 1:-1]
            + padded[:, 1:-1, 2:, 1:-1]
            + padded[:, 1:-1, :-2, 1:-1]
            + padded[:, 1:-1, 1:-1, 2:]
            + padded[:, 1:-1, 1:-1, :-2]
        )
        sign = torch.where(sign == 0, around.sign(), sign)
    return sign


def object_weights(cells: CoordinateSet, power: float) -> Tensor:
    """Weight every cell by (cells of its object)^-power, mean 1. float32 `[N]`"""
    objects = cells.coords[:, 0].contiguous()
    edges = torch.arange(cells.batch_size + 1, device=objects.device, dtype=objects.dtype)
    sizes = torch.searchsorted(objects, edges).diff().float()
    weights = sizes.clamp(min=1).pow(-power)
    return (weights * (len(objects) / (sizes * weights).sum()))[objects.long()]


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    kind: str = "l1",
    sign_weight: float = 0.0,
    slope_weight: float = 0.0,
    signed: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of predicted against true distances, both `[P]`, voxels of a block of 2^3 adjacent, z fastest.

    The mean error over all known voxels; for signed fields in units of a band also the same over those within a
    third of the band, `sign_weight` times the cross-entropy of the sign, reading (1 + p) / 2 as the probability of
    being outside, and `slope_weight` times the mean error of the differences between neighbors in a block, near
    the surface.

    Args:
        prediction: float `[P]`.
        target: float `[P]`, NaN where unknown.
        weights: float `[P]`, what each voxel counts in every mean; None: all the same.
        kind: `l1`, `mse`, `l1_l2` (their mean) or `huber` (quadratic below a tenth).
        sign_weight: see above.
        slope_weight: see above.
        signed: the field has signs and is in units of its band.
    """
    counted = (~target.isnan()).float()
    if weights is not None:
        counted = counted * weights
    p, t = prediction.float(), torch.nan_to_num(target)
    error = (p - t).abs()
    cost = _cost(error, kind)
    parts = {"l1": _mean(error, counted)}
    total = _mean(cost, counted)
    if not signed:
        return total, parts
    near = counted * (t.abs() < _NEAR)
    agreement = ((1 + p * torch.where(t >= 0, 1.0, -1.0)) / 2).clamp(min=1e-4)
    parts |= {
        "l1_near": _mean(error, near),
        "sign": _mean(-agreement.log(), counted),
        "wrong_sign": _mean((agreement < 0.5).float(), near),
    }
    total = total + _mean(cost, near) + sign_weight * parts["sign"]
    if slope_weight:
        parts["slope"] = slope_error(p, t, counted)
        total = total + slope_weight * parts["slope"]
    return total, parts


def slope_error(p: Tensor, t: Tensor, known: Tensor) -> Tensor:
    """Mean |difference of neighbors in p - that in t| over the edges of blocks `[P / 8, 2, 2, 2]` near the surface.

    An edge counts where both ends are known and one lies within two thirds of the band.
    """
    shape = (-1, 2, 2, 2)
    p, t, known = p.view(shape), t.view(shape), known.view(shape)
    near = (t.abs() < 2 * _NEAR).float()
    total, weight = p.new_zeros(()), p.new_zeros(())
    for axis in (1, 2, 3):
        w = known.amin(axis) * near.amax(axis)
        error = (torch.diff(p, dim=axis) - torch.diff(t, dim=axis)).abs().squeeze(axis)
        total, weight = total + (error * w).sum(), weight + w.sum()
    return total / weight.clamp(min=1)


def occupancy_loss(
    levels: Sequence[Occupancy], weights: Sequence[Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy of the predicted children, summed over levels, and how many true ones are missed.

    `weights`: of each level, what its cells count in the cross-entropy, float `[P]` of mean 1; None: all the same.
    """
    parts: dict[str, Tensor] = {}
    losses = []
    for number, level in enumerate(levels):
        assert level.truth is not None
        truth = level.truth.float()
        weight = None if weights is None else weights[number][:, None]
        losses.append(functional.binary_cross_entropy_with_logits(level.logits, truth, weight))
        parts[f"missed_{number}"] = _mean((level.logits < 0).float(), truth)
        parts[f"extra_{number}"] = _mean((level.logits >= 0).float(), 1 - truth)
    return torch.stack(losses).sum(), parts


def _cost(error: Tensor, kind: str) -> Tensor:
    if kind == "l1":
        return error
    if kind == "mse":
        return error.square()
    if kind == "huber":
        return functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=0.1) / 0.1
    if kind == "l1_l2":
        return (error + error.square()) / 2
    raise ValueError(f"loss_type must be l1, mse, l1_l2 or huber, got {kind!r}")


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; selecting rows by a mask instead would sort them in the backward pass."""
    return (values * weights).sum() / weights.sum().clamp(min=1)
