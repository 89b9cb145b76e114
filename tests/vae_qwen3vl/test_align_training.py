"""A run learns captions from codes, goes on where it stopped, and does the same on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdf_vqvae.archives import read_safetensors
from sdf_vqvae.training_checkpoint import checkpoint_steps, path_of
from vae_qwen3vl.align_data import Tolerant
from vae_qwen3vl.align_training import LORA_FINAL, PROJECTOR_FINAL, rate, with_other_shapes
from vae_qwen3vl.model import Qwen3VLWith3DBranch


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    return accelerate.Accelerator(cpu=True)


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    step = checkpoint_steps(folder)[-1]
    return read_safetensors(path_of(folder, step) / "model.safetensors", "checkpoint")[0]


def logged(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def test_captions_are_learned_and_the_shapes_matter(align, accelerator, tmp_path: Path) -> None:
    train = align.objects(64)
    data = align.make_data(train, train[:16])
    align.make_trainer(tmp_path, accelerator, data, epochs=16, lr=1e-2, lora_lr=1e-2, projector_share=0.2).run()
    losses = [record["loss"] for record in logged(tmp_path, "train")]
    assert losses[-1] < losses[0] - 2
    (val,) = logged(tmp_path, "val")
    assert val["val_loss"] < val["val_loss_other_shape"] - 0.5


def test_the_run_folder_rebuilds_the_model(align, accelerator, tmp_path: Path) -> None:
    train = align.objects(12)
    trainer = align.make_trainer(tmp_path, accelerator, align.make_data(train), epochs=3)
    trainer.run()
    model = Qwen3VLWith3DBranch(use_vl_model=align.tiny_parts().build_vl("qwen2_vl"), latent_dim=align.WIDTH)
    model.load_projector(tmp_path / PROJECTOR_FINAL)
    model.load_lora(tmp_path / LORA_FINAL)
    batch = trainer.data.collate(train[:3])
    with torch.no_grad():
        again, trained = (m.eval()(**batch)["logits"] for m in (model, trainer.branch))
    torch.testing.assert_close(again, trained, atol=2e-2, rtol=2e-2)  # adapters are written in bfloat16
    assert (tmp_path / "result.json").is_file()


def test_a_run_in_two_parts_is_a_run_in_one(align, accelerator, tmp_path: Path) -> None:
    train = align.objects(22)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"epochs": 3, "val_every": 4}
    align.make_trainer(whole, accelerator, align.make_data(train, train[:5]), **settings).run()
    first = align.make_trainer(parts, accelerator, align.make_data(train, train[:5]), save_every=8, **settings)
    first.write_results = lambda: None

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        if first.step_number == 11:
            raise StoppedError

    original = first._at_intervals
    first._at_intervals = lambda *given: (original(*given), stop())
    with pytest.raises(StoppedError):
        first.run()
    assert checkpoint_steps(parts) == [8]
    align.make_trainer(parts, accelerator, align.make_data(train, train[:5]), save_every=8, **settings).run()
    for name, value in last_weights(whole).items():
        assert torch.equal(last_weights(parts)[name], value), name
    assert [r["val_loss"] for r in logged(whole, "val")] == [r["val_loss"] for r in logged(parts, "val")]


def test_batches_of_one_step_count_as_one_batch(align, accelerator, tmp_path: Path) -> None:
    train = align.objects(16)
    one = align.make_trainer(tmp_path / "one", accelerator, align.make_data(train), weight_decay=0.0)
    two = align.make_trainer(tmp_path / "two", accelerator, align.make_data(train), weight_decay=0.0)
    whole = one.data.collate(train[:8])
    losses = [one.step([whole], 0.4), two.step([one.data.collate(train[:3]), one.data.collate(train[3:8])], 0.4)]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert losses[0]["grad_norm"] == pytest.approx(losses[1]["grad_norm"], rel=1e-4)


def test_the_best_weights_are_the_result(align, accelerator, tmp_path: Path) -> None:
    train = align.objects(8)
    trainer = align.make_trainer(tmp_path, accelerator, align.make_data(train, train[:4]))
    best = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
    trainer.best, trainer.best_loss, trainer.best_step = best, -1.0, 1
    trainer.run()
    assert json.loads((tmp_path / "result.json").read_text())["best_step"] == 1
    assert all(torch.equal(trainer.trained.state_dict()[name], value) for name, value in best.items())


@pytest.mark.slow
@pytest.mark.parametrize("share", ["0", "0.4"])
def test_two_processes_do_what_one_does(align, accelerator, tmp_path: Path, repository: Path, share: str) -> None:
    train = align.objects(24)
    data = align.with_plain_text(align.make_data(train, train[:7]), float(share))  # some batches are text alone
    align.make_trainer(tmp_path / "one", accelerator, data, batch_size=8).run()
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    script = str(Path(__file__).with_name("align_worker.py"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "4", share], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, value in last_weights(tmp_path / "one").items():
        torch.testing.assert_close(last_weights(tmp_path / "two")[name], value, atol=2e-5, rtol=1e-4)
    losses = [[r["loss"] for r in logged(tmp_path / name, "train")] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    vals = [[r["val_loss"] for r in logged(tmp_path / name, "val")] for name in ("one", "two")]
    assert vals[0] == pytest.approx(vals[1], abs=1e-5)


class Damaged(torch.utils.data.Dataset):
    """Some items can't be read."""

    def __init__(self, items: list, bad: set[int]) -> None:
        self.items, self.bad = items, bad

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict:
        if number in self.bad:
            raise ValueError(f"object {number} is damaged")
        return self.items[number]


def test_a_damaged_object_costs_itself_alone(align, accelerator, tmp_path: Path, caplog) -> None:
    data = Tolerant(Damaged(align.objects(12), {3, 4}))
    align.make_trainer(tmp_path, accelerator, align.make_data(data)).run()
    assert data.left_out == {3: "object 3 is damaged", 4: "object 4 is damaged"}
    assert caplog.text.count("object 3 is damaged") == 1
    with pytest.raises(ValueError, match="none of 2 objects can be read: object"):
        Tolerant(Damaged(align.objects(2), {0, 1}))[0]


def test_the_control_gives_every_text_another_shape(align) -> None:
    data = align.make_data(align.objects(4))
    batch = data.collate(align.objects(4))
    other = with_other_shapes(batch)
    for number in range(4):
        own = batch["feats_3d"][batch["coords_3d"][:, 0] == number]
        moved = other["feats_3d"][other["coords_3d"][:, 0] == (number + 1) % 4]
        assert torch.equal(own, moved)
    assert torch.equal(other["input_ids"], batch["input_ids"])
    tiny = align.tiny_parts()
    raw = {"inputs_3d": tiny.build_batch([5, 7, 6]), "labels": torch.zeros(3, 4)}
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


def test_rates_rise_fall_and_wait_for_their_turn() -> None:
    assert rate(0.2, 0.3, 0.03) == 0
    assert rate(0.0, 0.0, 0.1) < 0.05
    assert rate(0.1, 0.0, 0.1) == pytest.approx(0.976, abs=0.01)
    assert rate(1.0, 0.3, 0.03) == pytest.approx(0.02)
    falling = [rate(p / 20, 0.0, 0.05) for p in range(2, 20)]
    assert falling == sorted(falling, reverse=True)
