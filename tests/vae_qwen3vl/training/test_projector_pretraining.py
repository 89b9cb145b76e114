"""The projector's lesson without the language model: the loss by hand, that it teaches, and what a run leaves."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vae_qwen3vl.config import AlignmentConfig
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.processor import Processor3D
from vae_qwen3vl.projector import Tokens3D
from vae_qwen3vl.projector_file import load_projector
from vae_qwen3vl.train_finetune import main
from vae_qwen3vl.training.projector_pretraining import CaptionContrast, pretrain_projector
from vae_qwen3vl.training.run_data import alignment_data, cached_codes

pytest.importorskip("accelerate")
CAPTIONS = ["a wooden chair", "human liver", "brick 2 x 4", "street lamp"]


def test_the_loss_is_clips_and_equal_captions_are_no_rivals():
    torch.manual_seed(0)
    contrast = CaptionContrast(6, 4)
    objects = torch.tensor([0, 0, 0, 1, 2, 2])
    embeds = torch.randn(6, 6)
    tokens = Tokens3D(embeds=embeds, coords=F.pad(objects[:, None], (0, 3)))
    captions = F.normalize(torch.randn(3, 4), dim=1)
    captions[2] = captions[0]
    scale = torch.tensor(0.5)
    shapes = torch.stack([embeds[objects == i].mean(0) / 0.5 for i in range(3)])
    shapes = F.normalize(contrast.head(shapes), dim=1)
    rivals = {0: [0, 1], 1: [0, 1, 2], 2: [1, 2]}
    expected = 0.0
    for i, others in rivals.items():
        by_shape = torch.stack([shapes[i] @ captions[j] for j in others]) / 0.07
        by_caption = torch.stack([shapes[j] @ captions[i] for j in others]) / 0.07
        right = others.index(i)
        expected += -(by_shape.log_softmax(0)[right] + by_caption.log_softmax(0)[right]) / 6
    torch.testing.assert_close(contrast(tokens, scale, captions), expected)


def test_tokens_of_the_whole_shape_have_their_own_part_of_the_map():
    torch.manual_seed(0)
    contrast = CaptionContrast(6, 4, shape_tokens=2)
    objects = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    embeds = torch.randn(7, 6)
    tokens = Tokens3D(embeds=embeds, coords=F.pad(objects[:, None], (0, 3)))
    captions = F.normalize(torch.randn(3, 4), dim=1)
    told = [
        torch.cat([embeds[2:4].mean(0), embeds[0], embeds[1]]),
        torch.cat([embeds[6], embeds[4], embeds[5]]),
    ]
    expected = F.normalize(contrast.head(torch.stack(told) / 0.5), dim=1) @ captions.T
    torch.testing.assert_close(contrast.similarities(tokens, torch.tensor(0.5), captions), expected)


class Objects(torch.utils.data.Dataset):
    """Objects whose codes' vectors say which of four things they are, between noise."""

    def __init__(self, seed: int, count: int = 32, known: torch.Tensor | None = None) -> None:
        random = torch.Generator().manual_seed(seed)
        kinds = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(7)), dim=1) * 2
        self.items = []
        self.codebook = torch.zeros(0, 8) if known is None else known
        for number in range(count):
            cells = torch.randperm(8**3, generator=random)[: 20 + number].sort().values
            feats = kinds[number % 4] + 0.5 * torch.randn(len(cells), 8, generator=random)
            coords = torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1).int()
            codes = torch.arange(len(cells)) + len(self.codebook)
            self.codebook = torch.cat([self.codebook, feats])
            self.items.append({"codes": codes, "coords": coords, "caption": CAPTIONS[number % 4]})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict:
        return self.items[number]


def test_it_teaches_the_projector_and_nothing_else(make_vl, minilm, tmp_path):
    torch.manual_seed(0)
    branch = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8, merge=2, projector_num_layers=2)
    before = copy.deepcopy(branch.state_dict())
    train = Objects(0)
    val = Objects(1, known=train.codebook)
    told = {"folder": tmp_path, "device": torch.device("cpu"), "batch_size": 16, "codebook": val.codebook}
    records = pretrain_projector(branch, train, val, minilm, 20, **told)
    assert len(records) == 20
    assert records[0]["val_loss"] > 1.2  # four captions: ln 4 is chance
    assert records[-1]["val_loss"] < 0.3
    assert [json.loads(line) for line in (tmp_path / "pretraining.jsonl").read_text().splitlines()] == records
    after = branch.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("projector.proj.")} | {"projector.output_gain"}


def test_the_weights_with_the_lowest_validation_loss_are_kept(make_vl, minilm, tmp_path):
    torch.manual_seed(0)
    branch = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), latent_dim=8, merge=2)
    train = Objects(0)
    other = Objects(1, known=train.codebook)
    for item in other.items:  # what training teaches is wrong here, so the first weights are the best
        item["caption"] = CAPTIONS[(CAPTIONS.index(item["caption"]) + 1) % 4]
    told = {"folder": tmp_path, "device": torch.device("cpu"), "batch_size": 16, "codebook": other.codebook}
    branches = [copy.deepcopy(branch), branch]
    records = pretrain_projector(branches[0], train, other, minilm, 6, **told)
    best = min(range(6), key=lambda i: records[i]["val_loss"])
    assert best < 5
    last = pretrain_projector(branches[1], train, None, minilm, 6, **told)
    assert "val_loss" not in last[-1]
    assert last[-1]["loss"] == pytest.approx(records[-1]["loss"])
    assert not torch.equal(branches[0].projector.proj.weight, branches[1].projector.proj.weight)


