"""What moves a tokenizer's weights: AdamW, or Muon for the matrices inside and AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdf_vqvae.config.training import TrainerConfig

_BETAS = (0.9, 0.99)
_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, and
_ITERATIONS = 5  # how often it is applied: singular values end between 0.7 and 1.2
_RMS = 0.2
_ENDS = ("stem", "input_layer", "out_layer", "occupancy", "vq")
"""Layers that numbers enter or leave the network by, which Muon is not for."""


def make_optimizer(model: nn.Module, config: TrainerConfig, device: torch.device) -> torch.optim.Optimizer | None:
    """Return the optimizer of what a model trains; None where that is nothing.

    Args:
        model: the tokenizer; parameters that need no gradient are left out.
        config: `optimizer`, `lr` and `weight_decay` count.
        device: where the parameters are.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return None
    settings: dict[str, Any] = {"betas": _BETAS, "fused": device.type == "cuda" or None}
    if config.optimizer == "AdamW":
        return torch.optim.AdamW(trained.values(), lr=config.lr, weight_decay=config.weight_decay, **settings)
    inside = {name for name, p in trained.items() if p.ndim > 1 and not set(_ENDS) & set(name.split("."))}
    return Muon(
        [p for name, p in trained.items() if name in inside],
        [p for name, p in trained.items() if name not in inside],
        lr=config.lr,
        weight_decay=config.weight_decay,
        **settings,
    )


class Muon(torch.optim.Optimizer):
    """Steps whose matrices have singular values near 1 (Jordan et al., 2024, "Muon"), and AdamW for other parameters.

    A step is the momentum, made orthogonal by Newton and Schulz's iteration, times 0.2 sqrt(max(rows, columns)): as
    long as AdamW's usually are, so that learning rate and decay are AdamW's too (Liu et al., 2025, "Muon is Scalable
    for LLM Training"). Weights of convolutions `[out, ..., in]` count as matrices `[out, everything else]`.

    Args:
        matrices: parameters of at least two axes.
        others: those for AdamW.
        lr: learning rate.
        weight_decay: decoupled, of both.
        **adamw: further arguments of `torch.optim.AdamW`.
    """

    def __init__(
        self, matrices: Sequence[Tensor], others: Sequence[Tensor], *, lr: float, weight_decay: float, **adamw: Any
    ) -> None:
        groups = [{"params": list(matrices)}, {"params": list(others)}]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, **adamw)
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient; there is no closure."""
        assert closure is None
        of_matrices, of_others = self.param_groups
        for group in self._adamw.param_groups:
            group["lr"] = of_others["lr"]
        self._adamw.step()
        alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in of_matrices["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for parameters in alike.values():
            self._step(parameters, of_matrices["lr"], of_matrices["weight_decay"])

    def _step(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        """Move parameters of one shape."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ways = torch.stack(torch._foreach_lerp(gradients, momenta, _MOMENTUM)).flatten(2)  # [n, rows, columns]
        length = lr * _RMS * max(ways.shape[1:]) ** 0.5
        steps = orthogonal(ways).to(ways.dtype).view(-1, *parameters[0].shape)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, list(steps), alpha=-length)


def orthogonal(matrices: Tensor) -> Tensor:
    """Return matrices `[n, rows, columns]` with the same singular vectors, and singular values near 1 (0.7 to 1.2).

    By five Newton-Schulz iterations of a quintic polynomial (Jordan et al., 2024), in bfloat16 on a GPU.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        product = x @ x.mT
        x = a * x + (b * product + c * product @ product) @ x
    return x.mT if tall else x
