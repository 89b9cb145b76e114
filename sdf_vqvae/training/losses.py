"""How far a tokenizer's answers are from what it should answer (`targets`), and the sum that training makes small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdf_vqvae.config.architecture import VAEConfig
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.model.residual import Occupancy
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training.targets import dense_targets, targets_of, thin_at, thin_blocks

_NEAR = 1 / 3
"""Share of the band that counts as near the surface: one voxel at band 3."""
_SHARP = 6.0
"""How fast a voxel goes from inside to outside (`surface_error`), over the band."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the decoder answered, and what it should have."""

    predicted: Tensor
    """float32 `[P]`, voxels of a block of 2^3 adjacent, z fastest."""
    target: Tensor
    """float32 `[P]`, NaN where unknown."""
    blocks: CoordinateSet
    """The P / 8 blocks."""
    signed: bool
    """The field has signs and is in units of its band."""
    thin: Tensor | None
    """Of `thin_blocks`, where asked for and the field is signed."""


def answers_of(out: Mapping[str, Any], field: SparseTensor, config: VAEConfig, *, thin: bool) -> Answers:
    """Return the answers of a forward pass beside their targets, without a wait for the device.

    Args:
        out: of `SparseSDFVQVAE.forward`.
        field: what it was given: all voxels, also those that the encoder doesn't see.
        config: of the tokenizer.
        thin: find out where the shapes are thin.
    """
    signed = config.field.kind == "sdf" and config.field.unit == "band"
    decoded = out["reconst_x"]
    dense = dense_targets(field, out["latent"], signed=signed)
    return Answers(
        predicted=decoded.feats[:, 0].float(),
        target=targets_of(decoded, dense, config.levels),
        blocks=decoded.coordinates.coarser()[0],
        signed=signed,
        thin=thin_blocks(dense, field, out["latent"]) if thin and signed else None,
    )


