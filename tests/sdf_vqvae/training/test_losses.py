"""Losses are what their formulas say."""

import pytest
import torch

from sdf_vqvae.model.residual import Occupancy
from sdf_vqvae.sparse.coordinates import CoordinateSet
from sdf_vqvae.training.losses import object_weights, occupancy_loss, reconstruction_loss, slope_error


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
