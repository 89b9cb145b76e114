"""What learns how fast: the projector first, then adapters with it, each with a warm-up and a cosine of its own.

Knows the names of parameters and the settings; nothing of data, losses and processes.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from vae_qwen3vl.config import AlignmentConfig

_LOWEST_RATE = 0.02
_BETAS = (0.9, 0.99)


def make_optimizer(model: nn.Module, config: AlignmentConfig) -> torch.optim.AdamW:
    """Return the optimizer of a model's trained parameters, at rates of 0 (see `set_rates`).

    Args:
        model: adapters among its trained parameters are a group of their own, the last one.
        config: rates, the share of the run that is the projector's alone, and the weight decay.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = [parameter for name, parameter in trained.items() if is_adapter(name)]
    rest = [parameter for name, parameter in trained.items() if not is_adapter(name)]
    groups = [
        {"params": rest, "peak": config.lr, "from": 0.0},
        {"params": adapters, "peak": config.lora_rate, "from": config.projector_share},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=config.weight_decay, betas=_BETAS)


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name is an adapter's."""
    return "lora_" in name


def set_rates(optimizer: torch.optim.Optimizer, progress: float, warmup: float) -> None:
    """Set the rates of all groups for a step.

    Args:
        optimizer: of `make_optimizer`.
        progress: share of the run that is done.
        warmup: share of a group's time in which its rate rises.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate(progress, group["from"], warmup)


def rate(progress: float, begin: float, warmup: float) -> float:
    """Return the share of the peak rate: 0 before `begin`, a linear warm-up, a cosine to 2 %."""
    if progress < begin or begin >= 1:
        return 0.0
    done = (progress - begin) / (1 - begin)
    rise = 1.0 if warmup <= 0 else min(1.0, (done + 1e-3) / warmup)
    return rise * (_LOWEST_RATE + (1 - _LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