def training_loss(
    out: Mapping[str, Any], answers: Answers, trainer: TrainerConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a forward pass and its parts by the names in the log, on the device.

    Args:
        out: of `SparseSDFVQVAE.forward`.
        answers: its answers, with `thin` where `thin_weight` is not 0.
        trainer: the weights of the parts.
    """

    def weights(cells: CoordinateSet) -> Tensor | None:
        if trainer.thin_weight and answers.thin is not None:
            relative = 1 + trainer.thin_weight * thin_at(answers.thin, cells)
            return object_weights(cells, trainer.object_balance, relative)
        return object_weights(cells, trainer.object_balance) if trainer.object_balance else None

    of_blocks = weights(answers.blocks)
    total, parts = reconstruction_loss(
        answers.predicted,
        answers.target,
        weights=None if of_blocks is None else of_blocks.repeat_interleave(8),
        kind=trainer.loss_type,
        sign_weight=trainer.sign_weight,
        slope_weight=trainer.slope_weight,
        surface_weight=trainer.surface_weight,
        signed=answers.signed,
    )
    parts["commitment"] = out["commitment_loss"]
    total = total + trainer.lambda_commitment * out["commitment_loss"]
    if out["vq_loss"] is not None:
        total = total + trainer.lambda_vq * out["vq_loss"]
    if out["occupancy"]:
        cost, missed = occupancy_loss(out["occupancy"], [weights(level.cells) for level in out["occupancy"]])
        total = total + trainer.lambda_occupancy * cost
        parts |= {"occupancy": cost, **missed}
    if out["indices"].ndim == 2:
        parts["second_share"] = (out["indices"][:, 1] >= 0).float().mean()  # of the cells
    return total, {"loss": total, **parts}


@torch.no_grad()
def object_errors(answers: Answers) -> Tensor:
    """Return the mean error of each object within a third of the band of the surface: float32 `[B]`.

    Signed fields; 0 of an object without such voxels.
    """
    near = answers.target.abs() < _NEAR
    error = torch.where(near, answers.predicted - answers.target, 0.0).abs().view(-1, 8).sum(1)
    count = near.view(-1, 8).sum(1)
    total, counted = (_object_sums(values, answers.blocks) for values in (error, count))
    return (total / counted.clamp(min=1)).float()


@torch.no_grad()
def fine_measures(answers: Answers) -> dict[str, Tensor]:
    """Return what tells of the surface and the thin parts of signed fields, whatever weights a trainer has.

    `l1_near`, `wrong_sign`: of `reconstruction_loss` without weights; `surface`: of `surface_error`, likewise.
    `l1_near_thin`, `wrong_sign_thin`: each voxel weighed by how thin it is there; NaN where nothing is thin.
    """
    if answers.thin is None:
        return {}
    t, known = torch.nan_to_num(answers.target), ~answers.target.isnan()
    miss = answers.predicted - t
    thin = thin_at(answers.thin, answers.blocks).repeat_interleave(8)
    near = (known & (t.abs() < _NEAR)).float()
    error, wrong = miss.abs(), ((answers.predicted < 0) != (t < 0)).float()
    measures = {"surface": surface_error(answers.predicted, t, known.float())}
    for ending, weights in {"": near, "_thin": near * thin}.items():
        measures[f"l1_near{ending}"] = torch.dot(error, weights) / weights.sum()
        measures[f"wrong_sign{ending}"] = torch.dot(wrong, weights) / weights.sum()
    return measures


def object_weights(cells: CoordinateSet, power: float, relative: Tensor | None = None) -> Tensor:
    """Weight every cell by (cells of its object)^-power, mean 1. float32 `[N]`

    `relative` `[N]`: what each cell counts within its object; None: all the same.
    """
    objects = cells.coords[:, 0].contiguous()
    sizes = _object_bounds(cells).diff().float()
    weights = sizes.clamp(min=1).pow(-power)
    weights = weights * (len(objects) / (sizes * weights).sum())
    if relative is None:
        return weights[objects.long()]
    mean = _object_sums(relative, cells) / sizes.clamp(min=1)
    return relative * (weights / mean.clamp(min=1e-6)).float()[objects.long()]


def _object_bounds(cells: CoordinateSet) -> Tensor:
    """Return where the rows of each object begin, and how many there are last. int64 `[B + 1]`"""
    edges = torch.arange(cells.batch_size + 1, device=cells.device, dtype=cells.coords.dtype)
    return torch.searchsorted(cells.coords[:, 0].contiguous(), edges)


def _object_sums(values: Tensor, cells: CoordinateSet) -> Tensor:
    """Return the sum of `[N]` values over the cells of each object: float64 `[B]`, without a wait or an atomic."""
    running = functional.pad(values.double().cumsum(0), (1, 0))
    return running[_object_bounds(cells)].diff()


def reconstruction_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    kind: str = "l1",
    sign_weight: float = 0.0,
    slope_weight: float = 0.0,
    surface_weight: float = 0.0,
    signed: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of predicted against true distances, both `[P]`, voxels of a block of 2^3 adjacent, z fastest.

    The mean error over all known voxels; for signed fields in units of a band also the same over those within a
    third of the band, `sign_weight` times the cross-entropy of the sign, reading (1 + p) / 2 as the probability of
    being outside, `slope_weight` times the mean error of the differences between neighbors in a block, near the
    surface (`slope_error`), and `surface_weight` times how far the answers' surface is from the true one
    (`surface_error`).

    Args:
        prediction: float `[P]`.
        target: float `[P]`, NaN where unknown.
        weights: float `[P]`, what each voxel counts in every mean; None: all the same.
        kind: `l1`, `mse`, `l1_l2` (their mean) or `huber` (quadratic below a tenth).
        sign_weight: see above.
        slope_weight: see above.
        surface_weight: see above.
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
    if surface_weight:
        parts["surface"] = surface_error(prediction.float(), t, counted)
        total = total + surface_weight * parts["surface"]
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
        one, other = miss.unbind(axis)  # not torch.diff, whose gradient fills whole tensors with zeros
        error = (other - one).abs().view(-1)
        total, weight = total + torch.dot(error, w), weight + w.sum()
    return total / weight.clamp(min=1)


def surface_error(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Volume between the answered surface and the true one over the area of the true one, in units of the band.

    With `v(d) = sigmoid(6 d)`, a smooth form of how much of a voxel is outside: `sum |v(p) - v(t)| / sum v'(t)`. For
    small errors this is the mean displacement; it is bounded, as a voxel of the wrong sign costs at most its volume,
    and it is what a volume IoU lacks. All voxels take part, so that where the surface may lie at several depths the
    answer is their median. Asking instead for 0 where the true surface is makes answers flat there, with more signs
    wrong.

    Args:
        prediction: float `[P]`, in units of the band.
        target: float `[P]`, finite.
        weights: float `[P]`, 0 where the target is unknown.
    """
    true = (target * _SHARP).sigmoid()
    between = ((prediction * _SHARP).sigmoid() - true).abs()
    return torch.dot(between, weights) / (_SHARP * torch.dot(true * (1 - true), weights)).clamp(min=1)


def occupancy_loss(
    levels: Sequence[Occupancy], weights: Sequence[Tensor | None] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross-entropy of the predicted children, summed over levels, and how many true ones are missed.

    `weights`: of each level, what its cells count in the cross-entropy, float `[P]` of mean 1; None: all the same.
    """
    parts: dict[str, Tensor] = {}
    losses = []
    for number, (level, weight) in enumerate(zip(levels, weights or [None] * len(levels), strict=True)):
        assert level.truth is not None
        truth = level.truth.float()
        weight = None if weight is None else weight[:, None]
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
