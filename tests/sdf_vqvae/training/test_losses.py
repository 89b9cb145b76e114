"""Losses are what their formulas say."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiny_tokenizer as tiny
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.geometry.solids import Solids
from sdf_vqvae.model.residual import Occupancy
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.sparse.tensor import SparseTensor
from sdf_vqvae.training.losses import (
    Answers,
    answers_of,
    fine_measures,
    object_errors,
    object_weights,
    occupancy_loss,
    reconstruction_loss,
    slope_error,
    surface_error,
    training_loss,
)
from sdf_vqvae.training.streams import joined_field
from sdf_vqvae.training.thin_shapes import part


@pytest.mark.parametrize(("kind", "expected"), [("l1", 0.2), ("mse", 0.04), ("l1_l2", 0.12), ("huber", 0.15)])
def test_a_uniform_error_costs_what_the_formula_says(kind: str, expected: float) -> None:
    target = torch.tensor([0.9, -0.9, 0.8, torch.nan]).repeat(2)
    total, parts = reconstruction_loss(torch.nan_to_num(target) - 0.2, target, kind=kind)
    assert float(total) == pytest.approx(expected, abs=1e-6)  # nothing near the surface
    assert float(parts["l1"]) == pytest.approx(0.2, abs=1e-6)


def test_a_shift_costs_no_slope_and_a_tilt_does() -> None:
    target = torch.linspace(-0.3, 0.3, 8)
    known = torch.ones(8)
    assert float(slope_error(torch.full((8,), 0.1), target.abs(), known)) == pytest.approx(0, abs=1e-6)
    assert float(slope_error(target, target.abs(), known)) > 0.05


def test_occupancy_counts_what_is_missed_and_what_is_extra() -> None:
    cells = CoordinateSet(torch.tensor([[0, 0, 0, 0]], dtype=torch.int32), 4)
    truth = torch.tensor([[True] * 4 + [False] * 4])
    logits = torch.tensor([[5.0, 5, 5, -5, 5, -5, -5, -5]])
    loss, parts = occupancy_loss([Occupancy(cells=cells, logits=logits, truth=truth)])
    assert float(parts["missed_0"]) == 0.25
    assert float(parts["extra_0"]) == 0.25
    right, _ = occupancy_loss([Occupancy(cells=cells, logits=torch.where(truth, 5.0, -5.0), truth=truth)])
    assert float(right) < float(loss)


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_a_quarter_of_the_cells_weighs_more_by_the_power(power: float, ratio: float) -> None:
    rows = [[0, 0, 0, z] for z in range(3)] + [[2, x, y, z] for x in range(3) for y in range(2) for z in range(2)]
    cells = CoordinateSet(torch.tensor(rows, dtype=torch.int32), 4, batch_size=4)  # 1 and 3 are empty
    weights = object_weights(cells, power)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[0] / weights[-1]) == pytest.approx(ratio)


def test_weights_of_one_object_change_nothing() -> None:
    target = torch.linspace(-0.5, 0.5, 16)
    guess = target + torch.linspace(-0.1, 0.2, 16)
    plain, _ = reconstruction_loss(guess, target, sign_weight=0.1, slope_weight=1.0)
    cells = CoordinateSet(torch.tensor([[0, 0, 0, z] for z in range(16)], dtype=torch.int32), 16)
    weighed, _ = reconstruction_loss(
        guess, target, weights=object_weights(cells, 1.0), sign_weight=0.1, slope_weight=1.0
    )
    assert float(weighed) == pytest.approx(float(plain))


def test_a_small_objects_error_costs_as_much_as_a_large_ones() -> None:
    cells = CoordinateSet(torch.tensor([[int(z >= 8), 0, 0, z % 24] for z in range(32)], dtype=torch.int32), 32)
    target = torch.full((32,), 0.8)
    small, large = target.clone(), target.clone()
    small[:8] -= 0.1
    large[8:] -= 0.1
    weights = object_weights(cells, 1.0)
    cost = [float(reconstruction_loss(guess, target, weights=weights)[0]) for guess in (small, large)]
    assert cost[0] == pytest.approx(cost[1])


def plane(offset: float) -> Tensor:
    """Return distances to a slanted plane on 64 blocks of 2^3 voxels, in units of the band. `[512]`"""
    index = torch.cartesian_prod(*[torch.arange(4)] * 3).float() * 2
    inner = torch.cartesian_prod(*[torch.arange(2)] * 3).float()
    points = (index[:, None] + inner).view(-1, 3) - 3.5
    normal = torch.tensor([2.0, -1.0, 2.0]) / 3
    return ((points @ normal - offset) / tiny.BAND).clamp(-1, 1)


@pytest.mark.parametrize("shift", [-0.6, -0.1, 0.0, 0.25, 0.8])
def test_a_moved_plane_is_as_far_off_as_it_was_moved(shift: float) -> None:
    error = surface_error(plane(0.1 + shift), plane(0.1), torch.ones(512))
    assert float(error) * tiny.BAND == pytest.approx(abs(shift), rel=0.03)


def test_a_flat_answer_is_no_better_than_a_surface_a_voxel_off() -> None:
    flat, moved = (surface_error(answer, plane(0.1), torch.ones(512)) for answer in (0.01 * plane(0.1), plane(1.1)))
    assert float(flat) > float(moved)


def test_the_surface_pulls_answers_that_have_none() -> None:
    target = plane(0.1)
    answer = torch.full((512,), 0.7, requires_grad=True)
    surface_error(answer, target, torch.ones(512)).backward()
    gradient = answer.grad
    assert gradient is not None
    assert bool(gradient.isfinite().all())
    inside = target < 0
    assert float(gradient[inside].min()) > 0
    assert float(gradient[inside].sum()) > 0.05


@pytest.mark.parametrize(("weight", "measure"), [("surface_weight", "surface"), ("slope_weight", "slope")])
def test_a_weighed_term_ends_lower_than_without_it(weight: str, measure: str) -> None:
    torch.manual_seed(0)
    target, start = plane(0.1), torch.randn(512)
    ends = {}
    for value in (0.0, 2.0):
        raw = start.clone().requires_grad_()
        optimizer = torch.optim.SGD([raw], lr=2.0)
        for _ in range(20):
            optimizer.zero_grad()
            reconstruction_loss(torch.tanh(raw), target, **{weight: value})[0].backward()
            assert bool(raw.grad.isfinite().all())
            optimizer.step()
        with torch.no_grad():
            ends[value] = float(reconstruction_loss(torch.tanh(raw), target, **{weight: 1.0})[1][measure])
    assert ends[2.0] < 0.9 * ends[0.0]


def answers_to(*solids: Solids) -> Answers:
    """Return the right answers to a batch of solids on the tiny tokenizer's grid, whole latent cells decoded."""
    fields = [solid.field(tiny.SIDE) for solid in solids]
    field = joined_field(fields, tiny.SIDE, torch.device("cpu"))
    vae = tiny.vae(architecture="original")
    with torch.no_grad():
        out = vae(field, bypass=True)
    answers = answers_of(out, field, vae.config, thin=True)
    return Answers(**(vars(answers) | {"predicted": torch.nan_to_num(answers.target)}))


