"""A run learns captions from codes, goes on where it stopped, and does the same on one process and on two."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import align_worker as align
import tiny_models
from sdf_vqvae.training.checkpoints import FOLDER, checkpoint_steps, path_of
from sdf_vqvae.utils.archives import read_safetensors
from vae_qwen3vl.data.collate import collate_codes_caption
from vae_qwen3vl.data.loading import Tolerant
from vae_qwen3vl.model import Qwen3VLWith3DBranch
from vae_qwen3vl.projector_file import load_projector
from vae_qwen3vl.trained_parts import LORA_FINAL, PROJECTOR_FINAL

NAMES = ("whole", "parts")


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


def test_captions_are_learned_and_the_shapes_matter(accelerator, tmp_path: Path) -> None:
    train = align.objects(64)
    data = align.make_data(train, train[:16])
    align.make_trainer(tmp_path, accelerator, data, epochs=16, lr=1e-2, lora_lr=1e-2, projector_share=0.2).run()
    losses = [record["loss"] for record in logged(tmp_path, "train")]
    assert losses[-1] < losses[0] - 2
    (val,) = logged(tmp_path, "val")
    assert val["val_loss"] < val["val_loss_other_shape"] - 0.5


def test_the_run_folder_rebuilds_the_model(accelerator, tmp_path: Path) -> None:
    train = align.objects(12)
    trainer = align.make_trainer(tmp_path, accelerator, align.make_data(train), epochs=3)
    trainer.run()
    model = Qwen3VLWith3DBranch(use_vl_model=tiny_models.build_vl("qwen2_vl"), latent_dim=align.WIDTH)
    model.load_projector(tmp_path / PROJECTOR_FINAL)
    model.load_lora(tmp_path / LORA_FINAL)
    batch = collate_codes_caption(train[:3], tiny_models.build_tokenizer())
    with torch.no_grad():
        again, trained = (m.eval()(**batch)["logits"] for m in (model, trainer.branch))
    torch.testing.assert_close(again, trained, atol=2e-2, rtol=2e-2)  # adapters are written in bfloat16
    assert (tmp_path / "result.json").is_file()


def test_a_run_in_two_parts_is_a_run_in_one(accelerator, tmp_path: Path) -> None:
    train = align.objects(22)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"epochs": 3, "val_every": 4}
    align.make_trainer(whole, accelerator, align.make_data(train, train[:5]), **settings).run()
    first = align.make_trainer(parts, accelerator, align.make_data(train, train[:5]), save_every=8, **settings)
    align.run_until(first, 11)
    assert checkpoint_steps(parts) == [8, 10]  # as the settings say, and after half of 18 steps
    align.make_trainer(parts, accelerator, align.make_data(train, train[:5]), save_every=8, **settings).run()
    for name, value in last_weights(whole).items():
        assert torch.equal(last_weights(parts)[name], value), name
    assert [r["val_loss"] for r in logged(whole, "val")] == [r["val_loss"] for r in logged(parts, "val")]


@pytest.mark.parametrize(
    ("share", "settings"),
    [
        (0.0, {"batch_size": 3, "gradient_accumulation_steps": 2, "projector_share": 0.2}),
        (0.4, {"batch_size": 2, "gradient_accumulation_steps": 3, "projector_share": 0.0, "best_by": "last"}),
    ],
)
def test_a_run_that_stops_after_every_step_ends_with_the_same_bits(
    accelerator, tmp_path: Path, share: float, settings: dict
) -> None:
    """With dropout in the adapters, whose draws must not depend on where a run stopped; each part is one step."""

    def trainer(name: str):
        data = align.make_data(align.objects(11), align.objects(3))
        data = align.with_plain_text(data, share) if share else data
        told = {"lr": 1e-2, "save_every": 1, "val_every": 3, **settings}
        return align.make_trainer(tmp_path / name, accelerator, data, dropout=0.5, **told)

    whole = trainer("whole")
    whole.run()
    assert whole.steps > 3
    for step in range(1, whole.steps):
        torch.manual_seed(step)  # the checkpoint's generator must win
        align.run_until(trainer("parts"), step)
        assert checkpoint_steps(tmp_path / "parts")[-1] == step
    trainer("parts").run()
    final = path_of(tmp_path / "whole", whole.steps)
    for file in sorted(final.glob("*.safetensors")):  # weights, the best ones, the optimizer, generators
        expected = read_safetensors(file, "checkpoint")[0]
        found = read_safetensors(path_of(tmp_path / "parts", whole.steps) / file.name, "checkpoint")[0]
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), (file.name, name)
    adapters = [(tmp_path / name / LORA_FINAL / "adapter_model.safetensors").read_bytes() for name in NAMES]
    assert adapters[0] == adapters[1]
    projectors = [load_projector(tmp_path / name / PROJECTOR_FINAL)[0].state_dict() for name in NAMES]
    assert all(torch.equal(value, projectors[1][name]) for name, value in projectors[0].items())


def test_a_program_that_dies_while_it_saves_leaves_whole_checkpoints(accelerator, tmp_path: Path) -> None:
    class DiedError(Exception):
        pass

    def trainer(name: str):
        return align.make_trainer(tmp_path / name, accelerator, align.make_data(align.objects(20)), save_every=1)

    trainer("whole").run()
    folder = tmp_path / "parts" / FOLDER
    died = 0
    for call in range(1, 9):  # each part dies in the removal of another folder, of which one file is gone
        left = iter(range(call))

        def remove(path: Path, ignore_errors: bool = False, left=left, remove=shutil.rmtree) -> None:
            if next(left, None) is None:
                for file in sorted(path.glob("*"))[:1]:
                    file.unlink()
                raise DiedError
            remove(path, ignore_errors=ignore_errors)

        with pytest.MonkeyPatch.context() as patched, contextlib.suppress(DiedError):
            patched.setattr(shutil, "rmtree", remove)
            trainer("parts").run()
            break
        died += 1
        assert all(len(list(checkpoint.iterdir())) == 5 for checkpoint in folder.glob("step_*"))
    assert died > 3
    trainer("parts").run()
    whole, parts = (last_weights(tmp_path / name) for name in NAMES)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_batches_of_one_step_count_as_one_batch(accelerator, tmp_path: Path) -> None:
    train = align.objects(16)
    one = align.make_trainer(tmp_path / "one", accelerator, align.make_data(train), weight_decay=0.0)
    two = align.make_trainer(tmp_path / "two", accelerator, align.make_data(train), weight_decay=0.0)
    whole = one.data.collate(train[:8])
    losses = [one.step([whole], 0.4), two.step([one.data.collate(train[:3]), one.data.collate(train[3:8])], 0.4)]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)
    assert losses[0]["grad_norm"] == pytest.approx(losses[1]["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(("best_by", "expected"), [("gap", 3), ("val_loss", 2), ("last", 4)])
def test_what_is_best_is_what_the_settings_say(
    accelerator, tmp_path: Path, monkeypatch, best_by: str, expected: int
) -> None:
    train = align.objects(8)
    data = align.make_data(train, train[:4])
    trainer = align.make_trainer(tmp_path, accelerator, data, best_by=best_by)
    own, other = [3.0, 2.0, 2.5, 2.6], [3.1, 2.4, 3.0, 2.9]
    told = iter([value for pair in zip(own, other, strict=True) for value in pair])
    monkeypatch.setattr(trainer.objective, "forward", lambda **_: {"answer_loss": torch.tensor(next(told))})
    for step in range(1, 5):
        trainer.step_number = step
        with torch.no_grad():
            next(p for p in trainer.trained.parameters()).fill_(step)
        trainer.validate()
    assert trainer.best.weights is not None and trainer.best.step == expected
    assert float(next(iter(trainer.best.weights.values())).flatten()[0]) == expected
    assert trainer.best.losses["val_loss"] == pytest.approx(own[expected - 1])


def test_the_best_weights_are_the_result(accelerator, tmp_path: Path) -> None:
    train = align.objects(8)
    trainer = align.make_trainer(tmp_path, accelerator, align.make_data(train, train[:4]))
    best = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
    trainer.best.weights, trainer.best.score, trainer.best.step = best, 1e9, 1
    trainer.run()
    assert json.loads((tmp_path / "result.json").read_text())["best_step"] == 1
    assert all(torch.equal(trainer.trained.state_dict()[name], value) for name, value in best.items())


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, torch.Tensor]]]:
    """Make the compared run on one process, once: its folder, and the gradients of its first step."""
    accelerate = pytest.importorskip("accelerate")

    @functools.cache
    def run(share: str) -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp("one")
        trainer = align.make_compared_trainer(folder, accelerate.Accelerator(cpu=True), 4, share=float(share))
        return folder, align.run_and_keep_first_gradients(trainer)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shares"), [("ddp", ("0.0", "0.4")), ("fsdp", ("0.4",))])
def test_two_processes_do_what_one_does(
    kind: str, shares: tuple[str, ...], one_process, tmp_path: Path, repository: Path
) -> None:
    """In every gradient of a step, in the run, and where it was stopped; also with an object that can't be read.

    With each share of text alone; two processes are started once for all of them.
    """
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    script = align.__file__
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run(
        [*command, str(tmp_path), "2", kind, *shares], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "object 3 is damaged" in done.stderr
    for share in shares:
        check_two_processes(tmp_path / share, kind, *one_process(share))


def check_two_processes(folder: Path, kind: str, one: Path, gradients: dict[str, torch.Tensor]) -> None:
    two, parts = folder / "whole", folder / "parts"
    again = read_safetensors(folder / "gradients.safetensors", "gradients")[0]
    assert again.keys() == gradients.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    held = json.loads((folder / "share.json").read_text())
    assert held == pytest.approx(0.5 if kind == "fsdp" else 1.0, abs=0.01)
    for name, value in last_weights(one).items():
        torch.testing.assert_close(last_weights(two)[name], value, atol=2e-5, rtol=1e-4)
        assert torch.equal(last_weights(parts)[name], last_weights(two)[name])
    for record, key in (("train", "loss"), ("val", "val_loss")):
        losses = [[r[key] for r in logged(folder, record)] for folder in (one, two, parts)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
        assert losses[1] == losses[2]
    results = [load_projector(folder / PROJECTOR_FINAL)[0].state_dict() for folder in (one, two)]
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=1e-4)
    adapters = [
        read_safetensors(folder / LORA_FINAL / "adapter_model.safetensors", "adapter")[0] for folder in (one, two)
    ]
    torch.testing.assert_close(adapters[0], adapters[1], atol=1e-3, rtol=1e-2)  # written in bfloat16


def test_fsdp_of_the_first_version_is_refused(accelerator, tmp_path: Path, monkeypatch) -> None:
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    monkeypatch.setattr(
        accelerator.state, "fsdp_plugin", FullyShardedDataParallelPlugin(fsdp_version=1), raising=False
    )
    monkeypatch.setattr(accelerator.state, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="fsdp_version must be 2, got 1"):
        align.make_trainer(tmp_path, accelerator, align.make_data(align.objects(4)))


def test_fsdp_without_gpus_says_that_nothing_is_sharded(accelerator, tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    align.make_trainer(tmp_path, accelerator, align.make_data(align.objects(4)))
    assert "every process holds the whole model" in caplog.text


def test_a_damaged_object_costs_itself_alone(accelerator, tmp_path: Path, caplog) -> None:
    data = Tolerant(align.Damaged(align.objects(12), {3, 4}))
    align.make_trainer(tmp_path, accelerator, align.make_data(data)).run()
    assert data.left_out == {3: "object 3 is damaged", 4: "object 4 is damaged"}
    assert caplog.text.count("object 3 is damaged") == 1
    with pytest.raises(ValueError, match="none of 2 objects can be read: object"):
        Tolerant(align.Damaged(align.objects(2), {0, 1}))[0]
