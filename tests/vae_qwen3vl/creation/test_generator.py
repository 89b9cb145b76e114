"""What both networks compute: each object by itself, exact losses in parts, and a bound that training lowers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import tiny_generator as tiny
from vae_qwen3vl.creation.config import GeneratorConfig
from vae_qwen3vl.creation.generator import ShapeGenerator, code_losses, cosine_masks, random_masks
from vae_qwen3vl.creation.generator_file import save_generator
from vae_qwen3vl.creation.networks import MASKED


def test_an_object_is_read_alike_alone_and_beside_others():
    model = tiny.generator()
    alone, together = tiny.batch(1), tiny.batch(4, 1, 3)
    assert together.codes.mask[1].sum() < together.codes.mask.shape[1]  # padding stands beside it
    for number in range(len(alone.levels) + 1):
        results = []
        for batch, row in ((alone, 0), (together, 1)):
            asked = [*batch.levels, batch.codes][number]
            count = int(asked.mask[row].sum())
            values = torch.where(torch.arange(asked.values.shape[1]) % 2 == 0, MASKED, asked.values)
            if number < len(alone.levels):
                logits = model.where(values, asked.cells, asked.mask, asked.side, batch.given)
            else:
                logits = model.what(values, asked.cells, asked.mask, batch.given, model.what.code_tokens())
            results.append(logits[row, :count])
        torch.testing.assert_close(*results, rtol=0, atol=2e-6)


def test_another_object_in_the_batch_changes_nothing():
    model, batches = tiny.generator(), [tiny.batch(2, 4), tiny.batch(2, 3)]
    results = []
    for batch in batches:
        asked = batch.codes
        masked = torch.full_like(asked.values, MASKED)
        queries = model.what(masked, asked.cells, asked.mask, batch.given, model.what.code_tokens())
        results.append(queries[0, : len(tiny.an_object(2)[0])])
    torch.testing.assert_close(*results, rtol=0, atol=2e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_in_parts_are_those_of_all_logits_at_once(smoothing):
    torch.manual_seed(0)
    queries, table, biases = torch.randn(23, 8), torch.randn(50, 8), torch.randn(50)
    targets = torch.randint(50, (23,))
    found, expected = [], []
    for results, most in ((found, 250), (expected, None)):
        parts = [tensor.clone().requires_grad_() for tensor in (queries, table, biases)]
        if most is None:
            losses = F.cross_entropy(F.linear(*parts), targets, reduction="none", label_smoothing=smoothing)
        else:
            losses = code_losses(*parts, targets, smoothing, most)
        losses.square().sum().backward()
        results += [losses.detach(), *(part.grad for part in parts)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_masks_cover_as_many_places_as_asked_and_no_padding():
    torch.manual_seed(0)
    mask = torch.arange(40) < torch.tensor([1, 7, 40])[:, None]
    counts = torch.tensor([1, 3, 40])
    assert random_masks(mask, counts).sum(1).tolist() == counts.tolist()
    shares = torch.stack([cosine_masks(mask) for _ in range(300)])
    assert not (shares & ~mask).any()
    assert (shares.sum(2) >= 1).all()
    assert shares[:, 2].float().mean() == pytest.approx(2 / math.pi, abs=0.05)  # the mean of cos(pi u / 2)


def test_the_bound_is_that_of_equally_likely_values_for_a_network_that_knows_nothing():
    """With equal logits every order costs the same: log 256 a byte (255 under the coarsest grid), log K a code."""
    model, batch = tiny.generator(), tiny.batch(0, 4)
    for layer in (model.where.out, model.what.query, model.what.usual):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    bound = model.code_length(batch, torch.Generator().manual_seed(0))
    first, *finer = batch.levels
    bytes_ = first.mask.sum(1) * math.log(256) + sum(level.mask.sum(1) for level in finer) * math.log(255)
    torch.testing.assert_close(bound["where"], bytes_.float())
    torch.testing.assert_close(bound["what"], batch.codes.mask.sum(1) * math.log(tiny.CODES))


def test_every_parameter_takes_part_in_every_step():
    model, batch = tiny.generator(), tiny.batch(1, 2)
    torch.manual_seed(0)
    sum(model(batch).values()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_both_networks_of_the_default_settings_are_within_14_mib(tmp_path):
    with torch.device("cpu"):
        model = ShapeGenerator(GeneratorConfig(), torch.randn(16384, 16))
    about = _about()
    save_generator(model, about, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 14 * 2**20


def _about():
    from vae_qwen3vl.creation.generator_file import GeneratorAbout

    return GeneratorAbout(vae_hash="v", data_resolution=256, sentence_model="m", trained_on="nothing")
