"""What is minimised: the answers' loss, and a contrastive one that is low where objects lie at their own names."""

from __future__ import annotations

import pytest
import torch

from vae_qwen3vl.layout import PLACEHOLDER_3D
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.projector import Tokens3D
from vae_qwen3vl.training.losses import AlignmentObjective, title_contrast

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
    given = {"input_ids": ids, "labels": ids, "feats_3d": feats, "coords_3d": coords}
    titles = torch.tensor([[20, 21], [30, -1]])
    plain = AlignmentObjective(model)(**given, title_ids=titles)
    both = AlignmentObjective(model, contrastive_weight=0.5)(**given, title_ids=titles)
    assert float(both["answer_loss"]) == pytest.approx(float(plain["loss"].detach()))
    extra = both["loss"] - plain["loss"].detach()
    assert float(extra.detach()) > 0
    (gradient,) = torch.autograd.grad(both["loss"] - both["answer_loss"], [model.projector.proj.weight])
    assert float(gradient.norm()) > 0
    assert float(plain["loss"].detach()) == float(AlignmentObjective(model, 0.5)(**given)["loss"].detach())


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_vl"])
def test_the_loss_alone_is_the_loss_of_all_logits_and_so_are_its_gradients(make_vl, make_codes, kind, adapters):
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl(kind), latent_dim=8, merge=2)
    if adapters:
        pytest.importorskip("peft")
        model.add_lora(4, dropout=0.0)
    feats, coords = make_codes([9, 30])
    ids = torch.randint(10, 300, (2, 12))
    labels = torch.where(torch.rand(2, 12) < 0.4, ids, -100)
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels[1, 9:] = -100
    text = {"input_ids": ids, "attention_mask": mask}
    objective = AlignmentObjective(model)
    found = []
    for losses in (model, objective):
        model.zero_grad()
        loss = losses(**text, labels=labels, feats_3d=feats, coords_3d=coords)["loss"]
        loss.backward()
        found.append([loss, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 4
    for full, short in zip(*found, strict=True):
        torch.testing.assert_close(short, full, rtol=1e-4, atol=1e-6)
    nothing = objective(**text, labels=torch.full_like(labels, -100), feats_3d=feats, coords_3d=coords)
    assert float(nothing["loss"].detach()) == 0.0


def mixed_batch(make_codes) -> dict[str, torch.Tensor]:
    """A row about an object, and two shorter ones about none, padded."""
    feats, coords = make_codes([9])
    ids = torch.randint(10, 300, (3, 12), generator=torch.Generator().manual_seed(2))
    ids[0, 1] = PLACEHOLDER_3D
    labels = ids.clone()
    labels[:, :5] = -100
    mask = torch.ones_like(ids)
    for row, length in ((1, 9), (2, 7)):
        mask[row, length:], labels[row, length:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "feats_3d": feats, "coords_3d": coords}


def test_adapters_are_held_to_the_untouched_model_where_no_object_is_spoken_of(make_vl, make_codes) -> None:
    torch.manual_seed(0)
    model = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8)
    model.add_lora(r=4, alpha=8, dropout=0.0)
    objective = AlignmentObjective(model)
    batch = mixed_batch(make_codes)
    plain = {name: batch[name][1:] for name in ("input_ids", "attention_mask", "labels")}
    new = objective(**plain, keep_plain=True)["loss"]
    new.backward()
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    assert float(new.detach()) == pytest.approx(0, abs=1e-6)
    assert all(float(p.grad.abs().max()) < 1e-6 for p in adapters if p.grad is not None)
    assert all(p.requires_grad for p in adapters)

    with model.vl_model.disable_adapter(), torch.no_grad():
        before = model(**batch)
    for p in adapters:
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        now = model(**batch)
        found = float(objective(**batch, keep_plain=True)["loss"])
    labels = model.build_inputs(**batch).labels[:, 1:]
    kept = labels != -100
    ours, theirs = (out.logits[:, :-1].log_softmax(-1) for out in (now, before))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)  # [B, S' - 1]
    words = -ours.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    expected = torch.where(torch.tensor([True, False, False])[:, None], words, divergence)[kept].mean()
    assert divergence[1:][kept[1:]].mean() > 0.01
    assert found == pytest.approx(float(expected), rel=1e-4)
    alone = {name: value[:1] for name, value in batch.items() if name not in ("feats_3d", "coords_3d")}
    alone |= {name: batch[name] for name in ("feats_3d", "coords_3d")}
    losses = [float(objective(**alone, keep_plain=keep)["loss"]) for keep in (True, False)]
    assert losses[0] == losses[1]  # nothing to keep, nothing changed