class Uniform(torch.utils.data.Dataset):
    """Objects that have one and the same code in all of their cells, so that hidden ones can be told."""

    def __init__(self, count: int = 48) -> None:
        random = torch.Generator().manual_seed(0)
        self.codebook = torch.randn(12, 8, generator=random)
        self.items = []
        for number in range(count):
            cells = torch.randperm(8**3, generator=random)[:60].sort().values
            coords = torch.stack([cells // 64, cells // 8 % 8, cells % 8], dim=1).int()
            codes = torch.full((60,), number % 12)
            self.items.append({"codes": codes, "coords": coords, "caption": CAPTIONS[number % 4]})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict:
        return self.items[number]


def test_hidden_codes_are_told_from_the_rest_of_the_object(make_vl, minilm, tmp_path):
    torch.manual_seed(0)
    settings = {"latent_dim": 8, "merge": 2, "shape_tokens": 1, "encoder_layers": 1}
    branch = Qwen3VLWith3DBranch(use_vl_model=make_vl("qwen2_vl"), **settings)
    told = {"folder": tmp_path, "device": torch.device("cpu"), "batch_size": 12, "codebook": Uniform().codebook}
    records = pretrain_projector(branch, Uniform(), None, minilm, 20, masked=1.0, **told)
    assert records[0]["masked_right"] < 0.3  # a twelfth is chance
    assert records[-1]["masked_right"] > 0.9
    assert records[-1]["masked_loss"] < 0.5 < records[0]["masked_loss"]


def test_a_model_with_an_encoder_is_trained_and_its_projector_brings_it_back(place, vl, codes, minilm, capsys):
    shape = ("--encoder_layers", "1", "--shape_tokens", "1")
    assert train(codes, vl, *shape, "--pretrain_epochs", "1", "--pretrain_masked", "0.5") == 0
    folder = Path(capsys.readouterr().out.strip())
    (record,) = [json.loads(line) for line in (folder / "pretraining.jsonl").read_text().splitlines()]
    assert {"loss", "masked_loss", "masked_right"} <= record.keys()
    projector, about = load_projector(folder / "projector_final.pt")
    assert about.encoder_layers == projector.encoder_layers == 1
    assert train(codes, vl, "--shape_tokens", "1", "--init_projector", str(folder / "projector_final.pt")) == 2
    assert "--encoder_layers 1" in capsys.readouterr().err


def test_hidden_codes_without_an_encoder_are_refused():
    with pytest.raises(ValueError, match="pretrain_masked needs encoder_layers and pretrain_epochs"):
        AlignmentConfig(pretrain_epochs=1, pretrain_masked=1.0)


def train(codes: Path, vl: str, *more: str) -> int:
    told = ("--data_dir", str(codes), "--vl_model", vl, "--merge", "2", "--device", "cpu", "--batch_size", "2")
    return main([*told, "--epochs", "1", *more])


def test_a_run_teaches_once_and_goes_on_from_there(place: Path, vl: str, codes: Path, minilm, capsys) -> None:
    assert train(codes, vl, "--pretrain_epochs", "2") == 0
    folder = Path(capsys.readouterr().out.strip())
    assert len((folder / "pretraining.jsonl").read_text().splitlines()) == 2
    taught = torch.load(folder / "projector_pretrained.pt", weights_only=True)
    result = torch.load(folder / "projector_final.pt", weights_only=True)
    assert taught.keys() == result.keys()
    assert not torch.equal(taught["proj.weight"], result["proj.weight"])
    (folder / "result.json").unlink()
    for checkpoint in sorted((folder / "checkpoints").iterdir()):
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    stamp = os.stat(folder / "projector_pretrained.pt").st_mtime_ns
    assert train(codes, vl, "--pretrain_epochs", "2", "--resume") == 0
    assert Path(capsys.readouterr().out.strip()) == folder
    assert os.stat(folder / "projector_pretrained.pt").st_mtime_ns == stamp
    again = torch.load(folder / "projector_final.pt", weights_only=True)
    assert all(torch.equal(again[name], value) for name, value in result.items())


def test_objects_without_cached_codes_are_refused_before_a_run_begins(place: Path, vl: str, capsys) -> None:
    told = ("--dummy_data", "--dummy_samples", "4", "--vl_model", vl, "--device", "cpu")
    assert main([*told, "--pretrain_epochs", "1"]) == 2
    assert "pretrain_epochs needs cached codes" in capsys.readouterr().err
    assert not Path("outputs_3d_vl").exists()


@pytest.mark.parametrize("splits", [True, False])
def test_the_lesson_is_about_captions_of_training_objects_alone(splits, codes, tokenizer):
    table = codes / "metadata.csv"
    if not splits:
        table.write_text(table.read_text().replace("split", "part"))
    records = [{"sample_id": f"object{n}", "question": "What?", "answer": "An answer."} for n in range(5)]
    (codes / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = AlignmentConfig(data_dir=str(codes), caption_share=0.0, shift_cells=2)
    data = alignment_data(config, Processor3D(tokenizer), cached_codes(config), latent_dim=8)
    assert {data.train[n]["caption"] for n in range(len(data.train))} == {"An answer."}
    assert len(data.captioned) == len(data.train) == len(data.lengths)
    said = set()
    for epoch in range(3):
        data.captioned.set_epoch(epoch)
        said |= {
            (item["sample_id"], item["caption"]) for item in map(data.captioned.__getitem__, range(len(data.train)))
        }
    captions = ["A red robot.", "A chair.", "Robot."] + ([] if splits else ["A chair.", "One."])
    assert said == {(f"object{n}", caption) for n, caption in enumerate(captions)}
