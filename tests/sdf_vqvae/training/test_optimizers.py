"""Muon's steps against their definition, and AdamW's where it is for the rest."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import tiny_tokenizer as tiny
from sdf_vqvae.config.training import TrainerConfig
from sdf_vqvae.training.optimizers import Muon, make_optimizer, orthogonal

CPU = torch.device("cpu")
SETTINGS = TrainerConfig(optimizer="Muon", lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(2, 24, 24), (1, 16, 200), (3, 200, 16)])
def test_orthogonal_keeps_singular_vectors_and_brings_values_near_one(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonal(matrices)
    inner = left.mT @ found @ right.mT
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert float((inner - torch.diag_embed(diagonal)).abs().max()) < 0.02
    large = values > 0.05 * values.amax(1, keepdim=True)  # what is nearly absent is brought only part of the way
    assert float(diagonal[large].min()) > 0.6 and float(diagonal.max()) < 1.3


def test_a_step_is_as_long_as_it_says_and_others_are_moved_by_adamw():
    torch.manual_seed(0)
    matrix, bias = nn.Parameter(torch.randn(32, 3, 3, 16)), nn.Parameter(torch.randn(32))
    twin = nn.Parameter(bias.detach().clone())
    ours = Muon([matrix], [bias], lr=0.01, weight_decay=0.0, betas=(0.9, 0.99))
    adamw = torch.optim.AdamW([twin], lr=0.01, weight_decay=0.0, betas=(0.9, 0.99))
    for step in range(3):
        before = matrix.detach().clone()
        matrix.grad = torch.randn_like(matrix)
        bias.grad = twin.grad = torch.randn(32)
        for group in (*ours.param_groups, *adamw.param_groups):
            group["lr"] = 0.01 / (step + 1)
        ours.step()
        adamw.step()
        moved = (matrix - before).detach().square().mean().sqrt()
        # 32 rows of singular value s in 32 x 144: root mean square s / 12, and sqrt(144) of the rule makes it 0.2 s.
        assert 0.7 < float(moved) / (0.01 / (step + 1) * 0.2) < 1.2
        assert torch.equal(bias, twin)


def test_decay_is_that_of_the_learning_rate():
    matrix = nn.Parameter(torch.ones(16, 16))
    optimizer = Muon([matrix], [nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=0.1)
    matrix.grad = torch.zeros(16, 16)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((16, 16), 0.95))


def test_matrices_inside_the_network_are_muons_and_all_else_is_adamws():
    vae = tiny.vae()
    optimizer = make_optimizer(vae, SETTINGS, CPU)
    assert isinstance(optimizer, Muon)
    names = {parameter: name for name, parameter in vae.named_parameters()}
    matrices, others = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert matrices | others == {name for p, name in names.items() if p.requires_grad} and not matrices & others
    assert {"encoder.levels.0.0.conv.conv.weight", "decoder.blocks.0.attn.to_qkv.weight"} <= matrices
    assert {"encoder.stem.weight", "decoder.out_layer.weight", "decoder.blocks.0.attn.to_qkv.bias"} <= others


def test_what_is_frozen_is_no_ones():
    vae = tiny.vae().requires_grad_(False)
    assert make_optimizer(vae, SETTINGS, CPU) is None
    vae.decoder.requires_grad_(True)
    optimizer = make_optimizer(vae, dataclasses.replace(SETTINGS, optimizer="AdamW"), CPU)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups[0]["params"]) == len(list(vae.decoder.parameters()))


def test_a_config_names_its_optimizer():
    def section(name: str) -> dict[str, object]:
        optimizer = {"name": name, "args": {"lr": 0.002}}
        return {"name": "SparseSDFVQVAETrainer", "args": {"optimizer": optimizer}}

    config = TrainerConfig.from_section(section("Muon"))
    assert (config.optimizer, config.lr) == ("Muon", 0.002)
    assert TrainerConfig.from_section(section("AdamW")).optimizer == "AdamW"
    with pytest.raises(ValueError, match="SGD"):
        TrainerConfig.from_section(section("SGD"))