def missing(answers: Answers, where: Tensor, by: float) -> Answers:
    """Return answers that are too far out by an amount in some voxels near the surface."""
    off = where & (answers.target.abs() < 1 / 3)
    return Answers(**(vars(answers) | {"predicted": answers.predicted + by * off}))


PLATE = part((0.3, 0, 0), (1 / 64, 0.3, 0.3))
CUBE = part((-0.1, 0, 0), (0.2, 0.25, 0.3))


def test_an_error_of_a_plate_costs_more_than_that_of_a_block_by_the_weight() -> None:
    answers = answers_to(Solids.joined([PLATE, CUBE]))
    x = answers.blocks.coords[:, 1].repeat_interleave(8) * 2
    plate, cube = x > 45, (x < 40) & (x > 20)
    cells = SparseTensor(torch.zeros(len(answers.blocks), 1), answers.blocks)
    out = {"commitment_loss": torch.zeros(()), "vq_loss": None, "occupancy": [], "reconst_x": cells}
    out["indices"] = torch.zeros(1, dtype=torch.int64)
    costs = {}
    for weight in (0.0, 3.0):
        trainer = TrainerConfig(thin_weight=weight)
        costs[weight] = [
            float(training_loss(out, missing(answers, where, 0.1), trainer)[1]["l1"]) for where in (plate, cube)
        ]
    ratio = [costs[3.0][n] / costs[0.0][n] for n in (0, 1)]
    # The plate is two voxels thick, a third of two bands, its deepest sample half a voxel from the middle.
    assert ratio[0] / ratio[1] == pytest.approx(1 + 3 * (1 - 0.9 / 3), rel=0.2)
    assert ratio[1] < 1
    measures = fine_measures(missing(answers, plate, 0.1))
    assert float(measures["l1_near_thin"]) == pytest.approx(0.1, rel=0.1)
    assert float(fine_measures(missing(answers, cube, 0.1))["l1_near_thin"]) < 0.02


def test_thin_weights_have_mean_one_in_every_object() -> None:
    answers = answers_to(PLATE, CUBE, Solids.joined([PLATE, CUBE]))
    relative = torch.rand(len(answers.blocks)) + 0.5
    weights = object_weights(answers.blocks, 0.0, relative)
    objects = answers.blocks.coords[:, 0]
    for number in range(3):
        assert float(weights[objects == number].mean()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(
        object_weights(answers.blocks, 0.5, torch.ones(len(weights))), object_weights(answers.blocks, 0.5)
    )


def test_a_block_has_nothing_thin_to_measure() -> None:
    assert math.isnan(float(fine_measures(answers_to(CUBE))["l1_near_thin"]))


def test_each_object_has_its_own_error() -> None:
    answers = answers_to(PLATE, CUBE)
    second = (answers.blocks.coords[:, 0] == 1).repeat_interleave(8)
    errors = object_errors(missing(answers, second, 0.07))
    assert errors.tolist() == pytest.approx([0, 0.07], abs=1e-6)


class Waits(TorchDispatchMode):
    """Lists operations whose result, or whose size, a host must wait for on a GPU, and copies from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        slow = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "lift_fresh")
        masks = "index" in name and any(
            getattr(index, "dtype", None) == torch.bool
            for given in args
            if isinstance(given, list)
            for index in given
        )
        if masks or any(part in name for part in slow):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("args", [{"input_band": 1.75}, tiny.PATCHES], ids=["residual", "patches"])
def test_targets_and_losses_do_not_wait_for_the_device(args: dict[str, Any]) -> None:
    vae = tiny.vae(**args)
    field = joined_field([tiny.field(12.0), tiny.field(20.0)], tiny.SIDE, torch.device("cpu"))
    out = vae(field, bypass=True)
    trainer = TrainerConfig(slope_weight=1.0, thin_weight=3.0, surface_weight=1.0, object_balance=0.5)
    with Waits() as waits:
        answers = answers_of(out, field, vae.config, thin=True)
        training_loss(out, answers, trainer)[0].backward()
        errors = object_errors(answers)
    assert waits.found == []
    assert bool((errors > 0).all())
    with Waits() as waits:
        joined_field([tiny.field(12.0)], tiny.SIDE, torch.device("cpu"))
    assert waits.found != []
