"""What a run learns from, as its settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.nn.functional as F

from vae_qwen3vl.align_data import alignment_data, cached_codes
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.projector import Projector3D


@pytest.mark.parametrize(("merge", "most"), [(1, 0), (2, 0), (1, 20), (4, 512)])
def test_objects_are_as_long_as_their_3d_tokens(codes: Path, tokenizer, merge: int, most: int) -> None:
    config = AlignmentConfig(data_dir=str(codes), merge=merge, max_3d_tokens=most, shift_cells=3)
    folder = cached_codes(config)
    assert folder is not None
    data = alignment_data(config, Processor3D(tokenizer), folder, latent_dim=folder.codebook.shape[1])
    projector = Projector3D(folder.codebook.shape[1], 8, merge=merge)
    expected = []
    for row in folder.table():
        if row["split"] == "train":
            own, coords = folder[row["sha256"]]
            feats = folder.codebook[own.long()]
            expected.append(len(projector.project(feats, F.pad(coords.int(), (1, 0)), most, "head").coords))
    assert list(data.lengths) == expected


def test_mirror_images_go_with_cached_codes(tokenizer) -> None:
    config = AlignmentConfig(dummy_data=True, mirrored_dir="mirrored")
    with pytest.raises(ValueError, match="mirrored_dir goes with a data_dir of cached codes"):
        alignment_data(config, Processor3D(tokenizer), None, latent_dim=8)
