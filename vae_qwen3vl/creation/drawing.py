"""Drawing an object: step by step all that is masked becomes known, the most confident draws first.

Parallel decoding of MaskGIT (Chang et al. 2022) with classifier-free guidance (Ho and Salimans 2021) on logits. What
is known beforehand stays, to the bit and to the code. The same seed on the same device gives the same object,
whatever was drawn before. Knows the networks; nothing of meshes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vae_qwen3vl.creation.config import Sampling
from vae_qwen3vl.creation.generator import ShapeGenerator
from vae_qwen3vl.creation.known import KnownShape
from vae_qwen3vl.creation.networks import MASKED, Conditions
from vae_qwen3vl.creation.octree import allowed_bytes, by_parent, children_of, coarser_states


@torch.inference_mode()
def draw_shape(
    generator: ShapeGenerator,
    given: Conditions,
    *,
    seed: int,
    sampling: Sampling | None = None,
    known: KnownShape | None = None,
) -> tuple[Tensor, Tensor]:
    """Return codes int64 `[M]` and cells int64 `[M, 3]`, rows sorted, of one new object.

    Args:
        generator: in evaluation mode.
        given: conditions of one object (B = 1), on any device.
        seed: of the draws.
        sampling: how to draw.
        known: what is given of the object; by default nothing.

    Raises:
        ValueError: no cell is occupied in what was drawn.
    """
    how, device, side = sampling or Sampling(), generator.what.masked.device, generator.config.side
    known = known or KnownShape.nothing(side)
    random = torch.Generator(device).manual_seed(seed)
    given = Conditions(**{name: value.to(device) for name, value in vars(given).items()}).twice()
    cells = _draw_cells(generator, given, known.states.to(device), how, random)
    if not len(cells):
        raise ValueError("nothing was drawn: no cell is occupied")
    codes = known.codes.to(device)[tuple(cells.T)]  # [M]
    table = generator.what.code_tokens()
    biases = generator.what.biases(table)

    def predict(values: Tensor, masked: Tensor) -> Tensor:
        twin = values.expand(2, -1)
        everywhere = torch.ones_like(twin, dtype=torch.bool)
        queries = generator.what(twin, cells.expand(2, -1, -1), everywhere, given, table)[:, masked]
        return torch.nn.functional.linear(_guided(queries, how.guidance), table, biases)

    return fill(codes, predict, how, random), cells


def _draw_cells(
    generator: ShapeGenerator, given: Conditions, states: Tensor, how: Sampling, random: torch.Generator
) -> Tensor:  # [M, 3]
    sides = generator.where.sides
    of_children = [states]  # from fine to coarse, of the grid one finer than each level's
    while len(of_children[-1]) > 2 * sides[0]:
        of_children.append(coarser_states(of_children[-1]))
    cells = torch.ones([sides[0]] * 3, dtype=torch.bool, device=states.device).nonzero()
    for side, below in zip(sides, reversed(of_children), strict=True):
        if not len(cells):
            break
        allowed = allowed_bytes(by_parent(below)[tuple(cells.T)], root=side == sides[0])  # [L, 256]
        certain = allowed.sum(1) == 1
        values = torch.where(certain, allowed.long().argmax(1), MASKED)

        def predict(
            values: Tensor, masked: Tensor, cells: Tensor = cells, side: int = side, allowed: Tensor = allowed
        ) -> Tensor:
            twin = values.expand(2, -1)
            everywhere = torch.ones_like(twin, dtype=torch.bool)
            logits = generator.where(twin, cells.expand(2, -1, -1), everywhere, side, given)[:, masked]
            return _guided(logits, how.guidance).masked_fill(~allowed[masked], -math.inf)

        cells = children_of(cells, fill(values, predict, how, random))
    return cells


def _guided(answers: Tensor, guidance: float) -> Tensor:  # [2, m, ...] -> [m, ...]
    with_words, without = answers
    return without + guidance * (with_words - without)


def fill(
    values: Tensor, predict: Callable[[Tensor, Tensor], Tensor], how: Sampling, random: torch.Generator
) -> Tensor:
    """Return values `[L]` in which nothing is masked; what was not masked is what it was.

    After step s of n, of the places that were masked at first a share of cos(pi s / 2n) still is. Places are kept by
    the log-likelihood of their draw, and by Gumbel noise that falls with the steps.

    Args:
        values: int64 `[L]`, `MASKED` where something is to be drawn.
        predict: values and places that are masked, bool `[L]` -> logits `[masked, V]`.
        how: steps, temperature, noise.
        random: on the device of the values.
    """
    total = int((values == MASKED).sum())
    for step in range(1, how.steps + 1):
        masked = values == MASKED
        left = int(masked.sum())
        if not left:
            break
        drawn, confidence = _drawn(predict(values, masked).float(), how.temperature, random)
        stay = min(left - 1, int(math.cos(math.pi / 2 * step / how.steps) * total)) if step < how.steps else 0
        noise = how.order_noise * (1 - step / how.steps)
        if noise:
            uniform = torch.rand(left, generator=random, device=values.device).clamp(1e-9, 1 - 1e-7)
            confidence = confidence - noise * (-uniform.log()).log()
        places = masked.nonzero()[:, 0]
        said = confidence.argsort(descending=True, stable=True)[: left - stay]
        values = values.index_copy(0, places[said], drawn[said])
    return values


def _drawn(logits: Tensor, temperature: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return drawn values `[m]` and their log-likelihoods."""
    likely = logits.log_softmax(-1)
    if temperature:
        shares = likely if temperature == 1 else (logits / temperature).log_softmax(-1)
        drawn = torch.multinomial(shares.exp(), 1, generator=random)[:, 0]
    else:
        drawn = likely.argmax(-1)
    return drawn, likely.gather(1, drawn[:, None])[:, 0]
