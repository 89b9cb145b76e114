"""How far a tokenizer's answers are from what it should answer (`targets`), and the sum that training makes small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.model.residual import Occupancy
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training.targets import dense_targets, targets_of

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
    blocks, _ = out["reconst_x"].coordinates.coarser()
    total, parts = reconstruction_loss(
        out["reconst_x"].feats[:, 0],
        target,
        weights=object_weights(blocks, power).repeat_interleave(8) if power else None,
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
    known = ~target.isnan()
    counted = known.float() if weights is None else torch.where(known, weights, 0.0)
    t = torch.nan_to_num(target)
    miss = prediction.float() - t
    error = miss.abs()
    cost = _cost(error, kind)
    share = _shares(counted)
    parts = {"l1": torch.dot(error.detach(), share)}
    if not signed:
        return torch.dot(cost, share), parts
    distance = t.abs()
    near = _shares(torch.where(distance < _NEAR, counted, 0.0))
    agreement = prediction.float() * torch.where(t >= 0, 0.5, -0.5) + 0.5
    parts |= {
        "l1_near": torch.dot(error.detach(), near),
        "sign": -torch.dot(agreement.clamp(min=1e-4).log(), share),
        "wrong_sign": torch.dot((agreement < 0.5).float(), near),
    }
    total = torch.dot(cost, share + near) + sign_weight * parts["sign"]
    if slope_weight:
        parts["slope"] = slope_error(miss, distance, counted)
        total = total + slope_weight * parts["slope"]
    return total, parts


def slope_error(miss: Tensor, distance: Tensor, weights: Tensor) -> Tensor:
    """Mean |difference of neighbors in the answers - that in the targets| over the edges of blocks, near the surface.

    An edge counts where one end lies within two thirds of the band, by the smaller weight of its ends.

    Args:
        miss: float `[P]`: answers less targets, voxels of a block of 2^3 adjacent, z fastest.
        distance: float `[P]`: |targets|.
        weights: float `[P]`, 0 where the target is unknown.
    """
    shape = (-1, 2, 2, 2)
    miss, weights, near = miss.view(shape), weights.view(shape), (distance < 2 * _NEAR).view(shape)
    total, weight = miss.new_zeros(()), miss.new_zeros(())
    for axis in (1, 2, 3):
        one_near, other_near = near.unbind(axis)
        w = torch.where(one_near | other_near, torch.minimum(*weights.unbind(axis)), 0.0).view(-1)
        error = torch.diff(miss, dim=axis).abs().view(-1)
        total, weight = total + torch.dot(error, w), weight + w.sum()
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


def _shares(weights: Tensor) -> Tensor:
    """Return weights `[P]` whose dot product with values is their weighted mean: one pass, and one back."""
    return weights / weights.sum().clamp(min=1)
