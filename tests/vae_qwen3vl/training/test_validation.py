"""The blind control of validation: every text beside another object's shape."""

from __future__ import annotations

import torch

import align_worker as align
import tiny_models
from vae_qwen3vl.data.collate import collate_codes_caption
from vae_qwen3vl.training.validation import with_other_shapes


def test_the_control_gives_every_text_another_shape() -> None:
    batch = collate_codes_caption(align.objects(4), tiny_models.build_tokenizer())
    other = with_other_shapes(batch)
    for number in range(4):
        own = batch["feats_3d"][batch["coords_3d"][:, 0] == number]
        moved = other["feats_3d"][other["coords_3d"][:, 0] == (number + 1) % 4]
        assert torch.equal(own, moved)
    assert torch.equal(other["input_ids"], batch["input_ids"])
    raw = {"inputs_3d": tiny_models.build_batch([5, 7, 6]), "labels": torch.zeros(3, 4)}
    fields = with_other_shapes(raw)["inputs_3d"]
    for number in range(3):
        own = raw["inputs_3d"]["sparse_sdf"][raw["inputs_3d"]["batch_idx"] == number]
        assert torch.equal(own, fields["sparse_sdf"][fields["batch_idx"] == (number + 1) % 3])
    padded = {
        "feats_3d": torch.arange(3.0)[:, None, None],
        "coords_3d": torch.zeros(3, 1, 4),
        "mask_3d": torch.ones(3, 1),
    }
    assert with_other_shapes(padded)["feats_3d"].flatten().tolist() == [2, 0, 1]
