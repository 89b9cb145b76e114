"""`Trainer`, `SFTTrainer` and peft train the model: what shall learn does, nothing else changes, all reopens."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

from vae_qwen3vl.pretrained import ShapeVLCollator, ShapeVLForConditionalGeneration

open_model = ShapeVLForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def records(tmp_path_factory, ask, ball, box):
    """A dataset of chats about files of codes."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("codes")

    def chat(name, shape, answer):
        shape.save(folder / f"{name}.safetensors")
        mesh = {"type": "mesh", "mesh": str(folder / f"{name}.safetensors")}
        question = {"role": "user", "content": [mesh, {"type": "text", "text": "What is it?"}]}
        return {"messages": [question, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]}

    chats = [chat("ball", ball, "A ball."), chat("box", box, "A box with four legs.")]
    return datasets.Dataset.from_list(chats * 2)


@pytest.fixture(scope="module")
def named_folder(tmp_path_factory, make_branch, language_models):
    """A folder that names its language model, as that of a large one would."""
    folder = tmp_path_factory.mktemp("named")
    reference = str(language_models["qwen2_vl"])
    ShapeVLForConditionalGeneration.from_branch(make_branch(), language_model=reference).save_pretrained(folder)
    return folder


def arguments(folder, **more):
    given = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": True,
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return {**given, **more}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_trainer_trains_what_learns_and_its_checkpoint_reopens(tmp_path, named_folder, records, shape_processor):
    model = open_model(named_folder, is_trainable=True)
    before = weights(model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(tmp_path, save_steps=2)),
        train_dataset=records,
        data_collator=ShapeVLCollator(processor=shape_processor),
        processing_class=shape_processor,
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name.split(".")[1] for name in changed} == {"projector", "vl_model"} and not any(
        "base_layer" in n for n in changed
    )

    last = tmp_path / "checkpoint-4"
    assert not (last / "language_model").exists()  # named, since it did not change
    again = open_model(last)
    batch = ShapeVLCollator(processor=shape_processor)([records[0], records[1]])
    model.eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)

    # Stopped after two steps, it goes on as if it had not been.
    fresh = open_model(named_folder, is_trainable=True)
    resumed = Trainer(
        model=fresh,
        args=TrainingArguments(**arguments(tmp_path, save_strategy="no")),
        train_dataset=records,
        data_collator=ShapeVLCollator(processor=shape_processor),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in weights(fresh).items():
        torch.testing.assert_close(value, weights(model)[name], rtol=0, atol=1e-6)


def test_trainer_trains_the_language_model_too_where_that_is_asked(tmp_path, named_folder, records, shape_processor):
    model = open_model(named_folder, merge_adapter=True)
    model.branch.vl_model.requires_grad_(True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(tmp_path, max_steps=2, learning_rate=1e-3, save_steps=2)),
        train_dataset=records,
        data_collator=ShapeVLCollator(processor=shape_processor),
    )
    trainer.train()
    again = open_model(tmp_path / "checkpoint-2")
    assert (tmp_path / "checkpoint-2" / "language_model").is_dir()
    for name, value in weights(again).items():
        assert torch.equal(value, weights(model)[name]), name


def test_gradient_checkpointing_changes_no_gradient(named_folder, records, shape_processor):
    batch = ShapeVLCollator(processor=shape_processor)([records[0], records[1]])
    gradients = []
    for checkpointing in (False, True):
        model = open_model(named_folder, is_trainable=True).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)  # of the dropout in front of the adapters
        model(**batch).loss.backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("projector" in name for name in gradients[0])
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_peft_wraps_the_model_and_its_folder_opens_on_it_again(tmp_path, named_folder, records, shape_processor):
    peft = pytest.importorskip("peft")

    base = open_model(named_folder, merge_adapter=True)
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        open_model(tmp_path / "base"),
        peft.LoraConfig(
            r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["projector"], task_type="CAUSAL_LM"
        ),
    )
    learns = [name for name, value in model.named_parameters() if value.requires_grad]
    assert all("lora_" in name or "projector.modules_to_save" in name for name in learns)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**arguments(tmp_path / "run", save_strategy="no")),
        train_dataset=records,
        data_collator=ShapeVLCollator(processor=shape_processor),
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    with pytest.raises(ValueError, match="adapters that peft keeps"):
        model.get_base_model().save_pretrained(tmp_path / "wrong")
    model.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("model*"))
    again = peft.PeftModel.from_pretrained(open_model(tmp_path / "base"), tmp_path / "adapter").eval()
    by_auto = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")  # which names its base
    batch = ShapeVLCollator(processor=shape_processor)([records[0], records[1]])
    model.eval()
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(again(**batch).logits, expected)
        assert torch.equal(by_auto(**batch).logits, expected)
        merged = again.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        reopened = open_model(tmp_path / "merged")
        torch.testing.assert_close(reopened(**batch).logits, expected, rtol=1e-4, atol=1e-4)


def test_trl_trains_it(tmp_path, named_folder, records, shape_processor):
    trl = pytest.importorskip("trl")

    model = open_model(named_folder, is_trainable=True)
    before = weights(model)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            **arguments(tmp_path, save_strategy="no"), max_length=None, dataset_kwargs={"skip_prepare_dataset": True}
        ),
        train_dataset=records,
        data_collator=ShapeVLCollator(processor=shape_processor),
        processing_class=shape_processor,
    )
    batch = trainer.data_collator([records[0], records[1]])
    model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(model, dict(batch))
        torch.testing.assert_close(loss, open_model(named_folder)(**batch).loss, rtol=1e-4, atol=1e-5)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in model.named_parameters() if value.requires_grad}
    trainer.save_model(str(tmp_path / "saved"))
    again = open_model(tmp_path / "saved")
    for name, value in weights(again).items():
        assert torch.equal(value, weights(model)[name]), name


def test_the_collator_takes_items_of_cached_codes_too(codes, small_vae, tokenizer):
    from vae_qwen3vl.data.datasets_3d import CachedCodesDataset
    from vae_qwen3vl.pretrained import ShapeVLProcessor

    dataset = CachedCodesDataset(codes)
    batch = ShapeVLCollator(processor=ShapeVLProcessor(tokenizer, vae=small_vae))([dataset[0], dataset[1]])
    assert batch["input_ids"].shape == batch["labels"].shape
    assert {"feats_3d", "coords_3d"} <= batch.keys() or {"codes_3d", "coords_3d"} <= batch.keys()
