"""The trained weights of a run as its checkpoints have them, and those that are the best so far.

Knows parameters and validation losses; nothing of what they are parameters of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TrainedWeights(nn.Module):
    """The trained parameters of a model under names that a checkpoint may have, sharing their memory."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.register_parameter(name.replace(".", "/"), parameter)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy values into the parameters. Raises a ValueError unless names and shapes are the same."""
        parameters = dict(self.named_parameters())
        if {n: p.shape for n, p in parameters.items()} != {n: v.shape for n, v in state.items()}:
            raise ValueError("the checkpoint holds other parameters than this run trains: give the same settings")
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


class BestWeights:
    """The weights that are a run's result so far, and how good they are.

    Args:
        measure: "gap", "val_loss" or "last" (see `AlignmentConfig.best_by`).
    """

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self.score, self.step = -math.inf, 0
        self.losses: dict[str, float] = {}
        self.weights: dict[str, Tensor] | None = None

    def consider(self, step: int, losses: Mapping[str, float], trained: TrainedWeights) -> None:
        """Take a copy of the weights of a step if its validation losses are the best."""
        gap = losses["val_loss_other_shape"] - losses["val_loss"]
        score = {"gap": gap, "val_loss": -losses["val_loss"], "last": float(step)}[self.measure]
        if math.isfinite(score) and score >= self.score:
            self.score, self.step, self.losses = score, step, dict(losses)
            self.weights = {name: value.detach().cpu().clone() for name, value in trained.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint says of them in plain values."""
        score = self.score if math.isfinite(self.score) else None
        return {"best_score": score, "best_step": self.step, "best_losses": self.losses}

    def averages(self) -> list[nn.Module]:
        """Return them as the checkpoint's writer takes what lies beside a model."""
        if self.weights is None:
            return []
        held = nn.Module()
        for name, value in self.weights.items():
            held.register_buffer(name, value)
        return [held]

    def restore(self, state: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take over what `state` and `averages` gave."""
        self.score, self.step, self.losses = state["best_score"], state["best_step"], state["best_losses"]
        self.weights = dict(weights)
