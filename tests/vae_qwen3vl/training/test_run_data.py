"""What a run learns from, as its settings say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch.nn.functional as F

import tiny_search
from sdf_vqvae.codes.folder import CodeFolder
from sdf_vqvae.codes.settings import EncodeSettings
from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.data.augmentation import CodeAugmentation
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.projector import Projector3D
from vae_qwen3vl.search.indexing import index_dataset
from vae_qwen3vl.training.run_data import alignment_data, cached_codes


@pytest.mark.parametrize("mode", ["pool", "head"])
@pytest.mark.parametrize(("merge", "most", "shape"), [(1, 0, 0), (2, 0, 2), (1, 20, 0), (1, 20, 3), (4, 512, 0)])
def test_objects_are_as_long_as_their_3d_tokens(
    codes: Path, tokenizer, merge: int, most: int, shape: int, mode
) -> None:
    told = {"merge": merge, "max_3d_tokens": most, "shape_tokens": shape, "truncate_mode": mode}
    config = AlignmentConfig(data_dir=str(codes), shift_cells=3, **told)
    folder = cached_codes(config)
    assert folder is not None
    data = alignment_data(config, Processor3D(tokenizer), folder, latent_dim=folder.codebook.shape[1])
    projector = Projector3D(folder.codebook.shape[1], 8, merge=merge, shape_tokens=shape)
    expected = []
    for row in folder.table():
        if row["split"] == "train":
            own, coords = folder[row["sha256"]]
            feats = folder.codebook[own.long()]
            expected.append(len(projector.project(feats, F.pad(coords.int(), (1, 0)), most, mode).coords))
    assert list(data.lengths) == expected


def test_codes_are_changed_as_the_settings_say(codes: Path, tokenizer) -> None:
    told = {"drop_cells": 0.25, "turn_degrees": 4.0, "shift_cells": 2}
    data = alignment_data(
        AlignmentConfig(data_dir=str(codes), **told), Processor3D(tokenizer), CodeFolder(codes), latent_dim=8
    )
    assert data.train.dataset.augmentation == CodeAugmentation(**told)
    assert data.val.dataset.augmentation == CodeAugmentation()


def test_mirror_images_that_are_not_there_are_missed(codes: Path, tokenizer, tmp_path: Path) -> None:
    config = AlignmentConfig(data_dir=str(codes), mirrored_dir=str(tmp_path / "mirrored"))
    with pytest.raises(ValueError, match=r"mirrored_dir: there are no codes in .*mirrored; make them .* --mirror"):
        alignment_data(config, Processor3D(tokenizer), cached_codes(config), latent_dim=8)
    mirrored = tmp_path / "mirrored"
    mirrored.mkdir()
    about = json.loads((codes / "manifest.json").read_text())
    (mirrored / "manifest.json").write_text(json.dumps({**about, "mirrored": True}))
    (mirrored / "codebook.safetensors").write_bytes((codes / "codebook.safetensors").read_bytes())
    with pytest.raises(ValueError, match="has a mirror image of none of the 3 objects"):
        alignment_data(config, Processor3D(tokenizer), cached_codes(config), latent_dim=8)


@pytest.mark.parametrize(
    "told",
    [
        {"mirrored_dir": "mirrored"},
        {"contrastive_weight": 0.1},
        {"shift_cells": 3},
        {"drop_cells": 0.3},
        {"turn_degrees": 8.0},
    ],
    ids=str,
)
def test_what_is_for_cached_codes_is_not_silently_without_effect(tokenizer, told) -> None:
    config = AlignmentConfig(dummy_data=True, **told)
    with pytest.raises(ValueError, match=f"{next(iter(told))} goes with a data_dir of cached codes"):
        alignment_data(config, Processor3D(tokenizer), None, latent_dim=8)


def test_words_of_neighbors_stand_in_front_of_questions_and_never_the_objects_own(
    codes: Path, tokenizer, small_vae, tmp_path: Path
) -> None:
    pytest.importorskip("usearch")
    index_dataset(
        EncodeSettings(source=codes, output=tmp_path / "index", split="train"),
        *tiny_search.saved(tmp_path, small_vae.fingerprint()),
    )
    told = {"look_up": str(tmp_path / "index"), "look_up_share": 1.0, "look_up_wrong": 0.0}
    config = AlignmentConfig(data_dir=str(codes), **told)
    data = alignment_data(config, Processor3D(tokenizer), cached_codes(config), latent_dim=4)
    captions = {row["sha256"]: row["captions"] for row in CodeFolder(codes).table()}
    of_training = {captions[name] for name in data.names}
    for part in (data.train, data.val):
        assert part is not None
        for item in (part[number] for number in range(len(part))):
            shown = item["similar"].removeprefix("Similar objects: ")
            assert captions[item["sample_id"]] not in shown or captions[item["sample_id"]] in of_training - {shown}
            assert any(words in shown for words in of_training)
    item = data.train[0]
    text = tokenizer.decode([max(0, i) for i in data.collate([item])["input_ids"][0].tolist()])
    assert f"{item['similar']}\n{config.prompt}" in text
    bare = alignment_data(
        AlignmentConfig(data_dir=str(codes)), Processor3D(tokenizer), CodeFolder(codes), latent_dim=4
    )
    assert "similar" not in bare.train[0]
