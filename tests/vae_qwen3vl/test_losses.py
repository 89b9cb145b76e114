"""The contrastive loss: low where objects lie at their own names, blind to equal names, felt by the projector."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.losses import title_contrast
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.projector import Tokens3D

TABLE = torch.randn(50, 24, generator=torch.Generator().manual_seed(0))


def tokens_at(points: torch.Tensor) -> Tokens3D:
    """Two tokens an object, whose mean is its point."""
    count = len(points)
    noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(1))
    coords = torch.zeros(2 * count, 4, dtype=torch.long)
    coords[:, 0] = torch.arange(count).repeat_interleave(2)
    coords[1::2, 1] = 1
    return Tokens3D(embeds=torch.stack([points + noise, points - noise], dim=1).flatten(0, 1), coords=coords)


def test_the_loss_is_low_only_where_objects_lie_at_their_own_names() -> None:
    ids = torch.tensor([[3, 7, -1], [9, -1, -1], [4, 5, 6], [11, 2, -1]])
    names = torch.stack([TABLE[row[row >= 0]].mean(0) for row in ids]) - TABLE.mean(0)
    right = title_contrast(tokens_at(names), ids, TABLE)
    wrong = title_contrast(tokens_at(names.roll(1, 0)), ids, TABLE)
    assert right < 0.05
    assert wrong > 3


def test_an_equal_name_is_no_rival() -> None:
    ids = torch.tensor([[3, 7], [3, 7], [9, 1]])
    names = torch.stack([TABLE[row].mean(0) for row in ids]) - TABLE.mean(0)
    assert title_contrast(tokens_at(names), ids, TABLE) < 0.05
    assert title_contrast(tokens_at(names[:2]), ids[:2], TABLE) == 0


def test_training_adds_it_to_the_loss_and_the_projector_learns_from_it(make_vl, make_codes) -> None:
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8, merge=2)
    feats, coords = make_codes([9, 30])
    ids = torch.randint(10, 300, (2, 8))
    given = {"labels": ids, "feats_3d": feats, "coords_3d": coords, "title_ids": torch.tensor([[20, 21], [30, -1]])}
    plain = model(ids, **given, loss_only=True)
    both = model(ids, **given, loss_only=True, contrastive_weight=0.5)
    assert float(both["answer_loss"]) == pytest.approx(float(plain["loss"].detach()))
    extra = both["loss"] - plain["loss"].detach()
    assert float(extra.detach()) > 0
    (gradient,) = torch.autograd.grad(both["loss"] - both["answer_loss"], [model.projector.proj.weight])
    assert float(gradient.norm()) > 0
    model.forward_with_3d(ids, **given)  # a batch of training goes into it as it is
